# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Which bands of a sensor the channels of a batch are. Shapes: B samples, C bands, H × W pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule

from torchgeo_clay.sensors import Sensor, get_sensor

__all__ = ('sensor_of',)


def sensor_of(task: LightningModule, batch: Mapping[str, Any]) -> Sensor:
    """The sensor of a batch, with the bands that its channels are.

    Args:
        task: whose trainer's datamodule has ``selected``, as those of this package do; without one the whole sensor of
            that name is meant.
        batch: ``sensor`` its name, and ``image`` (B, C, H, W).

    Raises:
        ValueError: for a name that is unknown, or a number of channels that is not that of the bands.
    """
    datamodule = getattr(task._trainer, 'datamodule', None)
    selected = getattr(datamodule, 'selected', {})
    name, channels = batch['sensor'], batch['image'].shape[-3]
    sensor: Sensor = selected[name] if name in selected else get_sensor(name)
    if len(sensor) != channels:
        raise ValueError(
            f'Expected the {len(sensor)} bands of {name} ({", ".join(sensor.band_names)}), got {channels} channels. '
            'Give the trainer a datamodule of this package, such as SensorDataModule, which knows which bands they are.'
        )
    return sensor
