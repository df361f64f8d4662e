# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Files of results: GeoParquet and cloud-optimised GeoTIFF. Nothing here knows of Lightning."""

from torchgeo_clay.writers.atomic import OutputError, atomic
from torchgeo_clay.writers.cog import CogStream, Layout, write_cog
from torchgeo_clay.writers.geoparquet import Rows, embedding_table, read_metadata, write_geoparquet
from torchgeo_clay.writers.parts import PartStore

__all__ = (
    'CogStream',
    'Layout',
    'OutputError',
    'PartStore',
    'Rows',
    'atomic',
    'embedding_table',
    'read_metadata',
    'write_cog',
    'write_geoparquet',
)
