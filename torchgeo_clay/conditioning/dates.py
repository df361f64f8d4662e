# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What Clay's tasks tell the model about a batch. Shapes: B samples, T dates, C bands, H × W pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from einops import rearrange, repeat
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from torchgeo_clay.conditioning.batch import batch_conditioning
from torchgeo_clay.conditioning.contract import Conditioning

__all__ = ('fold_dates', 'told_conditioning')


def told_conditioning(batch: Mapping[str, Any], scope: Conditioning | None, sees_dates: bool) -> Conditioning:
    """What the images of a batch are conditioned on: the batch's own metadata, else the scope's.

    Args:
        batch: see :func:`~torchgeo_clay.conditioning.batch.batch_conditioning`.
        scope: what a callback has told the model before, or None.
        sees_dates: whether images are (B, T, C, H, W), each date with its own metadata.

    Returns:
        The conditioning of the B images, or of the B·T images of the dates, a sample's dates side by side.

    Raises:
        ValueError: see :func:`~torchgeo_clay.conditioning.batch.batch_conditioning`; for images of several dates where
            one is expected, and the other way round.
    """
    image = batch.get('image') if isinstance(batch, Mapping) else None
    if isinstance(image, Tensor) and image.ndim == (4 if sees_dates else 5):
        expected = '(B, 2, C, H, W), two dates' if sees_dates else '(B, C, H, W), one date'
        remedy = (
            'Stack the dates along an axis of their own: dates stacked as channels can not be told apart.'
            if sees_dates
            else 'Pick a date, make a composite of them, or compare two with ClayChangeDetection.'
        )
        raise ValueError(f'Expected images {expected}, got {tuple(image.shape)}. {remedy}')
    if not isinstance(image, Tensor) or image.ndim not in (4, 5):
        return batch_conditioning(batch)  # which says what is wrong
    known = dict(batch)
    if scope is not None:
        if known.get('wavelength') is None:
            known['wavelength'] = scope.wavelengths
        if known.get('res') is None and isinstance(scope.gsd, Tensor):
            known['res'] = scope.gsd.expand(image.shape[0])
    return batch_conditioning(fold_dates(known, image) if sees_dates else known)


def fold_dates(batch: Mapping[str, Any], image: Tensor) -> dict[str, Any]:
    """Make the dates of a batch samples of their own.

    Args:
        batch: ``res``, ``lat`` and ``lon`` (B,), of all dates, or (B, T); ``time`` (B, T). A time that is (B,) does not
            say which date's it is, and is left out.
        image: (B, T, C, H, W).

    Returns:
        The metadata and the images with B·T rows, a sample's dates side by side.

    Raises:
        ValueError: for other than two dates, or values of another shape.
    """
    samples, dates = image.shape[:2]
    if dates != 2:
        raise ValueError(f'Expected images (B, 2, C, H, W) of two dates, got {tuple(image.shape)}: {dates} dates.')
    folded: dict[str, Any] = {'image': rearrange(image, 'b t c h w -> (b t) c h w')}
    for key in ('wavelength', 'res', 'lat', 'lon', 'time'):
        value = batch.get(key)
        if not isinstance(value, Tensor):
            continue
        if key == 'wavelength':  # one list makes a batch, whatever the date
            folded[key] = value if value.ndim == 1 else repeat(value, 'b c -> (b t) c', t=dates)
        elif value.shape == (samples, dates):
            folded[key] = value.flatten()
        elif value.shape == (samples,) and key == 'time':
            rank_zero_info('A time per sample is left out: two dates take two, (B, 2).')
        elif value.shape == (samples,):
            folded[key] = value.repeat_interleave(dates)
        else:
            raise ValueError(
                f'{key}: expected {(samples,)} or one per date {(samples, dates)}, got {tuple(value.shape)}.'
            )
    return folded
