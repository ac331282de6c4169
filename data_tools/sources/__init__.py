"""Readers of the layouts in which data sets are published; one file a layout.

A reader module offers ``add_arguments(parser)`` and ``open_source(args) -> Source``. It finds and
parses annotations and says where each photo lies; it never decodes, checks or writes a photo:
:mod:`data_tools.prepare` does that, the same for all.
"""

from types import ModuleType

from data_tools.sources import coco, flickr30k_entities, image_text, refcoco

SOURCES: dict[str, ModuleType] = {
    "coco": coco,
    "flickr30k_entities": flickr30k_entities,
    "image_text": image_text,
    "refcoco": refcoco,
}

__all__ = ["SOURCES"]
