# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Embeddings of a datamodule's labelled chips. Shapes: B samples, C bands, H × W pixels, N rows, D width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional as F

from torchgeo_clay.conditioning import Conditioning, LatLonOrder
from torchgeo_clay.models import Clay

__all__ = ('Pooling', 'embed_labelled', 'evaluating')

Pooling = Literal['class', 'mean']


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for as long as it lasts; after it every part of the module has the mode that it had."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training


def embed_labelled(
    encoder: Clay,
    data: LightningDataModule,
    loader: Iterable[Mapping[str, Any]],
    *,
    pooling: Pooling = 'class',
    latlon_order: LatLonOrder = 'latlon',
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Embed the chips of a loader, without gradients and in eval mode.

    Args:
        encoder: on the device that it is to run on.
        data: the datamodule, whose hooks check, move and normalise batches. Without a trainer, TorchGeo's augment none.
        loader: one of its loaders, such as ``data.val_dataloader()``, of batches with ``label`` (B,).
        pooling: ``class`` for the class token, ``mean`` for the mean of the patches that hold data.
        latlon_order: see :func:`torchgeo_clay.conditioning.encode_latlon`.

    Returns:
        (N, D) float32, and labels (N,).

    Raises:
        ValueError: for batches without labels of classes, or no batch, or another pooling.
    """
    if pooling not in ('class', 'mean'):
        raise ValueError(f"pooling: expected 'class' or 'mean', got {pooling!r}.")
    device = next(encoder.parameters()).device
    embeddings, labels = [], []
    with torch.no_grad(), evaluating(encoder):
        for loaded in loader:
            batch = _transferred(data, loaded, device)
            labels.append(_labels(batch))
            conditioning = Conditioning.from_batch(batch, latlon_order)
            tokens = encoder.forward_features(batch['image'], **vars(conditioning)).float()
            pooled = tokens[:, 0] if pooling == 'class' else _mean_of_patches(tokens, batch, encoder)
            embeddings.append(pooled.cpu().numpy())
    if not embeddings:
        raise ValueError(f'{type(data).__name__}: expected labelled chips, got no batch. Lower batch_size.')
    return np.concatenate(embeddings), np.concatenate(labels)


def _transferred(data: LightningDataModule, batch: Any, device: torch.device) -> Any:
    """A batch through the hooks that Lightning would call."""
    batch = data.on_before_batch_transfer(batch, 0)
    return data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0)


def _labels(batch: Any) -> npt.NDArray[np.int64]:
    """The classes of a batch, (B,)."""
    label = batch.get('label') if isinstance(batch, Mapping) else None
    if not isinstance(label, Tensor) or label.ndim != 1 or label.is_floating_point():
        found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        shape = f' with label {label.dtype} {tuple(label.shape)}' if isinstance(label, Tensor) else ''
        raise ValueError(
            f"Expected batches with 'label' (B,), a class of each chip as a whole number, got {found}{shape}. "
            'Give a datamodule for classification, such as SyntheticDataModule(task="classification").'
        )
    return label.cpu().numpy().astype(np.int64)


def _mean_of_patches(tokens: Tensor, batch: Mapping[str, Any], encoder: Clay) -> Tensor:
    """Mean of the patches that hold data: tokens (B, 1 + L, D) → (B, D)."""
    patches, valid = tokens[:, 1:], batch.get('valid')
    if valid is None:
        return patches.mean(dim=1)
    p = encoder.patch_embed.patch_size[0]
    any_band = valid.any(dim=1, keepdim=True).float()
    holds = rearrange(F.max_pool2d(any_band, p, ceil_mode=True), 'b 1 h w -> b (h w) 1')
    return (patches * holds).sum(dim=1) / holds.sum(dim=1).clamp(min=1)
