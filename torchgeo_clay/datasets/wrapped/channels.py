# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Names of a TorchGeo dataset's channels, and selection of a sensor's bands. Wavelengths are in µm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchgeo.datasets import IntersectionDataset, UnionDataset, VectorDataset
from torchvision.datasets.folder import default_loader

from torchgeo_clay.datasets.wrapped.known import known_channels
from torchgeo_clay.sensors import Band, Sensor

__all__ = ('OWN', 'Selection', 'channels_of', 'leaf_of', 'own_sensor', 'select_channels', 'wavelengths_of')

#: Relative tolerance between a dataset's own wavelength of a band and the sensor's.
_TOLERANCE = 0.1


def leaf_of(dataset: Dataset[Any], index: Any = None) -> tuple[Any, Any]:
    """Resolve torch's ``Subset`` and ``ConcatDataset`` to the innermost dataset and its index.

    Args:
        dataset: any dataset.
        index: an index into it; None for the first of several datasets.

    Returns:
        The innermost dataset, and its index.
    """
    while True:
        if isinstance(dataset, Subset):
            index = None if index is None else dataset.indices[index]
            dataset = dataset.dataset
        elif isinstance(dataset, ConcatDataset):
            position, start = 0, 0
            if index is not None:
                index = index + len(dataset) if index < 0 else index
                position = next(i for i, stop in enumerate(dataset.cumulative_sizes) if index < stop)
                start = dataset.cumulative_sizes[position - 1] if position else 0
                index -= start
            dataset = dataset.datasets[position]
        else:
            return dataset, index


def channels_of(dataset: Dataset[Any], key: str = 'image') -> tuple[str, ...] | None:
    """Return the names of a dataset's channels, in the dataset's order.

    Sources, in this order: the table of :mod:`torchgeo_clay.datasets.wrapped.known`; ``bands``, ``all_bands`` and
    ``all_band_names``; the image parts of an intersection or a union; red, green and blue for a folder of images that
    Pillow reads.

    Args:
        dataset: any dataset.
        key: of its image in its samples.

    Returns:
        The names; None if unknown.
    """
    leaf, _ = leaf_of(dataset)
    if (table := known_channels(leaf, key)) is not None:
        return table
    for attribute in ('bands', 'all_bands', 'all_band_names'):
        found = getattr(leaf, attribute, None)
        if isinstance(found, Sequence) and not isinstance(found, str) and found:
            return tuple(map(str, found))
    if isinstance(leaf, IntersectionDataset | UnionDataset):
        parts = [channels_of(part) for part in leaf.datasets if _has_images(part)]
        if not parts or any(part is None for part in parts):
            return None
        if isinstance(leaf, UnionDataset):
            return parts[0] if len(set(parts)) == 1 else None
        return tuple(name for part in parts if part is not None for name in part)
    return ('red', 'green', 'blue') if getattr(leaf, 'loader', None) is default_loader else None


def _has_images(dataset: Any) -> bool:
    """Whether a part of an intersection has images, not masks."""
    if isinstance(dataset, IntersectionDataset | UnionDataset):
        return any(_has_images(part) for part in dataset.datasets)
    return bool(getattr(dataset, 'is_image', not isinstance(dataset, VectorDataset)))


def wavelengths_of(dataset: Dataset[Any]) -> dict[str, float] | None:
    """Return a dataset's own central wavelengths.

    Args:
        dataset: any dataset.

    Returns:
        Channel → µm of known channels: ``wavelengths`` is a dictionary by band, as in TorchGeo's Landsat, or a sequence
        parallel to the bands, as in HySpecNet; None if there are none.
    """
    leaf, _ = leaf_of(dataset)
    found, names = getattr(leaf, 'wavelengths', None), channels_of(dataset)
    if isinstance(leaf, IntersectionDataset) and found is None:
        known = [wavelengths_of(d) for d in leaf.datasets]
        return {k: v for part in known if part is not None for k, v in part.items()} or None
    if isinstance(found, Mapping):
        return {n: float(found[n.removeprefix('SR_')]) for n in names or () if n.removeprefix('SR_') in found} or None
    if isinstance(found, Tensor | Sequence) and names is not None and len(names) % max(len(found), 1) == 0:
        return dict(zip(names[: len(found)], map(float, found), strict=True)) or None
    return None


@dataclass(frozen=True)
class Selection:
    """A dataset's channels that are a sensor's bands.

    Attributes:
        channels: the dataset's channels, in the dataset's order.
        indices: position among them of each band of ``sensor``.
        sensor: the sensor, with the selected bands in the model's order.
    """

    channels: tuple[str, ...]
    indices: tuple[int, ...]
    sensor: Sensor

    @property
    def left_out(self) -> tuple[str, ...]:
        """Channels that are not used."""
        return tuple(name for i, name in enumerate(self.channels) if i not in self.indices)

    def select(self, image: Tensor) -> Tensor:
        """Select the sensor's bands: (…, channels, H, W) → (…, bands, H, W)."""
        if self.indices == tuple(range(len(self.channels))):
            return image
        return image.index_select(-3, torch.tensor(self.indices, device=image.device))

    def restore(self, image: Tensor) -> Tensor:
        """Put the bands back to their channels, zeros for those not used: (…, channels, H, W)."""
        full = image.new_zeros((*image.shape[:-3], len(self.channels), *image.shape[-2:]))
        return full.index_copy(-3, torch.tensor(self.indices, device=image.device), image)


