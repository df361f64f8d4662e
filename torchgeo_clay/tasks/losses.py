# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Losses and metrics that leave out targets without a value.

Shapes: B samples, K classes or outputs, H × W pixels; … stands for nothing or for H × W.
"""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection
from torchmetrics.wrappers import ClasswiseWrapper

__all__ = ('LossWithoutIgnored', 'LossWithoutNodata', 'metrics_without_nodata')


class LossWithoutIgnored(nn.Module):
    """A classification loss of all pixels but those of an ignored label; zero if all are ignored.

    TorchGeo hands ``ignore_index`` to its cross-entropy, focal and Dice losses alone; BCE takes the ignored label for a
    target and the Jaccard loss of several classes fails for one (torchgeo.tasks.mixins, 0.10.1). Their means over no
    pixel at all are NaN.
    """

    def __init__(self, criterion: nn.Module, ignore_index: int) -> None:
        """Initialize a new LossWithoutIgnored instance.

        Args:
            criterion: one that TorchGeo's ``configure_losses`` makes.
            ignore_index: the label to ignore.
        """
        super().__init__()
        if isinstance(criterion, nn.BCEWithLogitsLoss):
            criterion.reduction = 'none'
        elif isinstance(criterion, smp.losses.JaccardLoss):
            criterion = smp.losses.JaccardLoss(criterion.mode, ignore_index=ignore_index)
        self.criterion = criterion
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: (B, K, …), or (B, …) for two classes.
            target: (B, …), or like the logits for several labels; int64, or float32 for BCE.
        """
        known = target != self.ignore_index
        if isinstance(self.criterion, nn.BCEWithLogitsLoss):
            loss = self.criterion(logits, target * known) * known
            return loss.sum() / known.sum().clamp(min=1)
        # no .item(): the host need not wait for a device
        return torch.where(known.any(), self.criterion(logits, target), 0 * logits.sum())


def _has_value(target: Tensor, nodata: float | None = None) -> Tensor:
    """Where a regression target is a number, of the target's shape."""
    finite = torch.isfinite(target)
    return finite if nodata is None else finite & (target != torch.tensor(nodata, dtype=target.dtype))


class LossWithoutNodata(nn.Module):
    """The mean squared or absolute error of the targets that have a value; zero if none has."""

    def __init__(self, criterion: nn.Module, nodata: float | None = None) -> None:
        """Initialize a new LossWithoutNodata instance.

        Args:
            criterion: one that TorchGeo's ``configure_losses`` makes.
            nodata: see :func:`_has_value`.
        """
        super().__init__()
        criterion.reduction = 'none'  # type: ignore[assignment]
        self.criterion = criterion
        self.nodata = nodata

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of (B, K, …) predictions of targets of the same shape."""
        known = _has_value(target, self.nodata)
        loss = self.criterion(prediction, torch.where(known, target, prediction.detach()))
        return loss.sum() / known.sum().clamp(min=1)


class _OfValues(Metric):
    """Mixin; must precede a metric of torchmetrics in the bases. Targets without a value are left out."""

    num_outputs: int
    total: Tensor

    def __init__(self, nodata: float | None, **kwargs: Any) -> None:
        """Initialize a new instance."""
        super().__init__(**kwargs)
        self.nodata = nodata
        self.add_state('total', torch.zeros(self.num_outputs, dtype=torch.int64), dist_reduce_fx='sum')

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch; targets without a value become right and are taken off the count, without waiting for it."""
        missing = ~_has_value(target, self.nodata)
        self.total = self.total - (missing.sum(0) if self.num_outputs > 1 else missing.sum())
        super().update(torch.where(missing, 0, preds), torch.where(missing, 0, target))  # type: ignore[safe-super]


class _SquaredError(_OfValues, MeanSquaredError):
    """The mean squared error, or its root, of each output's targets that have a value."""


class _AbsoluteError(_OfValues, MeanAbsoluteError):
    """The mean absolute error of each output's targets that have a value."""


def metrics_without_nodata(num_outputs: int, labels: list[str] | None, nodata: float | None) -> MetricCollection:
    """TorchGeo's metrics of regression (RMSE, MSE, MAE; one per output) of targets that have a value.

    Args:
        num_outputs: K.
        labels: names of the outputs.
        nodata: see :func:`_has_value`.
    """
    metrics: dict[str, Any] = {
        'RMSE': _SquaredError(nodata, squared=False, num_outputs=num_outputs),
        'MSE': _SquaredError(nodata, squared=True, num_outputs=num_outputs),
        'MAE': _AbsoluteError(nodata, num_outputs=num_outputs),
    }
    if num_outputs > 1:
        metrics = {name: ClasswiseWrapper(m, labels=labels, prefix=f'{name}_') for name, m in metrics.items()}
    return MetricCollection(metrics)
