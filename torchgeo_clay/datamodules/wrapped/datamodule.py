# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Any TorchGeo datamodule with sensor metadata. Shapes: B samples, T dates, C bands, H × W pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import kornia.augmentation as K
import torch
from einops import rearrange
from kornia.augmentation import IntensityAugmentationBase2D
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, default_collate
from torchgeo.datamodules import BaseDataModule
from torchgeo.datamodules.utils import collate_fn_detection
from torchgeo.datasets import RGBBandsMissingError, stack_samples

from torchgeo_clay.conditioning import check_batch
from torchgeo_clay.datamodules.common import check_precision, split_batch
from torchgeo_clay.datamodules.workers import seeded
from torchgeo_clay.datasets.wrapped.channels import OWN, own_sensor
from torchgeo_clay.datasets.wrapped.dataset import SensorDataset
from torchgeo_clay.datasets.wrapped.resampling import (
    SharedMask,
    find_normalizations,
    follow_pixels,
    share_masks,
    transforms_of,
)
from torchgeo_clay.models.clay import PATCH_SIZE
from torchgeo_clay.sensors import Sensor, get_sensor

__all__ = ('METADATA', 'SensorCollate', 'SensorDataModule', 'SensorName', 'with_dataset')


def _intensity_scale(module: nn.Module, sensor: Sensor) -> float:
    """Return the divisor of an augmentation's pixels, for its color transforms.

    Returns:
        1 without color transforms; else 255 for a sensor of 8 bits, and for others the mean plus 3 standard deviations
        of the brightest band.
    """
    changes = [
        m for m in module.modules() if isinstance(m, IntensityAugmentationBase2D) and type(m).__name__ != 'Normalize'
    ]
    if not changes:
        return 1.0
    high = max(mean + 3 * std for mean, std in zip(sensor.mean, sensor.std, strict=True))
    return 255.0 if 20 < high < 300 else max(high, 1.0)


def _replace_normalizations(module: nn.Module, scale: float) -> None:
    """Replace each normalization by a division by one number."""
    for parent, name, child in find_normalizations(module):
        keepdim = bool(getattr(child, 'keepdim', False))  # set by its container; masks lose or gain an axis otherwise
        setattr(parent, name, K.Normalize(torch.tensor(0.0), torch.tensor(scale), keepdim=keepdim))


#: Key of the mask of pixels that an augmentation did not fill; kornia moves what is called a mask along with the image.
_FILLED = 'mask_filled'
#: Keys that SensorDataset adds to each sample.
METADATA = ('wavelength', 'res', 'lat', 'lon', 'time')


class SensorName(str):
    """The name of a batch's sensor: a string that ``torch.unbind`` returns as it is.

    TorchGeo's tasks plot a batch's first sample by ``unbind_samples``, which unbinds everything in the batch, and torch
    refuses strings. The first sample gets the name.
    """

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Return the name from ``torch.unbind``."""
        return (args[0],) if func is torch.unbind else NotImplemented


class SensorCollate:
    """Collate as the loader does, stack the metadata and add the sensor's name.

    Some of TorchGeo's collation functions drop unknown keys, and none takes strings.

    Args:
        collate: the loader's own function.
        sensor: its name.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], sensor: str) -> None:
        """Initialize a new SensorCollate instance; see the class."""
        self.collate = collate
        self.sensor = sensor

    def __call__(self, samples: Any) -> dict[str, Any]:
        """Collate a list of samples, or convert one sample of a loader without batches."""
        if isinstance(samples, Mapping):
            return {**self.collate(samples), 'sensor': SensorName(self.sensor)}  # type: ignore[arg-type]
        rest = [{k: v for k, v in sample.items() if k not in METADATA} for sample in samples]
        # as ReforesTree's datamodule has it, which TorchGeo 0.10 leaves with a collation that stacks boxes
        stacks = self.collate in (default_collate, stack_samples)
        collate = collate_fn_detection if stacks and 'bbox_xyxy' in rest[0] else self.collate
        stacked: dict[str, Any] = {
            key: torch.stack([sample[key] for sample in samples]) for key in METADATA if key != 'time'
        }
        times = [sample['time'] for sample in samples]
        stacked['sensor'] = SensorName(self.sensor)
        if samples[0]['image'].ndim == 4:
            return {**self._series(rest, times), **stacked}
        return {**collate(rest), **stacked, 'time': torch.stack(times)}

    def _series(self, samples: list[dict[str, Any]], times: list[Tensor]) -> dict[str, Any]:
        """Collate series, padded or cut to one number of dates as the loader does, else padded to the longest."""
        lengths = [int(sample.get('length', len(sample['image']))) for sample in samples]
        images = pad_sequence([sample['image'] for sample in samples], batch_first=True)
        batch = self.collate([{**sample, 'image': image} for sample, image in zip(samples, images, strict=True)])
        dates = batch['image'].shape[1]
        if 'length' in batch or len(set(lengths)) > 1:
            batch['length'] = torch.tensor(lengths).clamp(max=dates)
        known = pad_sequence(times, True, math.nan)[:, :dates]  # NaN for no date
        return {**batch, 'time': F.pad(known, (0, dates - known.shape[1]), value=math.nan)}


