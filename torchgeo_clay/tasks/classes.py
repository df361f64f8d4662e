# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What tasks of classes log in addition: names of classes, and a confusion matrix. Shapes: K classes or labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay
from torch import Tensor
from torchmetrics import ConfusionMatrix, MetricCollection
from torchmetrics.wrappers import ClasswiseWrapper

from torchgeo_clay.tasks.base import ClayTask
from torchgeo_clay.tasks.figures import write_figure

__all__ = ('ClassTask', 'class_names')

#: Classes from which on a confusion matrix shows no numbers, as there is no room.
_MANY = 20


def class_names(datamodule: LightningDataModule | None, count: int) -> list[str] | None:
    """Return the names of a datamodule's classes, as its datasets have them in ``classes``.

    Args:
        datamodule: which is set up.
        count: number of classes.

    Returns:
        The names, or None where there are none, another number of them, or some twice.
    """
    pending = [getattr(datamodule, f'{name}dataset', None) for name in ('train_', 'val_', 'test_', 'predict_', '')]
    while pending:
        dataset = pending.pop(0)
        names = getattr(dataset, 'classes', None)
        if isinstance(names, list | tuple) and len({str(name) for name in names}) == len(names) == count:
            return [str(name) for name in names]
        pending.extend(
            part for part in (getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())) if part is not None
        )
    return None


class ClassTask(ClayTask):
    """Mixin of tasks of classes. Metrics bear the names of classes, and a test ends with a confusion matrix."""

    train_metrics: MetricCollection
    val_metrics: MetricCollection
    test_metrics: MetricCollection

    def configure_metrics(self) -> None:
        """Make TorchGeo's metrics, and a confusion matrix of the test."""
        super().configure_metrics()
        keys = ('task', 'num_classes', 'num_labels', 'ignore_index')
        self.test_confusion: Any = ConfusionMatrix(**{key: self.hparams[key] for key in keys})
        self.test_metrics.register_forward_pre_hook(self._count)

    def _count(self, module: MetricCollection, inputs: tuple[Tensor, Tensor]) -> None:
        """Count what the test's metrics get."""
        self.test_confusion.update(*inputs)

    def setup(self, stage: str) -> None:
        """Take the names of classes from the datamodule, unless ``labels`` names them."""
        if not self.hparams['labels']:
            self.hparams['labels'] = class_names(getattr(self.trainer, 'datamodule', None), self.outputs)
        for metrics in (self.train_metrics, self.val_metrics, self.test_metrics):
            for metric in metrics.values(copy_state=False):
                if isinstance(metric, ClasswiseWrapper):
                    metric.labels = self.hparams['labels']

    def on_test_epoch_end(self) -> None:
        """Log the test's metrics, and write and log its confusion matrix where there is a logger."""
        super().on_test_epoch_end()
        counts = self.test_confusion.compute()
        self.test_confusion.reset()
        folder = self.trainer.log_dir
        if folder is None or not self.trainer.loggers or not self.trainer.is_global_zero:
            return
        write_figure(self.trainer, self._plot(counts), Path(folder) / 'confusion_matrix.png', 'confusion_matrix')

    def _plot(self, counts: Tensor) -> Figure:
        """Plot a confusion matrix, (K, K), or (K, 2, 2) of labels: the share of each true class."""
        matrices = [counts] if counts.ndim == 2 else list(counts)
        names, many = self.hparams['labels'], len(counts) >= _MANY
        side = max(5.0, 0.5 * len(counts))
        figure = Figure((side, side if counts.ndim == 2 else 3.0 * len(counts)), layout='constrained')
        figure.suptitle('Share of each true class')
        for i, matrix in enumerate(matrices):
            axis = figure.add_subplot(len(matrices), 1, i + 1)
            shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
            labels = names if counts.ndim == 2 and len(names or ()) == len(matrix) else None
            display = ConfusionMatrixDisplay(shares.cpu().numpy(), display_labels=labels)
            display.plot(
                ax=axis, include_values=not many, values_format='.2f', xticks_rotation='vertical', colorbar=False
            )
            if counts.ndim == 3:
                axis.set_title(names[i] if names else f'label {i}')
        return figure
