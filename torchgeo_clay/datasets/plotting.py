# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Images as pictures: C bands, H rows, W columns in, (H, W, 3) from 0 to 1 out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from torch import Tensor

from torchgeo_clay.sensors import Sensor

__all__ = ('show', 'true_color')


def true_color(image: Tensor, sensor: Sensor, valid: Tensor | None = None) -> npt.NDArray[np.float64]:
    """An image as its sensor's red, green and blue, each stretched between its 2nd and 98th percentile.

    Two bands, as of Sentinel-1, are shown with their mean as blue, as the release's teacher sees them; a sensor without
    rgb bands is shown by its first band, in gray.

    Args:
        image: (C, H, W) in any units; values that are not finite are ignored.
        sensor: with the image's bands.
        valid: (1, H, W), bool; None if all pixels are.

    Returns:
        (H, W, 3) from 0 to 1; pixels that are not valid are 0.

    Raises:
        ValueError: if the image has other than the sensor's number of bands.
    """
    if image.ndim != 3 or image.shape[0] != len(sensor):
        raise ValueError(
            f'Expected an image of {len(sensor)} bands ({", ".join(sensor.band_names)}), '
            f'got shape {tuple(image.shape)}.'
        )
    bands = image.detach().cpu().double().numpy()
    if sensor.rgb_indices:
        shown = bands[list(sensor.rgb_indices)]
    elif len(sensor) == 2:
        shown = np.stack([*bands, bands.mean(axis=0)])
    else:
        shown = bands[[0, 0, 0]]
    good = np.isfinite(shown).all(axis=0)
    if valid is not None:
        good &= valid[0].cpu().numpy()
    picture = np.zeros(shown.shape)
    if good.any():
        low, high = np.percentile(shown[:, good], (2, 98), axis=1)
        span = np.where(high > low, high - low, 1)
        picture[:, good] = ((shown[:, good] - low[:, None]) / span[:, None]).clip(0, 1)
    return picture.transpose(1, 2, 0)


def show(
    pictures: Sequence[tuple[str, npt.NDArray[np.float64] | Tensor]],
    suptitle: str | None = None,
    side: float = 4,
    **look: Any,
) -> Figure:
    """Show pictures side by side.

    Args:
        pictures: title and picture: an array (H, W, 3) from 0 to 1, or a map of numbers, a tensor of H x W values.
        suptitle: above all.
        side: of a picture, inches.
        **look: how ``imshow`` draws maps, such as ``cmap``.
    """
    figure = Figure(figsize=(side * len(pictures), side), layout='constrained')
    for axes, (title, picture) in zip(figure.subplots(1, len(pictures), squeeze=False)[0], pictures, strict=True):
        if isinstance(picture, Tensor):
            axes.imshow(picture.squeeze().detach().cpu().float().numpy(), **look)
        else:
            axes.imshow(picture)
        axes.set_title(title)
        axes.axis('off')
    if suptitle is not None:
        figure.suptitle(suptitle)
    return figure
