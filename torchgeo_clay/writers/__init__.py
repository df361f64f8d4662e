# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Files of results: GeoParquet and cloud-optimised GeoTIFF. Nothing here knows of Lightning."""

from torchgeo_clay.writers.atomic import OutputError, atomic
from torchgeo_clay.writers.cog import CogStream, Layout, write_cog

__all__ = ('CogStream', 'Layout', 'OutputError', 'atomic', 'write_cog')
