"""MMA on CLIP, its own host: transformers' `CLIPModel`, frozen, with pairs beside its blocks.

Block l of the image and of the text encoder give their pair the block's own first norm of their
input, and ``alpha A`` is added to what the block returns (see `mma_pair`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.config import from_dict, to_dict
from wholegrain.errors import CheckpointError, ConfigError
from wholegrain.model.adapters.mma import paired
from wholegrain.model.adapters.mma_pair import Pair, PairedAdapter
from wholegrain.model.config import MmaConfig
from wholegrain.model.tensor_file import flush_folder, write_tensors
from wholegrain.model.weights import load_weights

DEFAULT_BLOCKS = 8
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class MmaClip(PairedAdapter):
    """The pairs of one CLIP; made by `attach_clip` or `load_clip`.

    Its parameters and its state dict are those of the pairs alone. The host's own methods see the
    pairs as well, as long as `remove` has not taken them out.
    """

    def __init__(self, model: Any, config: MmaConfig) -> None:
        images, texts = model.vision_model.encoder.layers, model.text_model.encoder.layers
        numbers = paired(config, len(images), len(texts), DEFAULT_BLOCKS)
        if config.cross:
            raise ConfigError("adapters.cross is true, but CLIP has no cross encoder; set it false")
        super().__init__(config.alpha, config.gradient_trick)
        self.config = config
        self._host = (model,)  # in a tuple, so that it is no part of this module
        for image, text in numbers:
            sides = {"vision": images[image - 1], "text": texts[text - 1]}
            widths = {side: layer.layer_norm1.normalized_shape[0] for side, layer in sides.items()}
            pair = Pair(widths, config.rank, config.zero_up)
            # The pairs go where the host is, in its precision.
            self.pairs.append(pair.to(model.logit_scale))
            for side, layer in sides.items():
                name = f"vision.block.{image}" if side == "vision" else f"text.layer.{text}"
                self._beside(name, pair, side, layer, layer.layer_norm1)

    @property
    def host(self) -> Any:
        """The `CLIPModel`."""
        return self._host[0]

    def image_features(self, pixels: Tensor) -> Tensor:
        """Unit vectors (I, E) of normalised images (I, 3, R, R), in fp32 or better."""
        output = self.host.get_image_features(pixel_values=pixels)
        return _unit(output.pooler_output)

    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Unit vectors (T, E) of token ids (T, L), in fp32 or better.

        Args:
            ids: with the end token, at which a text is read.
            mask: (T, L), 1 at tokens; None where nothing precedes the end token but tokens.
        """
        output = self.host.get_text_features(input_ids=ids, attention_mask=mask)
        return _unit(output.pooler_output)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """``exp(logit_scale) cos`` (I, T) of unit vectors (I, E) and (T, E)."""
        scaled: Tensor = self.host.logit_scale.exp() * (images @ texts.T)
        return scaled

    def save(self, path: Path | str) -> None:
        """Writes the pairs, their configuration and the host's fingerprint (safetensors).

        Raises:
            OSError: the storage does not take it.
        """
        path = Path(path)
        tensors = {n: v.detach().cpu().contiguous() for n, v in self.state_dict().items()}
        metadata = {
            "kind": self.kind,
            "config": json.dumps(to_dict(self.config)),
            "alpha": repr(self.alpha),
            "host": host_fingerprint(self.host),
        }
        aside = path.with_name(path.name + ".partial")
        write_tensors(aside, tensors, metadata)
        os.replace(aside, path)
        flush_folder(path.parent)

    def load(self, path: Path | str) -> None:
        """Fills the pairs, and `alpha`, from a file of `save`, or leaves them as they are.

        Raises:
            CheckpointError: no such file; of another host, or pairs of another configuration.
        """
        path = Path(path)
        self._fill(path, *_read_metadata(path))

    def _fill(self, path: Path, config: MmaConfig, alpha: float, host: str) -> None:
        stored, own = to_dict(config), to_dict(self.config)
        others = [
            f"{key} is {own[key]}, not {stored[key]}" for key in own if own[key] != stored[key]
        ]
        if others:
            raise CheckpointError(
                f"{path}: pairs of another configuration ({'; '.join(others)}); attach those of "
                "the file with load_clip"
            )
        if host != (mine := host_fingerprint(self.host)):
            raise CheckpointError(
                f"{path}: made on a host whose weights are {host[:12]}, not {mine[:12]}; load that "
                "CLIP, in the same precision"
            )
        load_weights(self, path)
        self.alpha = alpha


def attach_clip(model: Any, config: MmaConfig) -> MmaClip:
    """Freezes a `transformers.CLIPModel` and puts fresh pairs beside its blocks.

    Args:
        model: the host; hooks are set in it, its names and weights stay as they are.
        config: of the pairs; by default blocks 5 to 12 of 12, as published for generalisation from
            base to novel classes; with `blocks` 4, 9 to 12, as for transfer across data sets.

    Raises:
        ConfigError: no `CLIPModel`, one with pairs already, or without the blocks asked for.
    """
    from transformers import CLIPModel

    if not isinstance(model, CLIPModel):
        raise ConfigError(
            f"the host is a {type(model).__name__}; give a transformers.CLIPModel, or put the "
            "adapters mma on a model of this library"
        )
    layers = [*model.vision_model.encoder.layers, *model.text_model.encoder.layers]
    hooks = [hook for layer in layers for hook in layer._forward_hooks.values()]
    if any(isinstance(getattr(hook, "adapter", None), MmaClip) for hook in hooks):
        raise ConfigError("the CLIP has adapters already; take them out with remove()")
    adapter = MmaClip(model, config)
    model.requires_grad_(False)
    return adapter


