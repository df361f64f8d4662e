# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Conditions the Clay inside any task on each batch. Shapes: B samples, T dates, C bands, H × W pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torchgeo.tasks import ChangeDetection, MoCo, SimCLR

from torchgeo_clay.conditioning import Conditioning, batch_conditioning, check_gsd
from torchgeo_clay.datasets.wrapped.resampling import find_normalizations, follow_pixels
from torchgeo_clay.models.clay import Clay, find_clay
from torchgeo_clay.sensors import Sensor, get_sensor

__all__ = ('SensorMetadata',)

#: Stock tasks whose model has no encoder to name, and the task that does the same with Clay.
_INSTEAD = {
    'SpatioTemporalSegmentation': 'ClaySemanticSegmentation with temporal: ltae',
    'SpatioTemporalPixelwiseRegression': 'ClayPixelwiseRegression with temporal: ltae',
    'TemporalRegression': 'ClayRegression with temporal: ltae, which takes series of images',
    'ObjectDetection': 'ClayObjectDetection',
    'InstanceSegmentation': 'ClayInstanceSegmentation',
    'BYOL': 'MoCo or SimCLR with model: clay_base_patch8',
    'MAE': 'ClayPretraining',
}

#: Contrastive task → names of the augmentations that make the views of a batch's images.
_AUGMENTATIONS: dict[type[LightningModule], tuple[str, ...]] = {
    MoCo: ('augmentation1', 'augmentation2'),
    SimCLR: ('augmentations',),
}

#: Means and standard deviations of a batch's channels that no images normalized for their sensor have.
_FAR = 20.0


def _find_models(pl_module: LightningModule) -> list[Clay]:
    """Find the encoders inside a task.

    Raises:
        ValueError: naming what to use, if there are none.
    """
    if models := find_clay(pl_module):
        return models
    name, model = type(pl_module).__name__, pl_module.hparams.get('model')
    remedy = (
        f'{name} takes no encoder by name: use {_INSTEAD[name]}'
        if name in _INSTEAD
        else 'Write a model such as clay_base_patch8 (as a backbone of segmentation_models_pytorch: '
        'tu-clay_base_patch8)' + (f'; {model!r} has no encoder, use unet' if model == 'fcn' else '')
    )
    raise ValueError(f'SensorMetadata found no Clay in {name}. {remedy}; or leave the callback out.')


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


