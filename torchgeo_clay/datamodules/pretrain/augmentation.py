# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What chance does to a training sample: flips, hidden metadata, hidden bands and the mask's noise.

Pure functions of a random generator. Probabilities are those the release was trained with (module ``src.model`` of
claymodel 1.5.0); the release also hides bands and flips in validation, which is not done here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ('Chance', 'draw_chance', 'draw_noise')

FLIP = 0.5
HIDE_METADATA = 0.2
HIDE_ALL_BANDS = 0.1
HIDE_HALF_THE_BANDS = 0.2


@dataclass(frozen=True)
class Chance:
    """What was drawn for one sample of C bands and L patches.

    Attributes:
        flip_rows: whether to flip north and south.
        flip_cols: whether to flip east and west.
        hide_metadata: whether time and place are made unknown, together.
        keep: (C,) False for the bands the encoder does not see, should the sample still have a place.
        noise: (L,) float32 in [0, 1), whose smallest values say which patches are masked.
    """

    flip_rows: bool
    flip_cols: bool
    hide_metadata: bool
    keep: NDArray[np.bool_]
    noise: NDArray[np.float32]


def draw_noise(rng: np.random.Generator, patches: int) -> NDArray[np.float32]:
    """Noise of the mask: (patches,) float32 in [0, 1)."""
    return rng.random(patches, dtype=np.float32)


def draw_chance(rng: np.random.Generator, bands: int, patches: int) -> Chance:
    """Draw everything random about a training sample but its place in the scene.

    The draws are always the same number in the same order, so that none depends on what another came out as.

    Args:
        rng: the sample's own generator.
        bands: number of bands, C.
        patches: number of patches, L.

    Returns:
        The draws. Of the bands all are hidden in 10 % of samples and a random half (C // 2) in 20 %.
    """
    flip_rows, flip_cols, metadata, band = rng.random(4)
    half = rng.permutation(bands)[: bands // 2]
    keep = np.ones(bands, dtype=np.bool_)
    if band < HIDE_ALL_BANDS:
        keep[:] = False
    elif band < HIDE_ALL_BANDS + HIDE_HALF_THE_BANDS:
        keep[half] = False
    return Chance(
        flip_rows=bool(flip_rows < FLIP),
        flip_cols=bool(flip_cols < FLIP),
        hide_metadata=bool(metadata < HIDE_METADATA),
        keep=keep,
        noise=draw_noise(rng, patches),
    )
