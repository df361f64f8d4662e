# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Files of results: GeoParquet and cloud-optimised GeoTIFF. Nothing here knows of Lightning."""

from torchgeo_clay.writers.atomic import OutputError, atomic
from torchgeo_clay.writers.cog import CogStream, Layout, write_cog
from torchgeo_clay.writers.geoparquet import Rows, embedding_table, read_metadata, write_geoparquet
from torchgeo_clay.writers.parts import PartStore
from torchgeo_clay.writers.patches import write_patch_cog
from torchgeo_clay.writers.principal import embedding_batches, principal_components
from torchgeo_clay.writers.quicklook import write_quicklooks

__all__ = (
    'CogStream',
    'Layout',
    'OutputError',
    'PartStore',
    'Rows',
    'atomic',
    'embedding_batches',
    'embedding_table',
    'principal_components',
    'read_metadata',
    'write_cog',
    'write_geoparquet',
    'write_patch_cog',
    'write_quicklooks',
)