def with_dataset(loader: Any, replace: Callable[[Dataset[Any]], Any]) -> Any:
    """Rebuild a loader, or loaders, over another dataset.

    Args:
        loader: a loader, or a list, tuple or dictionary of them.
        replace: called with each loader's dataset; it returns one with ``sensor`` and the same indices.

    Returns:
        The same structure of new loaders with the same samplers, batches, workers and collation.

    Raises:
        ValueError: for other loaders than torch's, and datasets without indices.
    """
    if isinstance(loader, Mapping):
        return {key: with_dataset(value, replace) for key, value in loader.items()}
    if isinstance(loader, list | tuple):
        return [with_dataset(value, replace) for value in loader]
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        what = type(loader.dataset if isinstance(loader, DataLoader) else loader).__name__
        raise ValueError(
            f'Expected torch DataLoaders of datasets with indices from the wrapped datamodule, got {what}.'
        )
    dataset = replace(loader.dataset)
    options: dict[str, Any] = {
        name: getattr(loader, name)
        for name in (
            'num_workers', 'pin_memory', 'timeout', 'multiprocessing_context', 'generator',
            'prefetch_factor', 'persistent_workers',
        )
    }  # fmt: skip
    options['worker_init_fn'] = partial(seeded, given=loader.worker_init_fn)
    options['collate_fn'] = SensorCollate(loader.collate_fn, dataset.sensor.name)
    if type(loader.batch_sampler) is BatchSampler:  # as Lightning replaces samplers to distribute them
        batching: dict[str, Any] = {
            'batch_size': loader.batch_size,
            'sampler': loader.sampler,
            'drop_last': loader.drop_last,
        }
    elif loader.batch_sampler is not None:
        batching = {'batch_sampler': loader.batch_sampler}
    else:
        batching = {'batch_size': None, 'sampler': loader.sampler}
    return DataLoader(dataset, **batching, **options)


_DATASETS = ('train_dataset', 'val_dataset', 'test_dataset', 'predict_dataset', 'dataset')


