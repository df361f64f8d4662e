# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Metadata for the model: the batch contract, codes of time and place, checks against images."""

from torchgeo_clay.conditioning.codes import LatLonOrder, encode_latlon, encode_time, on_host
from torchgeo_clay.conditioning.contract import (
    Conditioning,
    batch_conditioning,
    batch_sensor,
    check_batch,
    check_gsd,
    match_images,
    metadata_tensors,
    select_dates,
    task_conditioning,
)

__all__ = (
    'Conditioning',
    'LatLonOrder',
    'batch_conditioning',
    'batch_sensor',
    'check_batch',
    'check_gsd',
    'encode_latlon',
    'encode_time',
    'match_images',
    'metadata_tensors',
    'on_host',
    'select_dates',
    'task_conditioning',
)
