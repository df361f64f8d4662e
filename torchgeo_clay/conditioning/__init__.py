# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What the model is told of a batch: the contract, the codes of time and place, the match with the images."""

from torchgeo_clay.conditioning.contract import Conditioning, check_batch, check_gsd, encode_latlon, encode_time

__all__ = ('Conditioning', 'check_batch', 'check_gsd', 'encode_latlon', 'encode_time')