class SensorDataModule(BaseDataModule):
    """Add sensor metadata to any of TorchGeo's datamodules, Geo or NonGeo.

    The datamodule keeps its splits, samplers, collation and augmentation; its normalization is replaced by the
    sensor's, applied once, after the augmentation, on the device. A batch has the datamodule's keys and

    * ``image`` (B, C, H, W) or (B, T, C, H, W) float32, (x - mean) / std of the sensor
    * for series of several lengths ``length`` (B,), the number of real dates, which padding follows; on the host
    * ``wavelength`` (B, C) µm · ``res`` (B,) meters per pixel, following resizes and crops
    * ``lat``, ``lon`` (B,) degrees WGS84 of the chip's center, following crops · ``time`` (B,) or (B, T) seconds
      UTC; all float64, NaN for unknown
    * ``sensor`` its name, and ``selection``, the :class:`~torchgeo_clay.sensors.Sensor` whose bands are the channels

    Example::

        data:
          class_path: torchgeo_clay.datamodules.SensorDataModule
          init_args:
            sensor: naip
            datamodule:
              class_path: torchgeo.datamodules.ChesapeakeCVPRDataModule
              init_args: {train_splits: [ny-train], val_splits: [ny-val], test_splits: [ny-test], patch_size: 256}
              dict_kwargs: {root: data/chesapeake, download: true}
    """

    def __init__(
        self,
        datamodule: LightningDataModule,
        sensor: str | Sensor,
        bands: list[str] | None = None,
        gsd: float | None = None,
        channels: list[str] | None = None,
        rename: dict[str, str] | None = None,
        scale: float = 1.0,
        offset: float = 0.0,
        to_db: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        metadata: Callable[[Any, Any], Mapping[str, float]] | None = None,
    ) -> None:
        """Initialize a new SensorDataModule instance.

        Args:
            datamodule: the datamodule; its augmentation is changed at setup.
            sensor: name of a sensor, a :class:`~torchgeo_clay.sensors.Sensor`, the path of a sensor's YAML, or
                ``dataset`` for one made of the dataset's own band names and wavelengths.
            bands: see :class:`~torchgeo_clay.datasets.SensorDataset`, as for the arguments up to ``to_db``.
            gsd: meters per pixel of the stored images; None to read it.
            channels: names of the dataset's channels, in its order.
            rename: keys of the dataset → keys of the batch contract.
            scale: factor to the sensor's units.
            offset: summand to the sensor's units.
            to_db: convert linear power into decibels.
            mean: with ``sensor: dataset`` the mean of each channel, or one for all; None for the datamodule's own.
            std: likewise the standard deviation.
            metadata: function that gives place, time and resolution where files do not.

        Raises:
            ValueError: for an unknown sensor, or statistics that would not be used.
        """
        super().__init__(getattr(datamodule, 'dataset_class', Dataset))
        if sensor != OWN and (mean is not None or std is not None):
            raise ValueError(f'mean, std: expected with sensor={OWN!r} only; {sensor!r} has its own statistics.')
        self.datamodule = datamodule
        self.batch_size = getattr(datamodule, 'batch_size', 1)
        self.prepare_data_per_node = datamodule.prepare_data_per_node
        self._sensor = sensor if sensor == OWN else get_sensor(sensor)
        self._statistics = mean, std
        self._options: dict[str, Any] = {
            'bands': bands,
            'gsd': gsd,
            'channels': channels,
            'rename': rename,
            'scale': scale,
            'offset': offset,
            'to_db': to_db,
            'metadata': metadata,
        }
        self._wrapped: dict[int, SensorDataset] = {}
        self._current: SensorDataset | None = None
        self._augmentations: dict[nn.Module, float] = {}
        self._called: list[nn.Module] = []
        self._options['said'] = set()

    def prepare_data(self) -> None:
        """Download and prepare data, as the wrapped datamodule does."""
        self.datamodule.prepare_data()

    def setup(self, stage: str) -> None:
        """Set up the wrapped datamodule and find the sensor's bands in its datasets.

        Raises:
            ValueError: see :class:`~torchgeo_clay.datasets.SensorDataset`; for a precision that makes times wrong.
        """
        check_precision(self.trainer)
        self.datamodule.trainer = self.trainer
        self.datamodule.setup(stage)
        self._wrapped.clear()
        for name in _DATASETS:
            dataset = getattr(self.datamodule, name, None)
            if isinstance(dataset, Dataset):
                setattr(self, name, self._wrap(dataset))
        for name in ('target_mean', 'target_std'):  # read by TorchGeo's tasks of spatiotemporal regression
            if hasattr(self.datamodule, name):
                setattr(self, name, getattr(self.datamodule, name))

    @property
    def selected(self) -> dict[str, Sensor]:
        """Name of the sensor → the sensor, with the bands that the model gets; empty before any data was set up."""
        return {} if self._current is None else {self._current.sensor.name: self._current.sensor}

    def _adopt_augmentations(self, sensor: Sensor) -> None:
        """Take the normalization out of all modules that the wrapped datamodule may call on a batch."""
        share_masks(self.datamodule, *vars(self.datamodule))
        for module in vars(self.datamodule).values():
            if isinstance(module, nn.Module) and module not in self._augmentations:
                scale = _intensity_scale(module, sensor) if find_normalizations(module) else 1.0
                _replace_normalizations(module, scale)
                self._augmentations[module] = scale
                module.register_forward_hook(self._note_call)

    def _note_call(self, module: nn.Module, *_: Any) -> None:
        """Remember which augmentation was called, for the resolution of the batch."""
        self._called.append(module)

    def _wrap(self, dataset: Dataset[Any]) -> SensorDataset:
        """Wrap a dataset, once, and take its normalization and the datamodule's out."""
        if isinstance(dataset, SensorDataset):
            self._current = dataset
        elif id(dataset) not in self._wrapped:
            sensor = self._sensor
            if isinstance(sensor, str):
                mean, std = self._statistics
                own_mean, own_std = (getattr(self.datamodule, name, None) for name in ('mean', 'std'))
                sensor = own_sensor(
                    dataset,
                    own_mean if mean is None else mean,
                    own_std if std is None else std,
                    gsd=self._options['gsd'],
                )
            for module in transforms_of(dataset):
                _replace_normalizations(module, 1.0)
            self._current = self._wrapped[id(dataset)] = SensorDataset(dataset, sensor, **self._options)
        else:
            self._current = self._wrapped[id(dataset)]
        self._adopt_augmentations(self._current.sensor)
        self.mean = torch.tensor(self._current.sensor.mean)
        self.std = torch.tensor(self._current.sensor.std)
        return self._current

    def train_dataloader(self) -> Any:
        """The wrapped datamodule's training loaders, over the wrapped datasets."""
        return with_dataset(self.datamodule.train_dataloader(), self._wrap)

    def val_dataloader(self) -> Any:
        """The wrapped datamodule's validation loaders, over the wrapped datasets."""
        return with_dataset(self.datamodule.val_dataloader(), self._wrap)

    def test_dataloader(self) -> Any:
        """The wrapped datamodule's test loaders, over the wrapped datasets."""
        return with_dataset(self.datamodule.test_dataloader(), self._wrap)

    def predict_dataloader(self) -> Any:
        """The wrapped datamodule's prediction loaders, over the wrapped datasets."""
        return with_dataset(self.datamodule.predict_dataloader(), self._wrap)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Check a batch on the host.

        Raises:
            ValueError: for a batch without ``image``, or values
                :func:`~torchgeo_clay.conditioning.check_batch` refuses.
        """
        batch = self.datamodule.on_before_batch_transfer(batch, dataloader_idx)
        found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        if not isinstance(batch, Mapping) or not isinstance(batch.get('image'), Tensor):
            raise ValueError(
                f"{type(self.datamodule).__name__}: expected batches with 'image' (B, C, H, W) or (B, T, C, H, W), got "
                f"{found}. If its name differs, give rename={{'image_S2': 'image'}}."
            )
        check_batch(batch)
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch as the wrapped datamodule does, without float64; see :func:`split_batch`."""
        sent, kept = split_batch(batch, device)
        return {**self.datamodule.transfer_batch_to_device(sent, device, dataloader_idx), **kept}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a batch as the wrapped datamodule does, adapt ``res``, and normalize for the sensor.

        Raises:
            ValueError: for images smaller than one of the model's patches, or with other channels than before.
        """
        if self._current is None:
            raise ValueError(f'{type(self).__name__}: call setup before its batches are used.')
        self.datamodule.trainer = self.trainer
        self._called.clear()
        sensor, dates = self._current.sensor, 0  # 0 for single images, or dates that stay on an axis of their own
        if batch['image'].ndim == 5 and not any(isinstance(module, SharedMask) for module in self._augmentations):
            dates = batch['image'].shape[1]  # as channels, so that an augmentation of images treats all alike
            batch = {**batch, 'image': rearrange(batch['image'], 'b t c h w -> b (t c) h w')}
        before = batch['image'].shape
        # what an augmentation fills with zeros is no data, not a raw 0
        filled = {_FILLED: torch.ones_like(batch['image'][..., :1, :, :])} if self._augmentations else {}
        raw, name = batch['image'], type(self.datamodule).__name__
        try:
            batch = dict(self.datamodule.on_after_batch_transfer({**batch, **filled}, dataloader_idx))
        except KeyError as error:
            if not self._options['rename']:
                raise
            raise ValueError(
                f'{name} cannot be wrapped with rename=: its code for batches needs the key {error}. Wrap its dataset '
                'alone, torchgeo_clay.datasets.SensorDataset(dataset, sensor, rename=…), in a datamodule of your own.'
            ) from error
        image, after = batch['image'], batch['image'].shape
        if after[-3] != max(dates, 1) * len(sensor) or (image is not raw and not self._called):
            raise ValueError(
                f'image: {name} writes an image of its own after the transfer ({after[-3]} channels; expected '
                f'{", ".join(sensor.band_names)}, in the units of {sensor.name}). Switch that off, such as with '
                'concatenate_modalities: false, or wrap its dataset alone with torchgeo_clay.datasets.SensorDataset.'
            )
        if min(after[-2:]) < PATCH_SIZE:
            raise ValueError(
                f"image: expected {PATCH_SIZE} pixels or more per side, one of the model's patches, got {after[-2]} x "
                f'{after[-1]}. Give the datamodule a larger patch_size, or leave such images out.'
            )
        scale = 1.0
        for module in self._called:
            scale *= self._augmentations[module]
            batch |= follow_pixels(module, batch, before, after)
        image = image.float() * scale
        if dates:
            image = rearrange(image, 'b (t c) h w -> b t c h w', t=dates)
        valid = torch.isfinite(image)
        if (kept := batch.pop(_FILLED, None)) is not None:
            valid = valid & ((kept.unsqueeze(1) if dates else kept) > 0.5)
        # the selection not before the transfer: Lightning refuses to move it
        return {**batch, 'image': sensor.normalize(image, valid), 'selection': sensor}

    def plot(self, *args: Any, **kwargs: Any) -> Figure | None:
        """Plot a sample as the wrapped datamodule does, in its own bands and units.

        Raises:
            ValueError: before any data was set up.
        """
        if self._current is None:
            raise ValueError(f'{type(self).__name__}: call setup before plot.')
        sample = {
            k: v
            for k, v in self._current.original(args[0]).items()
            if k not in (*METADATA, 'time_code', 'sensor', 'selection')
        }
        try:
            figure = self.datamodule.plot(sample, *args[1:], **kwargs) if hasattr(self.datamodule, 'plot') else None
            if figure is None:
                return self._current.plot(args[0], *args[1:], **kwargs)
            return self._current.name_dates(figure, args[0])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # a picture ends no training
            if isinstance(error, RGBBandsMissingError):
                raise
            name = type(self.datamodule).__name__
            rank_zero_warn(
                f'{name} cannot plot its sample ({type(error).__name__}: {error}): there is no figure. Does the task '
                'have more classes than the dataset?'
            )
            return None

    def teardown(self, stage: str) -> None:
        """Tear down the wrapped datamodule."""
        self.datamodule.teardown(stage)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped datamodule's state."""
        return self.datamodule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the wrapped datamodule's state."""
        self.datamodule.load_state_dict(state_dict)