def load_clip(model: Any, path: Path | str) -> MmaClip:
    """Freezes a `transformers.CLIPModel` and gives it the pairs of a file of `MmaClip.save`.

    Raises:
        CheckpointError: no such file, or of another host; nothing is attached then.
        ConfigError: as of `attach_clip`.
    """
    path = Path(path)
    config, alpha, host = _read_metadata(path)
    adapter = attach_clip(model, config)
    try:
        adapter._fill(path, config, alpha, host)
    except CheckpointError:
        adapter.remove()
        raise
    return adapter


def host_fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's weights and buffers, their names, shapes and precisions."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()


class TextFeatureCache:
    """Features of texts, encoded once as long as nothing that they depend on changes.

    Every request looks at the weights first: a checksum of each one's bits, computed where it lies,
    and torch's count of changes in place. So an optimizer's step, loaded weights, another `alpha`
    or adapters switched off are all noticed, and what was kept is dropped. For evaluation: features
    carry no gradient.

    Args:
        encode: makes features (T, E) of ids (T, L) and a mask (T, L) or None.
        modules: all whose weights the features depend on, adapters included.
    """

    def __init__(
        self, encode: Callable[[Tensor, Tensor | None], Tensor], *modules: nn.Module
    ) -> None:
        self._encode, self._modules = encode, modules
        self._mark: tuple[Any, ...] = ()
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    @classmethod
    def of_clip(cls, adapter: MmaClip) -> TextFeatureCache:
        """Of an adapted CLIP's `MmaClip.text_features`."""
        host = adapter.host
        return cls(adapter.text_features, host.text_model, host.text_projection, adapter)

    def __len__(self) -> int:
        return len(self._kept)

    def __call__(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The features (T, E), not to be written to."""
        mark = self._mark_now()
        if mark != self._mark:
            self._kept.clear()
            self._mark = mark
        key = tuple(None if each is None else _content(each) for each in (ids, mask))
        if key not in self._kept:
            with torch.no_grad():
                self._kept[key] = self._encode(ids, mask)
        return self._kept[key]

    def _mark_now(self) -> tuple[Any, ...]:
        parts = [part for module in self._modules for part in module.modules()]
        settings = [part.setting for part in parts if isinstance(part, PairedAdapter)]
        training = [module.training for module in self._modules]
        devices = {tensor.device.type for module in self._modules for tensor in module.parameters()}
        settings += [precision_now(device) for device in sorted(devices)]
        tensors = [
            tensor.detach()
            for module in self._modules
            for tensor in (*module.parameters(), *module.buffers())
        ]
        return (tuple(settings), tuple(training), *weights_mark(tensors))


def precision_now(device: str) -> tuple[Any, ...]:
    """What autocast does on a kind of device."""
    enabled = torch.is_autocast_enabled(device)
    return device, enabled, torch.get_autocast_dtype(device) if enabled else None


def weights_mark(tensors: Iterable[Tensor]) -> tuple[Any, ...]:
    """Something that differs once a tensor's bits do; one wait for each device.

    The sum of the bits is not enough: it stays where two elements change places. Nor is torch's
    count of changes: the fused AdamW does not raise it, an assignment through ``.data`` neither.
    """
    tensors = list(tensors)
    kinds = tuple((tensor.dtype, tensor.device, tensor.shape) for tensor in tensors)
    counts = tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)
    sums: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        sums.setdefault(tensor.device, []).append(_sum_of_bits(tensor))
    return kinds, counts, tuple(tuple(torch.stack(each).tolist()) for each in sums.values())


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """() int64, modulo 2^64."""
    flat, size = tensor.contiguous().view(-1), tensor.element_size()
    # As 64-bit numbers where the tensor can be cut so: narrower ones are summed far more slowly.
    whole = flat.numel() * size % 8 == 0 and flat.storage_offset() * size % 8 == 0
    return flat.view(torch.int64 if whole else _INTEGERS[size]).sum()


def _content(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.cpu().contiguous().numpy().tobytes()


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


def _read_metadata(path: Path) -> tuple[MmaConfig, float, str]:
    """Configuration, alpha and the host's fingerprint of a file of `MmaClip.save`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: no adapters can be read ({error}); give a file of MmaClip.save"
        ) from None
    try:
        values, alpha = json.loads(metadata["config"]), float(metadata["alpha"])
        return from_dict(MmaConfig, values, where=str(path)), alpha, metadata["host"]
    except (KeyError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{path}: says nothing readable of its adapters ({error!r}); give a file of "
            "MmaClip.save"
        ) from None
