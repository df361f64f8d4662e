# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Plots of pairs of images. Shapes: B samples, T dates, C bands, H × W pixels, K outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from lightning.pytorch import LightningModule
from torch import Tensor
from torchgeo.datamodules import BaseDataModule
from torchgeo.datasets import RGBBandsMissingError

__all__ = ('PLOTTED', 'plot_change')

#: Batches of validation of which TorchGeo's tasks plot the first sample.
PLOTTED = 10


def plot_change(task: LightningModule, batch: Mapping[str, Tensor], logits: Tensor, batch_idx: int) -> None:
    """Log the datamodule's plot of a batch's first sample, where there is a logger that takes figures.

    TorchGeo's own step undoes the normalisation by kornia, which from 0.9 on refuses one mask beside two images.

    Args:
        task: within a run.
        batch: ``image`` (B, T, C, H, W) normalised by the datamodule's ``mean`` and ``std``, and ``mask``.
        logits: (B, K, H, W).
        batch_idx: names the figure.
    """
    datamodule = getattr(task.trainer, 'datamodule', None)
    experiment: Any = getattr(task.logger, 'experiment', None)
    if not isinstance(datamodule, BaseDataModule) or not hasattr(experiment, 'add_figure'):
        return
    mean, std = (s.to(logits).reshape(-1, 1, 1) for s in (datamodule.mean, datamodule.std))
    multiclass = task.hparams['task'] == 'multiclass'
    sample = {
        'image': (batch['image'][0] * std + mean).cpu(),
        'mask': batch['mask'][0].cpu(),
        'prediction': (logits[0].argmax(0, keepdim=True) if multiclass else (logits[0] >= 0).long()).cpu(),
    }
    try:
        figure = datamodule.plot(sample)
    except RGBBandsMissingError:  # the bands are not there that a picture is made of
        return
    if figure:
        experiment.add_figure(f'image/{batch_idx}', figure, global_step=task.global_step)
        plt.close(figure)
