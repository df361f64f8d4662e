# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""kornia's transforms: change of pixel size, and a mask shared by all dates. Shapes: B samples, T dates, H × W."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import kornia.augmentation as K
import torch
from einops import repeat
from torch import Tensor, nn

__all__ = (
    'SharedMask', 'center_shift', 'find_normalizations', 'follow_pixels', 'pixel_growth', 'share_masks',
    'transforms_of',
)  # fmt: skip

#: Meters per degree of latitude.
_METERS_PER_DEGREE = 111_320.0


class SharedMask(nn.Module):
    """Call a transform with a mask per date, where TorchGeo has one for all dates.

    TorchGeo's change detection has images (B, T, C, H, W) and masks (B, 1, H, W); from version 0.9 on kornia refuses
    the two together. The dates share the drawn parameters, so the masks of all dates are equal.

    Args:
        inner: the transform.
    """

    def __init__(self, inner: nn.Module) -> None:
        """Initialize a new SharedMask instance; see the class."""
        super().__init__()
        self.inner = inner

    def forward(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Transform a dictionary with ``image`` and optionally ``mask``."""
        image, mask = sample.get('image'), sample.get('mask')
        if not (isinstance(image, Tensor) and isinstance(mask, Tensor)) or image.ndim != 5:
            return dict(self.inner(dict(sample)))
        if mask.ndim not in (3, 4) or (mask.ndim == 4 and mask.shape[1] != 1):
            return dict(self.inner(dict(sample)))
        single = mask.unsqueeze(1) if mask.ndim == 3 else mask  # xBD's masks have no channel
        frames = repeat(single, 'b 1 h w -> b t 1 h w', t=image.shape[1])
        result = dict(self.inner({**sample, 'mask': frames}))
        shared = result['mask'][:, 0]
        return {**result, 'mask': shared.squeeze(1) if mask.ndim == 3 else shared}


def share_masks(owner: Any, *names: str) -> None:
    """Wrap an object's video transforms, if any.

    Args:
        owner: a dataset or a datamodule, which is changed.
        *names: attributes to look in.
    """
    for name in names:
        module = getattr(owner, name, None)
        if isinstance(module, K.AugmentationSequential) and module.contains_video_sequential:
            setattr(owner, name, SharedMask(module))


def transforms_of(dataset: Any) -> list[nn.Module]:
    """Return the modules that a dataset and its parts call on samples, each once.

    Args:
        dataset: any dataset, with the attributes ``transforms`` and ``tg_transforms`` of TorchGeo's.
    """
    found: dict[int, nn.Module] = {}
    pending = [dataset]
    while pending:
        one = pending.pop()
        pending.extend(getattr(one, 'datasets', None) or ())
        pending.extend(d for d in (getattr(one, 'dataset', None),) if d is not None)
        for name in ('transforms', 'tg_transforms'):
            module = getattr(one, name, None)
            if isinstance(module, nn.Module):
                found[id(module)] = module
    return list(found.values())


def find_normalizations(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Find normalizations in a module: the parent, the child's name and the child of each."""
    return [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child).__name__ == 'Normalize'
    ]


def _leaves(module: nn.Module, params: Any) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
    """Yield the transforms applied in the last call, with their drawn parameters."""
    for item in params or ():
        child = module.get_submodule(item.name)
        if isinstance(item.data, list):
            yield from _leaves(child, item.data)
        elif isinstance(item.data, dict):
            yield child, item.data


def _area(corners: Tensor) -> Tensor:
    """Pixels in boxes given by the centers of their corner pixels: (B, 4, 2) x and y, clockwise → (B,)."""
    span = (corners[:, 2] - corners[:, 0]).abs() + 1
    return span[:, 0] * span[:, 1]


