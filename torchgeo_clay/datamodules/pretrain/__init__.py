# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The datamodule of pretraining: plan, dataset, loader."""
