# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Land-cover classes of the synthetic scenes: a pixel's label value is the class's position in :data:`CLASSES`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ('CLASSES', 'LandCover', 'LandCoverClass')


class LandCover(IntEnum):
    """Label values, uint8, without a background or an ignored value."""

    WATER = 0
    FOREST = 1
    GRASS = 2
    CROPS = 3
    SOIL = 4
    BUILT_UP = 5
    SNOW = 6
    CLOUD = 7


@dataclass(frozen=True)
class LandCoverClass:
    """One land-cover class.

    Attributes:
        name: in legends.
        color: red, green, blue, 0 to 255.
    """

    name: str
    color: tuple[int, int, int]


#: The classes, by label value. A bare field is still crops, so a model has to learn the season.
CLASSES: tuple[LandCoverClass, ...] = (
    LandCoverClass('water', (28, 107, 160)),
    LandCoverClass('forest', (26, 94, 43)),
    LandCoverClass('grass', (150, 190, 90)),
    LandCoverClass('crops', (230, 200, 70)),
    LandCoverClass('soil', (165, 120, 80)),
    LandCoverClass('built-up', (200, 50, 50)),
    LandCoverClass('snow', (235, 245, 255)),
    LandCoverClass('cloud', (160, 160, 160)),
)