def select_channels(
    sensor: Sensor, channels: Sequence[str], bands: Sequence[str] | None = None, own: Mapping[str, float] | None = None
) -> Selection:
    """Find a sensor's bands among a dataset's channels, by name or alias.

    Args:
        sensor: the sensor, with all its bands.
        channels: the dataset's channels, in its order.
        bands: names or aliases of the bands to select, in that order; None for all that match, in the sensor's order,
            which is that of the training data.
        own: the dataset's wavelengths, µm, to detect another band of the same name.

    Returns:
        The selection.

    Raises:
        ValueError: if none match, a selected one is missing, one is there or selected twice, or the dataset has another
            wavelength for it.
    """
    found: dict[str, list[int]] = {}
    for i, name in enumerate(channels):
        if (position := sensor.find(name)) is not None:
            found.setdefault(sensor.bands[position].name, []).append(i)
    if not found:
        raise ValueError(
            f'No band of {sensor.name} matches: the dataset has {", ".join(channels)}; the sensor has '
            f'{", ".join("/".join(b.names) for b in sensor.bands)}. Is it the right sensor? If the names differ, name '
            'each channel, in the order of the dataset: channels=[…].'
        )
    chosen = sensor.select([n for n in sensor.band_names if n in found] if bands is None else bands)
    if missing := [name for name in chosen.band_names if name not in found]:
        raise ValueError(
            f'bands {", ".join(missing)} of {sensor.name} are not in the dataset, which has {", ".join(channels)}. '
            f'There are {[n for n in sensor.band_names if n in found]}.'
        )
    for name in chosen.band_names:
        if len(found[name]) > 1:
            raise ValueError(
                f'{name} is repeated: channels {", ".join(f"{i} ({channels[i]})" for i in found[name])} of the dataset '
                f'are all {name} of {sensor.name}; expected one. Dates stacked as channels? Request one date from the '
                'dataset, or (T, C, H, W). Otherwise give the channels different names: channels=[…].'
            )
    indices = tuple(found[name][0] for name in chosen.band_names)
    for band, i in zip(chosen.bands, indices, strict=True):
        wavelength = (own or {}).get(channels[i], band.wavelength)
        if abs(wavelength / band.wavelength - 1) > _TOLERANCE:
            raise ValueError(
                f'{channels[i]} is {wavelength:g} µm in the dataset, but {band.name} of {sensor.name} is '
                f'{band.wavelength:g} µm: another instrument numbers its bands differently. Name each channel: '
                'channels=[…].'
            )
    return Selection(tuple(channels), indices, chosen)


#: Value of ``sensor`` that requests it.
OWN = 'dataset'

Statistics = Tensor | Sequence[float] | float


def own_sensor(
    dataset: Dataset[Any], mean: Statistics | None, std: Statistics | None, gsd: float | None = None
) -> Sensor:
    """Make a sensor from a dataset's own band names and wavelengths, for instruments that are not in the table.

    Args:
        dataset: with wavelengths, such as TorchGeo's HySpecNet11k.
        mean: of each channel, or one for all, in the dataset's units.
        std: likewise the standard deviation.
        gsd: nominal meters per pixel; None for 1, as each sample has its own.

    Returns:
        The sensor, named like the dataset's class, with the channels in the dataset's order.

    Raises:
        ValueError: if the dataset lacks wavelengths, or the statistics are missing or do not fit.
    """
    leaf, _ = leaf_of(dataset)
    name, channels = type(leaf).__name__, channels_of(dataset)
    wavelengths = wavelengths_of(dataset) or {}
    if channels is None or any(c not in wavelengths for c in channels):
        raise ValueError(
            f'sensor={OWN!r}: {name} lacks wavelengths of its channels. Name a sensor, or describe one in '
            'a YAML file and give its path.'
        )
    values = []
    for what, given in (('mean', mean), ('std', std)):
        tensor = torch.as_tensor(float('nan') if given is None else given, dtype=torch.float64).flatten()
        if tensor.isnan().any() or tensor.numel() not in (1, len(channels)):
            raise ValueError(
                f'sensor={OWN!r}: expected {what} of {name}, one number or {len(channels)}, got {given}. Compute it on '
                f'the training split and give {what}=[…].'
            )
        values.append(tensor.expand(len(channels)).tolist())
    bands = tuple(Band(c, wavelengths[c], m, s) for c, m, s in zip(channels, *values, strict=True))
    rgb = tuple(map(str, getattr(leaf, 'rgb_bands', None) or ()))
    return Sensor(name.lower(), gsd or 1.0, bands, rgb if len(rgb) == 3 and set(rgb) <= set(channels) else ())
