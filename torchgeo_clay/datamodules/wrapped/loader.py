# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Loaders over a replaced dataset that collate the sensor's metadata."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

__all__ = ('METADATA', 'SensorCollate', 'SensorName', 'with_dataset')

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
        stacked = {key: torch.stack([sample[key] for sample in samples]) for key in METADATA if key != 'time'}
        times = pad_sequence([sample['time'].reshape(-1) for sample in samples], True, math.nan)  # NaN for no date
        stacked['time'] = times if samples[0]['time'].ndim else times[:, 0]
        return {**self.collate(rest), **stacked, 'sensor': SensorName(self.sensor)}


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
            'num_workers',
            'pin_memory',
            'timeout',
            'worker_init_fn',
            'multiprocessing_context',
            'generator',
            'prefetch_factor',
            'persistent_workers',
        )
    }
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
