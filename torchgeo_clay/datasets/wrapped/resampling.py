# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Change of pixel size by kornia's transforms. Shapes: B samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torchgeo_clay.datasets.wrapped.shared_mask import SharedMask

__all__ = ('pixel_growth', 'transforms_of')


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
        growth = (_area(drawn['src'].double()) / _area(drawn['dst'].double())).sqrt()
        return torch.where(drawn['batch_prob'].to(growth.device) > 0.5, growth, 1.0)
    matrix = getattr(module, 'transform_matrix', None)
    if not isinstance(matrix, Tensor) or matrix.shape[-1] != 3:
        return None
    return torch.linalg.det(matrix[:, :2, :2].double()).abs().clamp_min(1e-12).rsqrt()


def pixel_growth(module: nn.Module, batch: int) -> Tensor:
    """Return the factor of a transform's last call on the side of each sample's pixels.

    For resizes and crops the ratio of pixels: 32 resized to 64 are half as large. For affine transforms the area of
    their matrix. Flips, shifts, rotations and color transforms have 1.

    Args:
        module: a container or a single transform of kornia, after a call.
        batch: number of samples; the first frame of a sequence represents all.

    Returns:
        (B,) float64 on the host.
    """
    module = module.inner if isinstance(module, SharedMask) else module
    total = torch.ones(batch, dtype=torch.float64)
    params = getattr(module, '_params', None)
    leaves = [(module, params)] if isinstance(params, dict) else _leaves(module, params)
    for leaf, drawn in leaves:
        growth = _growth(leaf, drawn)
        if growth is not None:
            growth = growth.detach().cpu()
            total = total * (growth.reshape(batch, -1)[:, 0] if growth.numel() % batch == 0 else growth[:1])
    return total
