# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The teacher of a pretraining task: a frozen module, or targets computed before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torchgeo.tasks import BaseTask

import torchgeo_clay.models
from torchgeo_clay.datamodules import ClayPretrainDataModule
from torchgeo_clay.datamodules.pretrain.teach import attach_targets
from torchgeo_clay.models.teacher import make_teacher

__all__ = ('TeacherTask', 'teacher_options')

_TEACHER = 'model.teacher.'
_DIGEST = 'teacher_sha256'


def teacher_options(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a builder of :mod:`torchgeo_clay.models` for a model with a teacher, or with targets only.

    Args:
        hparams: with ``teacher`` and ``teacher_targets``.

    Raises:
        ValueError: for targets without a teacher, or a teacher that cannot be made.
    """
    teacher = hparams['teacher']
    if hparams['teacher_targets'] is None:
        return {'teacher': teacher}
    if teacher is None:
        raise ValueError(
            f'teacher_targets: expected teacher= too, the timm name of the model whose targets are kept in '
            f'{hparams["teacher_targets"]}, got none. Leave teacher_targets out to train without a teacher.'
        )
    with torch.device('meta'):  # only its width is needed
        width = cast(nn.Module, make_teacher(teacher, pretrained=False)).num_features
    return {'teacher': None, 'teacher_dim': width}


class TeacherTask(BaseTask):
    """A task whose ``hparams`` have ``model``, ``teacher`` and ``teacher_targets``; its teacher is never saved."""

    weights: Any
    _digest: str | None = None

    def setup(self, stage: str) -> None:
        """Compute the teacher's targets that are not in the store yet, and free the teacher.

        Args:
            stage: ignored.

        Raises:
            ValueError: without a :class:`~torchgeo_clay.datamodules.ClayPretrainDataModule`, and see
                :func:`torchgeo_clay.datamodules.pretrain.teach.attach_targets`.
        """
        folder = self.hparams['teacher_targets']
        if folder is None:
            return
        data = getattr(self.trainer, 'datamodule', None)
        if not isinstance(data, ClayPretrainDataModule):
            raise ValueError(
                'teacher_targets: expected a ClayPretrainDataModule with chips (.npz), which have the same target in '
                f'every epoch, got {type(data).__name__}. Train with teacher_targets=null.'
            )
        with torch.random.fork_rng():  # a teacher is initialized at random before its weights are loaded
            self._digest = attach_targets(data, folder, self._teacher(), self.hparams['teacher'])
        rank_zero_info(f'Trains on teacher targets, without the teacher (weights with SHA-256 {self._digest[:12]}…)')

    def _teacher(self) -> nn.Module:
        """The teacher, with the weights it would have as a part of the model."""
        name = self.hparams['teacher']
        if self.weights in (None, False):
            return cast(nn.Module, make_teacher(name))
        model = getattr(torchgeo_clay.models, self.hparams['model'])(weights=self.weights, teacher=name)
        return cast(nn.Module, model.teacher)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen teacher out of checkpoints: its name, in the hyperparameters, brings it back.

        Args:
            checkpoint: to be saved.
        """
        checkpoint['state_dict'] = {k: v for k, v in checkpoint['state_dict'].items() if not k.startswith(_TEACHER)}
        if self._digest is not None:
            checkpoint[_DIGEST] = self._digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the teacher to the checkpoint, whose loading is strict.

        Args:
            checkpoint: as saved.

        Raises:
            ValueError: if the targets are of a teacher with other weights than in the checkpoint's run.
        """
        teacher = {k: v for k, v in self.state_dict().items() if k.startswith(_TEACHER)}
        checkpoint['state_dict'] = {**checkpoint['state_dict'], **teacher}
        before = checkpoint.get(_DIGEST)
        if before is not None and self._digest is not None and before != self._digest:
            raise ValueError(
                f'teacher: expected weights with SHA-256 {before[:12]}…, whose targets the checkpoint was trained on, '
                f'got {self._digest[:12]}… Bring those weights back, or start a new run with weights=<checkpoint>.'
            )
