# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Data modules for Lightning."""

from torchgeo_clay.datamodules.biomassters import BioMasstersDataModule
from torchgeo_clay.datamodules.pretrain.datamodule import ClayPretrainDataModule
from torchgeo_clay.datamodules.scenes import SceneDataModule
from torchgeo_clay.datamodules.simulated import SyntheticDataModule
from torchgeo_clay.datamodules.simulated_crops import SyntheticCropsDataModule
from torchgeo_clay.datamodules.table import ChipTableDataModule
from torchgeo_clay.datamodules.wrapped.datamodule import SensorDataModule

__all__ = (
    'BioMasstersDataModule',
    'ChipTableDataModule',
    'ClayPretrainDataModule',
    'SceneDataModule',
    'SensorDataModule',
    'SyntheticCropsDataModule',
    'SyntheticDataModule',
)
