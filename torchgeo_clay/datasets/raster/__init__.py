# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""From a GeoTIFF to a patch with place, date and ground sampling distance."""
