# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Figures of a run, as files and in its loggers."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure

__all__ = ('write_figure',)


def write_figure(trainer: Trainer, figure: Figure, path: Path, tag: str) -> None:
    """Write a figure to a PNG, and to the loggers that take figures. A picture that cannot be written ends no run.

    Args:
        trainer: with the loggers; call it on the first rank only.
        figure: the figure.
        path: of the PNG, whose folder is made.
        tag: name of the figure in the loggers.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100)
    except OSError as error:
        rank_zero_warn(
            f'{path}: the picture could not be written ({error}). Free some space, or choose another folder.'
        )
    for logger in trainer.loggers:
        add_figure = getattr(getattr(logger, 'experiment', None), 'add_figure', None)
        if add_figure is not None:
            add_figure(tag, figure, global_step=trainer.global_step, close=False)
