# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The datamodule of prediction: whole scenes in units of work."""
