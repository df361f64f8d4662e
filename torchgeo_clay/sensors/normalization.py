# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Normalization of batches on the device. Shapes: B samples, C bands, H × W pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchgeo_clay.sensors import Sensor

__all__ = ('SensorNormalization', 'normalize')


def normalize(image: Tensor, valid: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalize an image per band, zero where it has no data; prefer :meth:`Sensor.normalize`.

    Args:
        image: (B, C, H, W) or (B, T, C, H, W) in the sensor's units, any real dtype.
        valid: (B, 1 or C, H, W), or with T, bool, False where there is no data.
        mean: (C,) float32.
        std: (C,) float32.

    Returns:
        float32, of the image's shape; zero, the mean of the training data, where not valid.
    """
    normalized = (image.to(torch.float32) - mean[:, None, None]) / std[:, None, None]
    return torch.where(valid, normalized, 0.0)


class SensorNormalization:
    """Normalize each batch with the statistics of its sensor, on the batch's device."""

    def __init__(self, sensors: Mapping[str, Sensor]) -> None:
        """Initialize a new SensorNormalization instance.

        Args:
            sensors: batch['sensor'] → the sensor, its bands in the order of the image's.
        """
        self.sensors = dict(sensors)
        self._statistics: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}

    def statistics(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and std of a sensor, each (C,) float32, copied to a device once."""
        if (name, device) not in self._statistics:
            sensor = self.sensors[name]
            self._statistics[name, device] = (
                torch.tensor(sensor.mean, dtype=torch.float32, device=device),
                torch.tensor(sensor.std, dtype=torch.float32, device=device),
            )
        return self._statistics[name, device]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Normalize a batch.

        Args:
            batch: ``image`` (B, C, H, W), ``valid`` (B, 1, H, W), ``band_mask`` (B, C) bool and ``sensor``.

        Returns:
            The batch with ``target``, the normalized image, and ``image``, the same with hidden bands set to zero
            after normalization, as in the release.
        """
        target = self.sensors[batch['sensor']].normalize(batch['image'], batch['valid'])
        return {**batch, 'target': target, 'image': target * batch['band_mask'][:, :, None, None]}
