# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Lightning callbacks."""

from torchgeo_clay.callbacks.checkpoints import AtomicCheckpoints
from torchgeo_clay.callbacks.embedding import EmbeddingWriter
from torchgeo_clay.callbacks.knn import KNNEvaluation
from torchgeo_clay.callbacks.left_out import ScenesLeftOut
from torchgeo_clay.callbacks.metadata import SensorMetadata
from torchgeo_clay.callbacks.nonfinite import NonFiniteLoss
from torchgeo_clay.callbacks.raster import RasterWriter
from torchgeo_clay.callbacks.reconstruction import ReconstructionPlot

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
