# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Whole scenes as tables of embeddings and as maps, without a trainer."""

from torchgeo_clay.inference.embedding import EmbeddingTable, embed, embed_labeled
from torchgeo_clay.inference.maps import MapStyle, SceneMaps, map_scenes
from torchgeo_clay.inference.output import SkippedScenesError

__all__ = (
    'EmbeddingTable',
    'MapStyle',
    'SceneMaps',
    'SkippedScenesError',
    'embed',
    'embed_labeled',
    'map_scenes',
)
