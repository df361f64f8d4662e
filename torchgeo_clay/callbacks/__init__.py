# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Lightning callbacks."""

from torchgeo_clay.callbacks.knn import KNNEvaluation
from torchgeo_clay.callbacks.nonfinite import NonFiniteLoss
from torchgeo_clay.callbacks.reconstruction import ReconstructionPlot
from torchgeo_clay.callbacks.scene_writers import DetectionWriter, EmbeddingWriter, PredictionWriter, RasterWriter
from torchgeo_clay.callbacks.sensor_metadata import SensorMetadata
from torchgeo_clay.plugins import AtomicCheckpoints

__all__ = (
    'AtomicCheckpoints',
    'DetectionWriter',
    'EmbeddingWriter',
    'KNNEvaluation',
    'NonFiniteLoss',
    'PredictionWriter',
    'RasterWriter',
    'ReconstructionPlot',
    'SensorMetadata',
)
