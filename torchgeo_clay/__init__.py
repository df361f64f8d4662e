# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay v1.5 for TorchGeo."""
