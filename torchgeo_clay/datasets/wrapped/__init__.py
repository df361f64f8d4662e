# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""From any TorchGeo dataset to samples that follow the batch contract."""
