# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Names of TorchGeo that move in its next release; every other module imports them from here.

``Sample`` becomes a TypedDict (https://github.com/torchgeo/torchgeo/pull/3200), and helpers of ``datasets.utils`` move.
"""

from torchgeo.datasets.utils import GeoSlice, Path, Sample, find_files

__all__ = ('GeoSlice', 'Path', 'Sample', 'find_files')
