"""From a fusion's configuration to its module."""

from __future__ import annotations

from wholegrain.model.config import Ca2mFusion, FusionConfig, RegFusion, ScanFusion, TextConfig
from wholegrain.model.grounding.ca2m import Ca2m
from wholegrain.model.grounding.fusion import Fusion
from wholegrain.model.grounding.reg import RegEncoder
from wholegrain.model.grounding.scan import ScanFormer
from wholegrain.model.vision import VisionEncoder


def build_fusion(config: FusionConfig, vision: VisionEncoder, text: TextConfig) -> Fusion | None:
    """The module of a fusion; None for the cross encoder, which belongs to the model itself.

    Raises:
        ConfigError: the image or text encoder lacks what it needs.
    """
    if isinstance(config, Ca2mFusion):
        return Ca2m(config, vision, text.hidden_size, text.fusion_layer)
    if isinstance(config, ScanFusion):
        return ScanFormer(config, vision, text.hidden_size)
    if isinstance(config, RegFusion):
        return RegEncoder(config, vision, text)
    return None
