# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Sensors: wavelengths in µm, statistics in the sensor's own units, ground sampling distance in meters.

The nine sensors of :data:`SENSORS` carry the numbers that Clay v1.5 was trained with
(``configs/metadata.yaml`` of https://github.com/Clay-foundation/model, named in the release document).
A user's own sensor is a :class:`Sensor` made in Python or read by :meth:`Sensor.from_yaml`.
"""

from torchgeo_clay.sensors.released import SENSORS, get_sensor, sensor_table
from torchgeo_clay.sensors.sensor import Band, Sensor, check_wavelengths

__all__ = ('SENSORS', 'Band', 'Sensor', 'check_wavelengths', 'get_sensor', 'sensor_table')
