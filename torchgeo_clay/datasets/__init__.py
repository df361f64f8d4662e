# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Datasets whose samples follow the batch contract of :mod:`torchgeo_clay.conditioning`."""

from torchgeo_clay.datasets.biomassters import BioMasstersMonths
from torchgeo_clay.datasets.chips import ClayChips
from torchgeo_clay.datasets.embeddings import ClayEmbeddings
from torchgeo_clay.datasets.raster.dataset import SensorRaster
from torchgeo_clay.datasets.raster.files import SceneError
from torchgeo_clay.datasets.raster.scene import Scene, scan_scene
from torchgeo_clay.datasets.simulated import SyntheticChips
from torchgeo_clay.datasets.simulated_crops import SyntheticCrops
from torchgeo_clay.datasets.table import ChipTable
from torchgeo_clay.datasets.wrapped.dataset import SensorDataset
from torchgeo_clay.simulator import SyntheticScenes

__all__ = (
    'BioMasstersMonths',
    'ChipTable',
    'ClayChips',
    'ClayEmbeddings',
    'Scene',
    'SceneError',
    'SensorDataset',
    'SensorRaster',
    'SyntheticChips',
    'SyntheticCrops',
    'SyntheticScenes',
    'scan_scene',
)
