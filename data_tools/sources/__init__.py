"""Readers of the layouts in which data sets are published; one file a layout.

A reader module offers ``add_arguments(parser)`` and ``open_source(args) -> Source``. It finds and
parses annotations and says where each photo lies; it never decodes, checks or writes a photo:
:mod:`data_tools.prepare` does that, the same for all.
"""

from types import ModuleType

from data_tools.sources import (
    coco,
    flickr30k_entities,
    grefcoco,
    image_text,
    objects365,
    open_images,
    refcoco,
    referitgame,
    visual_genome,
)

SOURCES: dict[str, ModuleType] = {
    "coco": coco,
    "flickr30k_entities": flickr30k_entities,
    "grefcoco": grefcoco,
    "image_text": image_text,
    "objects365": objects365,
    "open_images": open_images,
    "refcoco": refcoco,
    "referitgame": referitgame,
    "visual_genome": visual_genome,
    **dict.fromkeys(image_text.SUMMARIES, image_text),
}

__all__ = ["SOURCES"]
