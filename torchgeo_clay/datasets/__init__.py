# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Datasets whose samples follow the batch contract of :mod:`torchgeo_clay.metadata`."""

from torchgeo_clay.datasets.biomassters import BioMasstersMonths
from torchgeo_clay.datasets.chips import ClayChips
from torchgeo_clay.datasets.embeddings import ClayEmbeddings
from torchgeo_clay.datasets.raster import SensorRaster
from torchgeo_clay.datasets.scene import Scene, SceneError, scan_scene
from torchgeo_clay.datasets.sensor_dataset import SensorDataset
from torchgeo_clay.datasets.synthetic import SyntheticScenes
from torchgeo_clay.datasets.synthetic_chips import SyntheticChips

__all__ = (
    'BioMasstersMonths',
    'ClayChips',
    'ClayEmbeddings',
    'Scene',
    'SceneError',
    'SensorDataset',
    'SensorRaster',
    'SyntheticChips',
    'SyntheticScenes',
    'scan_scene',
)
