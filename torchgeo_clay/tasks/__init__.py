# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay's tasks, for `torchgeo fit|validate|test|predict`."""

from torchgeo_clay.tasks.change import ClayChangeDetection
from torchgeo_clay.tasks.classification import ClayClassification
from torchgeo_clay.tasks.detection import ClayInstanceSegmentation, ClayObjectDetection
from torchgeo_clay.tasks.embedding import ClayEmbedding
from torchgeo_clay.tasks.pretraining import ClayPretraining
from torchgeo_clay.tasks.regression import ClayPixelwiseRegression, ClayRegression
from torchgeo_clay.tasks.resuming import check_before_lightning
from torchgeo_clay.tasks.segmentation import ClaySemanticSegmentation

__all__ = (
    'ClayChangeDetection',
    'ClayClassification',
    'ClayEmbedding',
    'ClayInstanceSegmentation',
    'ClayObjectDetection',
    'ClayPixelwiseRegression',
    'ClayPretraining',
    'ClayRegression',
    'ClaySemanticSegmentation',
)

check_before_lightning()
