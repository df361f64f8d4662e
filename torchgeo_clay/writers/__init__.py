# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Files of results: GeoParquet and cloud-optimized GeoTIFF. Nothing here depends on Lightning."""

from torchgeo_clay.writers.atomic import OutputError, atomic
from torchgeo_clay.writers.cog import CogStream, Layout, write_patch_cogs
from torchgeo_clay.writers.geoparquet import (
    PartStore,
    Rows,
    embedding_batches,
    embedding_table,
    read_metadata,
    write_geoparquet,
)
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
    'read_metadata',
    'write_geoparquet',
    'write_patch_cogs',
    'write_quicklooks',
)
