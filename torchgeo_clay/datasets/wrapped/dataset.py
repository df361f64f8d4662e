# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Any TorchGeo dataset with samples that follow the batch contract. Shapes: T dates, C bands, H rows, W columns."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset
from torchgeo.datasets.utils import Sample

from torchgeo_clay.conditioning import check_gsd
from torchgeo_clay.datasets.wrapped.channels import (
    Selection,
    channels_of,
    leaf_of,
    select_channels,
    wavelengths_of,
)
from torchgeo_clay.datasets.wrapped.conversion import Conversion, check_range
from torchgeo_clay.datasets.wrapped.place import Whereabouts, whereabouts
from torchgeo_clay.datasets.wrapped.resampling import pixel_growth, transforms_of
from torchgeo_clay.datasets.wrapped.shared_mask import share_masks
from torchgeo_clay.datasets.wrapped.sources import other_product
from torchgeo_clay.sensors import Sensor, get_sensor
from torchgeo_clay.sensors.plausibility import UnitsCheck

__all__ = ('Metadata', 'SensorDataset')

#: (the dataset that reads, the index it is asked for) → any of lat, lon, time, res.
Metadata = Callable[[Any, Any], Mapping[str, float]]


class SensorDataset(Dataset[Sample]):
    """Makes any TorchGeo dataset, of chips or indexed by place and time, aware of its sensor.

    Samples are the dataset's own with ``image`` (C, H, W) or (T, C, H, W) in the sensor's units, float32, holding the
    sensor's bands in its order, and ``wavelength`` (C,) µm, ``res`` metres per pixel, ``lat`` and ``lon`` of the chip's
    centre, degrees WGS84, and ``time``, seconds UTC, (T,) for T dates. Unknown place or time is NaN. They stack by
    TorchGeo's ``stack_samples`` and by torch's default. Pixels are not normalised: that is left to the device.

    Attributes it does not have itself are the dataset's, so that TorchGeo's samplers take it.

    Args:
        dataset: the dataset; torch's ``Subset`` and ``ConcatDataset`` of such too.
        sensor: name of a sensor, a YAML file, or a sensor.
        bands: names or aliases of the bands that the model gets, in that order; None for all that the dataset has, in
            the sensor's order.
        gsd: metres per pixel of the images as they are stored; None to read it. Needed where nothing tells.
        channels: what the dataset's channels are, in its order; None to ask the dataset.
        rename: keys of the dataset → keys of the batch contract, such as ``{'image_S2': 'image', 'label': 'mask'}``.
        scale: factor that makes the dataset's numbers the sensor's, such as 10000 for reflectance from 0 to 1.
        offset: added after it, such as -1000 for Sentinel-2 since processing baseline 04.00.
        to_db: whether that is linear power to be turned into 10·log10(power).
        metadata: called with the dataset that reads and the index it is asked for; returns any of ``lat``, ``lon``,
            ``time`` and ``res``, which count before anything else.
        said: what was said already; give the same set to the splits of one dataset to have it said once.

    Attributes:
        sensor: the sensor, with the bands selected.
        selection: which channels these are; None until the first sample where only its channel count tells.

    Raises:
        ValueError: if no band matches, or bands are missing or repeated; with the first sample if it has no image, its
            channels or units do not fit, or its resolution is unknown.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sensor: str | os.PathLike[str] | Sensor,
        bands: Sequence[str] | None = None,
        gsd: float | None = None,
        *,
        channels: Sequence[str] | None = None,
        rename: Mapping[str, str] | None = None,
        scale: float = 1.0,
        offset: float = 0.0,
        to_db: bool = False,
        metadata: Metadata | None = None,
        said: set[str] | None = None,
    ) -> None:
        """Initialise; see the class."""
        if gsd is not None:
            check_gsd(gsd)
        self.dataset = dataset
        self.gsd = gsd
        self.rename = dict(rename or {})
        self.conversion = Conversion(scale, offset, to_db)
        self.metadata = metadata
        self._bands = bands
        self._whole = get_sensor(sensor)
        leaf, _ = leaf_of(dataset)
        self._name = type(leaf).__name__
        self.sensor = self._whole.select(bands)
        self._said = set() if said is None else said
        self._units = UnitsCheck(limit=4)
        self.selection: Selection | None = None
        known = channels_of(dataset) if channels is None else tuple(channels)
        if known is not None:
            self._select(known, None if channels is not None else wavelengths_of(dataset))
        share_masks(leaf, 'transforms', 'tg_transforms')
        self._transforms = transforms_of(dataset)
        self._say_product(leaf)

    def _say_product(self, leaf: Any) -> None:
        """Warn once of a product other than that of the statistics."""
        product = other_product(leaf, self._whole.name)
        if product is not None and self._once('product'):
            rank_zero_warn(
                f'{self._name} holds {product}; the statistics of {self._whole.name}, by which it is '
                'normalised, are of another product.'
            )

    def _once(self, what: str) -> bool:
        """Whether something is still to be said, which it then is no more."""
        fresh = what not in self._said
        self._said.add(what)
        return fresh

    def _select(self, channels: Sequence[str], own: Mapping[str, float] | None = None) -> Selection:
        """Settle which channels the model gets, saying once which not."""
        self.selection = select_channels(self._whole, channels, self._bands, own)
        self.sensor = self.selection.sensor
        if self.selection.left_out and self._once('left out'):
            rank_zero_info(
                f'{self._whole.name}: channels of {self._name} left out: '
                f'{", ".join(self.selection.left_out)}; the model gets {", ".join(self.sensor.band_names)}.'
            )
        return self.selection

    def __len__(self) -> int:
        """Number of samples of the dataset."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        """What the dataset has."""
        if name.startswith('__') or name == 'dataset':  # not while being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: Any) -> Sample:
        """Read a sample.

        Args:
            index: whatever the dataset takes.

        Returns:
            The sample, as the class describes it.

        Raises:
            ValueError: see the class.
        """
        delivered = self.dataset[index]
        sample = {self.rename.get(key, key): value for key, value in delivered.items()}
        image = self._image(sample)
        leaf, position = leaf_of(self.dataset, index)
        found = whereabouts(leaf, position, delivered)
        given = {} if self.metadata is None else self.metadata(leaf, position)
        growth = math.prod(float(pixel_growth(module, 1)) for module in self._transforms)
        if image.ndim == 3:
            times = torch.tensor(given.get('time', found.times(1)[0]), dtype=torch.float64)
        else:
            times = torch.tensor(found.times(image.shape[0]), dtype=torch.float64)
            times = torch.as_tensor(given['time'], dtype=torch.float64).expand_as(times) if 'time' in given else times
        self._say_noon(found)
        return {
            **sample,
            'image': image,
            'wavelength': torch.tensor(self.sensor.wavelengths, dtype=torch.float32),
            'res': torch.tensor(self._resolution(given.get('res', found.gsd)) * growth, dtype=torch.float32),
            'lat': torch.tensor(given.get('lat', found.lat), dtype=torch.float64),
            'lon': torch.tensor(given.get('lon', found.lon), dtype=torch.float64),
            'time': times,
        }

    def _image(self, sample: Mapping[str, Any]) -> Tensor:
        """The sensor's bands of a sample, in the sensor's units."""
        image = sample.get('image')
        if not isinstance(image, Tensor) or image.ndim not in (3, 4):
            found = sorted(sample) if image is None else f'{tuple(getattr(image, "shape", ()))}'
            raise ValueError(
                f"{self._name}: expected samples with 'image' of (C, H, W), or (T, C, H, W) "
                f"for T dates, got {found}. If it has another name say which: rename={{'image_S2': 'image'}}."
            )
        count = image.shape[-3]
        selection = self.selection or self._select(self._by_order(count))
        if count != len(selection.channels):
            raise ValueError(
                f'{self._name}: expected the {len(selection.channels)} channels '
                f'{", ".join(selection.channels)}, got {count}. Dates stacked as channels? The model sees one date at '
                'a time: ask the dataset for one, or for (T, C, H, W). Otherwise say what each is: channels=[…].'
            )
        image = self.conversion(selection.select(image.float()), self.sensor)
        if not self.conversion.to_db:  # whoever says that it is power has looked
            check_range(image, self.sensor)
        self._units(image, self.sensor)
        return image

    def _by_order(self, count: int) -> tuple[str, ...]:
        """The channels of a dataset that does not name them: those asked for, else the sensor's, if as many."""
        for names in (self.sensor.band_names, self._whole.band_names):
            if len(names) == count:
                if self._once('order'):
                    order = ', '.join(names)
                    rank_zero_info(f'{self._whole.name}: the channels have no names; taken in the order {order}.')
                return names
        raise ValueError(
            f'{self._name} has {count} channels without names, {self._whole.name} has '
            f'{len(self._whole)} bands ({", ".join(self._whole.band_names)}). Dates stacked as channels? The model '
            'sees one date at a time. Otherwise say what each is, in order: channels=[…].'
        )

    def _resolution(self, known: float) -> float:
        """Metres per pixel of the file: what the user says, else what is known."""
        if self.gsd is None:
            if not (math.isfinite(known) and known > 0):
                raise ValueError(
                    f'{self._name}: nothing tells the metres per pixel of its images. Give '
                    "them with gsd=; the sensor's nominal one is not taken, as the images may have been resampled."
                )
            return known
        if math.isfinite(known) and abs(known / self.gsd - 1) > 0.05 and self._once('gsd'):
            rank_zero_warn(f'The images have {known:g} m per pixel, gsd= says {self.gsd:g} m; taken as gsd= says.')
        return self.gsd

    def _say_noon(self, found: Whereabouts) -> None:
        """Say once that dates without an hour mean noon."""
        if any(a.known and not a.has_hour for a in found.acquired) and self._once('noon'):
            rank_zero_info(f'{self._whole.name}: dates without an hour; taken at noon UTC.')

    def original(self, sample: Sample) -> Sample:
        """A sample as the wrapped dataset delivers it: its keys, its band order, its numbers.

        Args:
            sample: of this dataset, or of a batch, ``image`` (C, H, W) or (T, C, H, W) in the sensor's units.

        Returns:
            The sample on the host; bands left out are zero.
        """
        image = self.conversion.inverse(sample['image'].detach().cpu())
        image = image if self.selection is None else self.selection.restore(image)
        back = {new: old for old, new in self.rename.items()}
        return {back.get(key, key): value for key, value in {**sample, 'image': image}.items()}

    def plot(self, sample: Sample, *args: Any, **kwargs: Any) -> Figure:
        """Show a sample by the wrapped dataset's own ``plot``.

        Args:
            sample: of this dataset, or of a batch, in the sensor's units (not normalised).
            *args: passed on.
            **kwargs: passed on.
        """
        return leaf_of(self.dataset)[0].plot(self.original(sample), *args, **kwargs)
