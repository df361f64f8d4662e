# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Synthetic scenes of every sensor, with land cover and vegetation cover."""

from torchgeo_clay.simulator.landscape import CLASSES, LandCover, LandCoverClass
from torchgeo_clay.simulator.scenes import SyntheticScenes

__all__ = ('CLASSES', 'LandCover', 'LandCoverClass', 'SyntheticScenes')
