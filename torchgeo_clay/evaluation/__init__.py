# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""How good embeddings are: probes with labels, neighbours, and whether they collapse. Pure functions."""

from torchgeo_clay.evaluation.collapse import CollapseFigures, collapse_figures, effective_rank
from torchgeo_clay.evaluation.inputs import as_embeddings
from torchgeo_clay.evaluation.labelled import embed_labelled
from torchgeo_clay.evaluation.neighbours import Neighbours, RetrievalFigures, nearest_neighbours, retrieval_figures
from torchgeo_clay.evaluation.picture import plot_neighbours
from torchgeo_clay.evaluation.probes import ProbeResult, knn_probe, logistic_probe

__all__ = (
    'CollapseFigures',
    'Neighbours',
    'ProbeResult',
    'RetrievalFigures',
    'as_embeddings',
    'collapse_figures',
    'effective_rank',
    'embed_labelled',
    'knn_probe',
    'logistic_probe',
    'nearest_neighbours',
    'plot_neighbours',
    'retrieval_figures',
)
