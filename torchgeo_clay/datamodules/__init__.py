# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Data modules for Lightning."""

from torchgeo_clay.datamodules.biomassters import BioMasstersDataModule
from torchgeo_clay.datamodules.predict import SceneDataModule
from torchgeo_clay.datamodules.pretrain import ClayPretrainDataModule
from torchgeo_clay.datamodules.sensor_datamodule import SensorDataModule
from torchgeo_clay.datamodules.synthetic import SyntheticDataModule

__all__ = (
    'BioMasstersDataModule',
    'ClayPretrainDataModule',
    'SceneDataModule',
    'SensorDataModule',
    'SyntheticDataModule',
)
