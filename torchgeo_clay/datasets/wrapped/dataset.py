# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Any TorchGeo dataset with sensor metadata in its samples. Shapes: T dates, C bands, H × W pixels."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from einops import rearrange
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset
from torchgeo.datasets import PASTIS, GeoDataset

from torchgeo_clay.conditioning import check_gsd, metadata_tensors
from torchgeo_clay.datasets.upstream import Sample
from torchgeo_clay.datasets.wrapped.channels import Selection, channels_of, leaf_of, select_channels, wavelengths_of
from torchgeo_clay.datasets.wrapped.conversion import Conversion, check_range, with_boxes, with_outlines
from torchgeo_clay.datasets.wrapped.known import REFUSED, STACKED, other_product
from torchgeo_clay.datasets.wrapped.place import SampleMetadata, opened_files, sample_metadata
from torchgeo_clay.datasets.wrapped.resampling import pixel_growth, share_masks, transforms_of
from torchgeo_clay.sensors import Sensor, get_sensor
from torchgeo_clay.sensors.plausibility import UnitsCheck

__all__ = ('Metadata', 'SensorDataset')

#: (innermost dataset, its index) → any of lat, lon, time, res.
Metadata = Callable[[Any, Any], Mapping[str, float]]


class SensorDataset(Dataset[Sample]):
    """Add sensor metadata to any TorchGeo dataset, of chips or indexed by place and time.

    Samples are the dataset's own with ``image`` (C, H, W) or (T, C, H, W), the sensor's bands in its units and order,
    float32, and ``wavelength`` (C,) µm, ``res`` meters per pixel, ``lat`` and ``lon`` of the chip's center, degrees
    WGS84, and ``time``, seconds UTC, (T,) for T dates. Unknown place or time is NaN. Both TorchGeo's ``stack_samples``
    and torch's default collation stack them. Pixels are normalized later, on the device.

    Other attributes are those of the dataset, so that TorchGeo's samplers accept it.

    Args:
        dataset: the dataset, or torch's ``Subset`` or ``ConcatDataset`` of such.
        sensor: name of a sensor, a YAML file, or a sensor.
        bands: names or aliases of the bands to select, in that order; None for all that the dataset has, in the
            sensor's order.
        gsd: meters per pixel of the stored images; None to read it. Required if it cannot be read.
        channels: names of the dataset's channels, in its order; None to read them from the dataset.
        rename: keys of the dataset → keys of the batch contract, such as ``{'image_S2': 'image', 'label': 'mask'}``.
        scale: factor to the sensor's units, such as 10000 for reflectance from 0 to 1.
        offset: summand after it, such as -1000 for Sentinel-2 since processing baseline 04.00.
        to_db: convert linear power into 10·log10(power).
        metadata: function of the innermost dataset and its index; it returns any of ``lat``, ``lon``, ``time`` and
            ``res``, which take precedence.
        said: messages already logged; give the same set to the splits of one dataset to have each logged once.

    Attributes:
        sensor: the sensor, with the bands selected.
        selection: the channels of these bands; None until the first sample if only the channel count is known.
        stacked: number of dates that the dataset stacks as channels, which samples separate.

    Raises:
        ValueError: if no band matches, or bands are missing or repeated; at the first sample if it has no image, its
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
        """Initialize a new SensorDataset instance; see the class."""
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
        if reason := next((why for kind, why in REFUSED.items() if isinstance(leaf, kind)), None):
            raise ValueError(f'{self._name} cannot be used with Clay: {reason}. Choose one of docs/datamodules.md.')
        self.stacked = next((dates for kind, dates in STACKED.items() if isinstance(leaf, kind)), 1)
        self._image_key = next((old for old, new in self.rename.items() if new == 'image'), 'image')
        known = channels_of(dataset, self._image_key) if channels is None else tuple(channels)
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
                f'{self._name} holds {product}; the statistics of {self._whole.name}, which '
                'normalize it, are of another product.'
            )

    def _once(self, what: str) -> bool:
        """Return True the first time ``what`` is seen."""
        fresh = what not in self._said
        self._said.add(what)
        return fresh

    def _select(self, channels: Sequence[str], own: Mapping[str, float] | None = None) -> Selection:
        """Select the channels, and log once which are not used."""
        self.selection = select_channels(self._whole, channels, self._bands, own)
        self.sensor = self.selection.sensor
        if self.selection.left_out and self._once('left out'):
            rank_zero_info(
                f'{self._whole.name}: channels of {self._name} not used: '
                f'{", ".join(self.selection.left_out)}; the model gets {", ".join(self.sensor.band_names)}.'
            )
        return self.selection

    def __len__(self) -> int:
        """Number of samples of the dataset."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        """Return the dataset's attribute."""
        if name.startswith('__') or name == 'dataset':  # not while being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: Any) -> Sample:
        """Read a sample.

        Args:
            index: an index of the dataset.

        Returns:
            The sample, as the class describes it.

        Raises:
            ValueError: see the class.
        """
        leaf, position = leaf_of(self.dataset, index)
        reading: AbstractContextManager[list[str]] = nullcontext([])
        if not isinstance(leaf, GeoDataset):  # which is asked for its index instead
            reading = opened_files()
        with reading as files:
            delivered = self.dataset[index]
        sample = with_boxes({self.rename.get(key, key): value for key, value in delivered.items()})
        image = self._image(sample)
        if image.ndim == 4 and isinstance(leaf, GeoDataset) and 'mask' in sample and sample['mask'].ndim == 3:
            sample['mask'] = sample['mask'].amax(0)  # TorchGeo stacks the files of labels too; a mosaic, as it makes
        shape = None if self._transforms else (int(image.shape[-2]), int(image.shape[-1]))
        found = sample_metadata(leaf, position, delivered, files, shape)
        given = {} if self.metadata is None else self.metadata(leaf, position)
        growth = math.prod(float(pixel_growth(module, 1)) for module in self._transforms)
        self._say_assumptions(found)
        res, dates = self._resolution(given.get('res', found.gsd)) * growth, image.shape[:-3]
        place = given.get('lat', found.lat), given.get('lon', found.lon)
        times = torch.as_tensor(given.get('time', found.times(*dates or (1,))), dtype=torch.float64)
        times = times.expand(dates) if dates else times.reshape(())
        return {**sample, 'image': image, **metadata_tensors(self.sensor, res, *place, times)}

    def _image(self, sample: Mapping[str, Any]) -> Tensor:
        """The sensor's bands of a sample, in the sensor's units."""
        image = sample.get('image')
        if not isinstance(image, Tensor) or image.ndim not in (3, 4):
            found = sorted(sample) if image is None else f'{tuple(getattr(image, "shape", ()))}'
            raise ValueError(
                f"{self._name}: expected samples with 'image' of (C, H, W), or (T, C, H, W) "
                f"for T dates, got {found}. If its name differs, give rename={{'image_S2': 'image'}}."
            )
        if self.stacked > 1 and image.ndim == 3:
            image = rearrange(image, '(t c) h w -> t c h w', t=self.stacked)
        count = image.shape[-3]
        selection = self.selection or self._select(self._by_order(count))
        if count != len(selection.channels):
            raise ValueError(
                f'{self._name}: expected the {len(selection.channels)} channels '
                f'{", ".join(selection.channels)}, got {count}. Dates stacked as channels? The model sees one date at '
                'a time: request one, or (T, C, H, W), from the dataset. Otherwise name each channel: channels=[…].'
            )
        image = self.conversion(selection.select(image.float()), self.sensor)
        if not self.conversion.to_db:  # a user who states power has looked at the values
            check_range(image, self.sensor)
        self._units(image, self.sensor)
        return image

    def _by_order(self, count: int) -> tuple[str, ...]:
        """Names for unnamed channels: the selected bands, else the sensor's, if their number fits."""
        for names in (self.sensor.band_names, self._whole.band_names):
            if len(names) == count:
                if self._once('order'):
                    order = ', '.join(names)
                    rank_zero_warn(
                        f'{self._whole.name}: {self._name} does not name its channels; taken in the order {order}. '
                        'Name each, in the order of the dataset, to be sure: channels=[…].'
                    )
                return names
        raise ValueError(
            f'{self._name} has {count} channels without names, {self._whole.name} has '
            f'{len(self._whole)} bands ({", ".join(self._whole.band_names)}). Dates stacked as channels? The model '
            'sees one date at a time. Otherwise name each channel, in order: channels=[…].'
        )

    def _resolution(self, known: float) -> float:
        """Meters per pixel of the file: the user's ``gsd``, else the known value."""
        if self.gsd is None:
            if not (math.isfinite(known) and known > 0):
                raise ValueError(
                    f'{self._name}: the meters per pixel of its images are unknown. Give '
                    "them with gsd=; the sensor's nominal GSD is not assumed, as images may have been resampled."
                )
            return known
        if math.isfinite(known) and abs(known / self.gsd - 1) > 0.05 and self._once('gsd'):
            rank_zero_warn(
                f'The images have {known:g} m per pixel, but gsd={self.gsd:g} was given; using {self.gsd:g} m.'
            )
        return self.gsd

    def _say_assumptions(self, found: SampleMetadata) -> None:
        """Log once that dates without an hour mean noon, and that images were resampled."""
        if any(a.known and not a.has_hour for a in found.acquired) and self._once('noon'):
            rank_zero_info(f'{self._whole.name}: dates without an hour; using noon UTC.')
        if self.gsd is None and abs(found.growth - 1) > 0.01 and self._once('resampled'):
            rank_zero_info(
                f'{self._name} delivers images of another size than its files: taken as resampled to {found.gsd:.4g} '
                'm per pixel. If they are cropped or padded instead, give gsd=.'
            )

    def original(self, sample: Sample) -> Sample:
        """Convert a sample back to the wrapped dataset's keys, band order and units.

        Args:
            sample: of this dataset, or of a batch, ``image`` (C, H, W) or (T, C, H, W) in the sensor's units.

        Returns:
            The sample on the host; bands not used are zero.
        """
        image = self.conversion.inverse(sample['image'].detach().cpu())
        image = image if self.selection is None else self.selection.restore(image)
        if self.stacked > 1 and image.ndim == 4:
            image = rearrange(image, 't c h w -> (t c) h w')
        elif image.ndim == 4 and isinstance(leaf_of(self.dataset)[0], GeoDataset):
            image = image[0]  # the plots of these datasets show one date
        back = {new: old for old, new in self.rename.items()}
        host = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in sample.items()}
        shown = with_outlines({**host, 'image': image}, leaf_of(self.dataset)[0])
        return {back.get(key, key): value for key, value in shown.items()}

    def plot(self, sample: Sample, *args: Any, **kwargs: Any) -> Figure:
        """Plot a sample with the wrapped dataset's own ``plot``."""
        return self.name_dates(leaf_of(self.dataset)[0].plot(self.original(sample), *args, **kwargs), sample)

    def name_dates(self, figure: Figure, sample: Sample) -> Figure:
        """Write below a plot which dates of a series it shows, where the dataset's own ``plot`` does not show all."""
        leaf, image = leaf_of(self.dataset)[0], sample['image']
        shown = 1 if isinstance(leaf, GeoDataset) else 2 if isinstance(leaf, PASTIS) else len(image)
        if image.ndim == 4 and self.stacked <= 1 and len(image) > shown:
            dates = 'date 1' if shown == 1 else 'dates 1 and 2'
            figure.text(0.5, 0.01, f'{dates} of {len(image)}', ha='center')
        return figure