def _condition_views(task: LightningModule, models: list[Clay], batch: Mapping[str, Any], condition: Any) -> ExitStack:
    """Condition the models of a contrastive task on each view: its GSD and place follow the random resized crop.

    Args:
        task: any task; others than those of :data:`_AUGMENTATIONS` make no views.
        models: the encoders inside the task.
        batch: ``image`` (B, C, H, W), ``res`` (B,), and ``lat`` and ``lon`` (B,) where known.
        condition: function that returns the conditioning of a batch with a view for its image.

    Returns:
        A stack that ends the conditioning when it is closed.

    Raises:
        ValueError: for augmentations other than kornia's; in a step, for an image that is none of the views.
    """
    scopes = ExitStack()
    names = [name for kind, names in _AUGMENTATIONS.items() if isinstance(task, kind) for name in names]
    views: list[tuple[Tensor, Conditioning]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], view: Tensor) -> None:
        known = follow_pixels(module, batch, inputs[0].shape, view.shape)
        views.append((view, condition({**batch, **known, 'image': view})))

    def enter(clay: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for view, known in views:
            if view is inputs[0]:
                clay.patch_embed.conditioning = known  # type: ignore[union-attr]
                return
        raise ValueError(
            f'{type(task).__name__} gave Clay an image that none of {", ".join(names)} returned, whose pixel size is '
            'unknown. Give the model the views as the augmentations make them.'
        )

    for name in names:
        if not hasattr(module := getattr(task, name), '_params'):
            raise ValueError(
                f'{name}: expected an augmentation of kornia, which reports the pixel size of the views it makes, got '
                f'{type(module).__name__}. Put its transforms into kornia.augmentation.AugmentationSequential.'
            )
    for module in {getattr(task, name) for name in names}:  # one may be both
        scopes.callback(module.register_forward_hook(note).remove)
    for model in models if names else ():
        scopes.callback(model.register_forward_pre_hook(enter).remove)
    return scopes


class SensorMetadata(Callback):
    """Condition every Clay inside a task on each batch's wavelengths, GSD, time and place.

    TorchGeo's tasks call their model with the image alone. This callback sets the metadata before each step and clears
    them after it, also when a step fails. The batch's own ``wavelength``, ``res``, ``time``, ``lat`` and ``lon`` are
    used; ``sensor``, ``bands`` and ``gsd`` replace the first two if a batch lacks them.

    The views of MoCo and SimCLR have the GSD and the place that follow from their random resized crops.

    Pixels are not changed: the datamodule has to normalize images as (x - mean) / std of the sensor, as
    :class:`~torchgeo_clay.datamodules.SensorDataModule` does. One that normalizes with numbers of its own is refused.

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
        #: Normalizations that the datamodule has called → whether they were compared with the sensor.
        self._normalizations: dict[Any, bool] = {}
        self._watched = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch the datamodule's normalizations."""
        self._watched.close()  # of a run that failed
        self._normalizations.clear()
        for module in vars(getattr(trainer, 'datamodule', None) or object).values():
            for _, _, normalization in find_normalizations(module) if isinstance(module, nn.Module) else ():
                self._watched.callback(normalization.register_forward_hook(self._note_normalization).remove)

    def _note_normalization(self, module: nn.Module, *_: Any) -> None:
        """Record that the datamodule called a normalization."""
        self._normalizations.setdefault(module, False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching them."""
        self._watched.close()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Condition the model on a batch.

        Raises:
            ValueError: for a task without Clay, a batch that lacks wavelengths or a resolution, or images that are not
                normalized for their sensor.
        """
        self._scopes.close()
        models = _find_models(pl_module)
        conditioning = self._condition(batch)
        _check_dates(pl_module, batch['image'])
        if 'selection' not in batch:  # which the datamodules of this package add when they normalize
            self._check_normalization(type(getattr(trainer, 'datamodule', None)), batch['image'])
        if not getattr(pl_module, 'sees_dates', False):
            self._say(batch)
        for model in models:
            self._scopes.enter_context(model.conditioned_on(conditioning))
        known = {**batch, 'res': conditioning.gsd}
        self._scopes.enter_context(_condition_views(pl_module, models, known, self._condition))

    def _condition(self, batch: Mapping[str, Any]) -> Conditioning:
        """Return the conditioning of a batch."""
        return batch_conditioning(batch, None if self.sensor is None else self.sensor.wavelengths, self.gsd)

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

    def _check_normalization(self, datamodule: type, image: Tensor) -> None:
        """Raise if the datamodule normalizes otherwise than the sensor; warn once if values show that none did.

        Each normalization and the values of the first batch are read once, as on a device that means waiting for it.
        """
        for module in [module for module, compared in self._normalizations.items() if not compared]:
            mean, std = (module.flags[key].detach().cpu().flatten() for key in ('mean', 'std'))
            self._compare(datamodule, mean, std)
            self._normalizations[module] = True
        if 'values' in self._said:
            return
        self._said.add('values')
        values = image.detach().float().transpose(0, -3).flatten(1)
        low, high = values.min().item(), values.max().item()
        far = max(values.mean(1).abs().max().item(), values.std(1).max().item())
        if 0 <= low < high <= 1 or far > _FAR:
            rank_zero_warn(
                f'The images of the first batch have values from {low:g} to {high:g}, which are not normalized for a '
                'sensor: (x - mean) / std of each band. Wrap the datamodule in SensorDataModule, or use '
                'Sensor.normalize.'
            )

    def _compare(self, datamodule: type, mean: Tensor, std: Tensor) -> None:
        """Compare a normalization with the sensor's."""
        own = f'{datamodule.__name__} normalizes images with its own mean {mean.tolist()} and std {std.tolist()}'
        if self.sensor is None:
            if 'values' in self._said:  # said with the first batch
                return
            rank_zero_warn(f'{own}, and no sensor is given to compare them with. Wrap it in SensorDataModule.')
            return
        for found, values in ((mean, self.sensor.mean), (std, self.sensor.std)):
            expected = torch.tensor(values)
            if found.numel() not in (1, len(expected)) or not torch.allclose(
                found.expand_as(expected).to(expected), expected, rtol=1e-3
            ):
                raise ValueError(
                    f'{own}; Clay expects those of {self.sensor.name}, {list(self.sensor.mean)} and '
                    f'{list(self.sensor.std)}. Wrap it: class_path: torchgeo_clay.datamodules.SensorDataModule, '
                    f'init_args: {{sensor: {self.sensor.name}, bands: [{", ".join(self.sensor.band_names)}], '
                    f'datamodule: {{class_path: {datamodule.__module__}.{datamodule.__qualname__}}}}}.'
                )
