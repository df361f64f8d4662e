# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Tells the Clay inside any task about each batch. Shapes: B samples, T dates, C bands, H × W pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchgeo.tasks import ChangeDetection

from torchgeo_clay.conditioning import batch_conditioning, check_gsd
from torchgeo_clay.models.clay import find_clay
from torchgeo_clay.sensors import Sensor, get_sensor

__all__ = ('SensorMetadata',)


def _check_dates(pl_module: LightningModule, image: Tensor) -> None:
    """Raise for a stock change detection that stacks the dates as channels, naming those that do not."""
    if not (isinstance(pl_module, ChangeDetection) and image.ndim == 5) or getattr(pl_module, 'sees_dates', False):
        return
    model = str(pl_module.hparams.get('model'))
    if not model.startswith('fcsiam') and model != 'changevit':
        raise ValueError(
            f'ChangeDetection(model={model!r}) stacks the {image.shape[1]} dates as {image.shape[1] * image.shape[2]} '
            f'channels, and the model sees one date of {image.shape[2]} at a time. Write model: fcsiamconc, fcsiamdiff '
            'or changevit.'
        )


class SensorMetadata(Callback):
    """Condition every Clay inside a task on each batch's wavelengths, GSD, time and place.

    TorchGeo's tasks call their model with the image alone. This callback sets the metadata before each step and clears
    them after it, also when a step fails. The batch's own ``wavelength``, ``res``, ``time``, ``lat`` and ``lon`` are
    used; ``sensor``, ``bands`` and ``gsd`` replace the first two if a batch lacks them.

    Pixels are not changed: the datamodule has to normalize images as (x - mean) / std of the sensor.

    Example::

        trainer:
          callbacks:
            - class_path: torchgeo_clay.callbacks.SensorMetadata
              init_args: {sensor: sentinel-2-l2a, bands: [B04, B03, B02], gsd: 10}
    """

    def __init__(
        self,
        sensor: str | Sensor | None = None,
        bands: Sequence[str] | None = None,
        gsd: float | None = None,
    ) -> None:
        """Initialize a new SensorMetadata instance.

        Args:
            sensor: name of a sensor, a :class:`torchgeo_clay.sensors.Sensor`, or the path of a sensor's YAML, for
                batches without ``wavelength``; None if every batch has it.
            bands: bands of the channels, in order, by name or alias; None for all of the sensor.
            gsd: meters per pixel of the images, for batches without ``res``; None if every batch has it. The
                sensor's nominal GSD is not assumed, as images may have been resampled.

        Raises:
            ValueError: for an unknown sensor or band, bands without a sensor, or a GSD that is not positive.
        """
        if bands is not None and sensor is None:
            raise ValueError(f'bands={list(bands)} need a sensor: give sensor= too.')
        if gsd is not None:
            check_gsd(gsd)
        self.sensor = None if sensor is None else get_sensor(sensor).select(bands)
        self.gsd = gsd
        self._scopes = ExitStack()
        self._said: set[str] = set()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Condition the model on a batch."""
        self._scopes.close()
        models = find_clay(pl_module)
        if not models:
            raise ValueError(
                f'SensorMetadata found no Clay in {type(pl_module).__name__}. Write a model such as clay_base_patch8 '
                '(as a backbone of segmentation_models_pytorch: tu-clay_base_patch8), or leave the callback out.'
            )
        conditioning = batch_conditioning(batch, None if self.sensor is None else self.sensor.wavelengths, self.gsd)
        _check_dates(pl_module, batch['image'])
        if not getattr(pl_module, 'sees_dates', False):
            self._say(batch)
        for model in models:
            self._scopes.enter_context(model.conditioned_on(conditioning))

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Clear the conditioning, also when a step fails."""
        self._scopes.close()

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = on_exception = on_train_batch_end

    def _say(self, batch: Mapping[str, Any]) -> None:
        """Log once that times of dates are left out."""
        time = batch.get('time')
        if isinstance(time, Tensor) and time.ndim == 2 and time.shape[1] > 1 and 'time' not in self._said:
            self._said.add('time')
            rank_zero_info(
                f'Times of {time.shape[1]} dates are left out: the task does not say which date the model gets.'
            )
