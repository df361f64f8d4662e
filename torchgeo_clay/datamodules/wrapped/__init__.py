# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Any TorchGeo datamodule, made aware of its sensor."""
