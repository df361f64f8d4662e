# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Lightning callbacks."""

from torchgeo_clay.callbacks.embedding_writer import EmbeddingWriter
from torchgeo_clay.callbacks.knn import KNNEvaluation
from torchgeo_clay.callbacks.map_writer import RasterWriter
from torchgeo_clay.callbacks.nonfinite import NonFiniteLoss
from torchgeo_clay.callbacks.reconstruction import ReconstructionPlot
from torchgeo_clay.callbacks.sensor_metadata import SensorMetadata
from torchgeo_clay.callbacks.skipped import ScenesLeftOut
from torchgeo_clay.plugins import AtomicCheckpoints

__all__ = (
    'AtomicCheckpoints',
    'EmbeddingWriter',
    'KNNEvaluation',
    'NonFiniteLoss',
    'RasterWriter',
    'ReconstructionPlot',
    'ScenesLeftOut',
    'SensorMetadata',
)
