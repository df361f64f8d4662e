# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Data modules for Lightning."""

from torchgeo_clay.datamodules.pretrain import ClayPretrainDataModule

__all__ = ('ClayPretrainDataModule',)
