# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Whole scenes: windows that cover them, blending, footprints, maps."""

from torchgeo_clay.datasets.raster.footprints import footprint, footprint_wgs84
from torchgeo_clay.datasets.raster.windows import check_windows, owned, starts, windows
from torchgeo_clay.inference.blending import axis_weights, taper
from torchgeo_clay.inference.maps import MapStyle
from torchgeo_clay.inference.scene import predict_scene

__all__ = (
    'MapStyle',
    'axis_weights',
    'check_windows',
    'footprint',
    'footprint_wgs84',
    'owned',
    'predict_scene',
    'starts',
    'taper',
    'windows',
)