def _growth(module: nn.Module, drawn: dict[str, Tensor]) -> Tensor | None:
    """Factor of one transform on the side of each sample's pixels: (B,), None for 1."""
    if 'src' in drawn and 'dst' in drawn:  # crops and resizes: pixels before per pixel after
        growth = (_area(drawn['src'].float()) / _area(drawn['dst'].float())).sqrt()
        return torch.where(drawn['batch_prob'].to(growth.device) > 0.5, growth, 1.0)
    matrix = getattr(module, 'transform_matrix', None)
    if not isinstance(matrix, Tensor) or matrix.shape[-1] != 3:
        return None
    return torch.linalg.det(matrix[:, :2, :2].float()).abs().clamp_min(1e-12).rsqrt()


def pixel_growth(module: nn.Module, batch: int, device: torch.device | str = 'cpu') -> Tensor:
    """Return the factor of a transform's last call on the side of each sample's pixels.

    For resizes and crops the ratio of pixels: 32 resized to 64 are half as large. For affine transforms the area of
    their matrix. Flips, shifts, rotations and color transforms have 1.

    Args:
        module: a container or a single transform of kornia, after a call.
        batch: number of samples; the first frame of a sequence represents all.
        device: of the result.

    Returns:
        (B,) float32.
    """
    module = module.inner if isinstance(module, SharedMask) else module
    total = torch.ones(batch, device=device)
    params = getattr(module, '_params', None)
    leaves = [(module, params)] if isinstance(params, dict) else _leaves(module, params)
    for leaf, drawn in leaves:
        growth = _growth(leaf, drawn)
        if growth is not None:
            growth = growth.detach().float()
            first = growth.reshape(batch, -1)[:, 0] if growth.numel() % batch == 0 else growth[:1]
            total = total * first.to(device, non_blocking=True)
    return total


def center_shift(module: nn.Module, before: tuple[int, int], after: tuple[int, int], batch: int) -> Tensor | None:
    """Return how far a transform's last call moved the center of each image, as crops do.

    Args:
        module: a container or a single transform of kornia, after a call.
        before: rows and columns of its input.
        after: rows and columns of its output.
        batch: number of samples; the first frame of a sequence represents all.

    Returns:
        (B, 2) rows down and columns right, in pixels of the input; None for a transform without a matrix.
    """
    matrix = getattr(module.inner if isinstance(module, SharedMask) else module, 'transform_matrix', None)
    if not isinstance(matrix, Tensor) or matrix.shape[-1] != 3 or matrix.shape[0] % batch:
        return None
    first = matrix.detach().float().reshape(batch, -1, 3, 3)[:, 0]
    (a, b, tx), (c, d, ty) = first[:, 0].T, first[:, 1].T
    x, y = (after[1] - 1) / 2 - tx, (after[0] - 1) / 2 - ty
    # Cramer's rule, as torch.linalg.inv waits for the device
    determinant = a * d - b * c
    column, row = (d * x - b * y) / determinant, (a * y - c * x) / determinant
    return torch.stack([row - (before[0] - 1) / 2, column - (before[1] - 1) / 2], dim=1)


def follow_pixels(
    module: nn.Module, batch: Mapping[str, Any], before: torch.Size, after: torch.Size
) -> dict[str, Tensor]:
    """Return the resolution and the place of images after a transform's last call; their first row is the northernmost.

    Args:
        module: a container or a single transform of kornia, after a call.
        batch: ``res`` (B,), and ``lat`` and ``lon`` (B,) where known, before the call.
        before: shape of the images before the call.
        after: their shape after it.
    """
    res = batch['res']
    count, found = len(res), {}
    shift = center_shift(module, (before[-2], before[-1]), (after[-2], after[-1]), count)
    if shift is not None and batch.get('lat') is not None and batch.get('lon') is not None:
        meters = shift.to(batch['lat']) * res.to(batch['lat'])[:, None]
        lat = batch['lat'] - meters[:, 0] / _METERS_PER_DEGREE
        found = {'lat': lat, 'lon': batch['lon'] + meters[:, 1] / _METERS_PER_DEGREE / torch.cos(torch.deg2rad(lat))}
    return {**found, 'res': res * pixel_growth(module, count, res.device)}
