# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Any TorchGeo datamodule with sensor metadata."""
