# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Lightning callbacks."""

from torchgeo_clay.callbacks.embedding import EmbeddingWriter, ScenesLeftOut
from torchgeo_clay.callbacks.knn import KNNEvaluation
from torchgeo_clay.callbacks.metadata import SensorMetadata
from torchgeo_clay.callbacks.raster import RasterWriter
from torchgeo_clay.callbacks.reconstruction import ReconstructionPlot

__all__ = ('EmbeddingWriter', 'KNNEvaluation', 'RasterWriter', 'ReconstructionPlot', 'ScenesLeftOut', 'SensorMetadata')
