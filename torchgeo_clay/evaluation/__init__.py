# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""How good embeddings are: probes with labels, similar chips, and representation collapse. Pure functions."""

from torchgeo_clay.evaluation.collapse import CollapseFigures, collapse_figures, effective_rank
from torchgeo_clay.evaluation.inputs import as_embeddings
from torchgeo_clay.evaluation.probes import ProbeResult, knn_probe, logistic_probe
from torchgeo_clay.evaluation.search import similar

__all__ = (
    'CollapseFigures',
    'ProbeResult',
    'as_embeddings',
    'collapse_figures',
    'effective_rank',
    'knn_probe',
    'logistic_probe',
    'similar',
)
