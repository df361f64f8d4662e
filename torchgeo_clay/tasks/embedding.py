# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Embeddings of chips. Shapes: B samples, C bands, H × W pixels, h × w patches, D width."""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torchgeo.tasks import BaseTask

from torchgeo_clay.conditioning import Conditioning, LatLonOrder, batch_sensor
from torchgeo_clay.datasets.raster.dataset import PATCH
from torchgeo_clay.models import Clay, FoldedClay, builders
from torchgeo_clay.sensors import Sensor

__all__ = ('ClayEmbedding', 'cast_copy', 'cast_matmuls', 'pool')

Pooling = Literal['class', 'mean', 'patches']


class ClayEmbedding(BaseTask):
    """Embed chips with Clay, for ``torchgeo predict`` with :class:`~torchgeo_clay.datamodules.SceneDataModule`.

    It only predicts. The encoder is folded once per sensor (:meth:`torchgeo_clay.models.Clay.fold`), and its weights
    are cast once with ``precision: bf16-mixed``.
    """

    model: Clay

    def __init__(
        self,
        model: str = 'clay_large_patch8',
        weights: bool | str | os.PathLike[str] | None = None,
        pooling: Pooling = 'class',
        latlon_order: LatLonOrder = 'latlon',
        compile: bool = False,
    ) -> None:
        """Initialize the task.

        Args:
            model: the builder's name, ``clay_{tiny,small,base,large}_patch8``.
            weights: True or ``CLAY_V1_5`` for the released ones, a path of a checkpoint of the release, of pretraining
                or of a task, or of an encoder's ``.safetensors``. Required; False for random initialization.
            pooling: ``class`` for the class token, ``mean`` for the mean of the patches that hold data, ``patches`` for
                every patch.
            latlon_order: order of the place code, see :func:`torchgeo_clay.conditioning.encode_latlon`.
            compile: whether to compile the encoder; it takes a minute per sensor and pays on a GPU with many chips.

        Raises:
            ValueError: for an unknown model or pooling, or no weights.
            CheckpointError: for weights that cannot be used.
        """
        if model not in builders.ENCODERS:
            raise ValueError(f'model: expected one of {", ".join(sorted(builders.ENCODERS))}, got {model!r}.')
        if pooling not in ('class', 'mean', 'patches'):
            raise ValueError(f"pooling: expected 'class', 'mean' or 'patches', got {pooling!r}.")
        if weights is None:
            raise ValueError(
                'weights: expected a checkpoint, or true for the released weights, got none. For random weights, whose '
                'embeddings mean little, give weights: false.'
            )
        self.weights = weights
        self._folded: dict[str, FoldedClay] = {}
        self._cast: dict[torch.dtype, nn.Sequential] = {}
        super().__init__()

    def configure_models(self) -> None:
        """Build the encoder."""
        self.model = getattr(builders, self.hparams['model'])(weights=self.weights)

    def on_predict_start(self) -> None:
        """Discard encoders that were folded before the model got its device or other weights."""
        self._folded.clear()
        self._cast.clear()

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Embed a batch.

        Args:
            batch: normalized ``image`` (B, C, H, W), ``valid`` (B, 1, H, W), ``sensor``, and the metadata of
                :meth:`torchgeo_clay.conditioning.Conditioning.from_batch`.

        Returns:
            (B, D), or (B, h, w, D) for ``pooling='patches'``; float32.
        """
        conditioning = Conditioning.from_batch(batch, self.hparams['latlon_order'])
        assert conditioning.gsd is not None
        tokens = self._model_of(batch).forward_features(
            batch['image'], conditioning.gsd, conditioning.time, conditioning.latlon
        )
        return pool(tokens, batch, self.hparams['pooling'])

    def _model_of(self, batch: dict[str, Any]) -> FoldedClay:
        """Return the encoder folded for a batch's sensor, which shares the model's blocks."""
        name = batch['sensor']
        if name not in self._folded:
            sensor = batch_sensor(batch)
            given, waves = batch['wavelength'][0].tolist(), sensor.wavelengths  # once per sensor, as it waits for a GPU
            if any(abs(a - b) > 1e-4 for a, b in zip(given, waves, strict=True)):
                raise ValueError(
                    f'{name}: expected the wavelengths of {", ".join(sensor.band_names)} in this order, {waves} µm, '
                    f'got {given}. Give the batch the selection of its bands, as the datamodules of this package do.'
                )
            self._folded[name] = self._folded_for(sensor, batch['image'].device.type)
        return self._folded[name]

    def _folded_for(self, sensor: Sensor, device: str) -> FoldedClay:
        """Fold the encoder for a sensor; under autocast with weights in its dtype, which all sensors share."""
        folded = FoldedClay(self.model, sensor).eval()
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            if dtype not in self._cast:
                self._cast[dtype] = cast_copy(folded.blocks, dtype)
            folded.blocks = self._cast[dtype]
            cast_matmuls(folded.patch_embed, dtype)
        if self.hparams['compile']:
            folded.compile()
        return folded

    def predict_step(self, batch: dict[str, Any], batch_idx: int = 0, dataloader_idx: int = 0) -> Tensor:
        """Embed a batch."""
        embedding: Tensor = self(batch)
        return embedding


def pool(tokens: Tensor, batch: Mapping[str, Any], pooling: Pooling) -> Tensor:
    """Pool tokens into embeddings.

    Args:
        tokens: (B, 1 + L, D).
        batch: ``image`` (B, C, H, W), and if known ``valid`` (B, 1 or C, H, W).
        pooling: ``class`` for the class token, ``mean`` for the mean of the patches with data, ``patches`` for every
            patch.

    Returns:
        (B, D), or (B, h, w, D) for ``patches``; float32.
    """
    if pooling == 'class':
        return tokens[:, 0].float()
    patches, valid = tokens[:, 1:].float(), batch.get('valid')
    if pooling == 'patches':
        return rearrange(patches, 'b (h w) d -> b h w d', h=batch['image'].shape[-2] // PATCH)
    if valid is None:
        return patches.mean(dim=1)
    holds = F.max_pool2d(valid.any(dim=1, keepdim=True).float(), PATCH, ceil_mode=True)
    holds = rearrange(holds, 'b 1 h w -> b (h w) 1')
    return (patches * holds).sum(1) / holds.sum(1).clamp(min=1)


def cast_matmuls(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the weights of linear layers and convolutions, in place; norms, tokens and scales stay as they are.

    Under autocast to the same dtype the outputs are bit-identical: these are the weights that it casts, and its cache
    keeps them between forwards only for weights that require gradients.

    Args:
        module: a frozen module.
        dtype: of autocast, such as ``torch.bfloat16``.

    Returns:
        The module.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.to(dtype)
    return module


def cast_copy(blocks: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    """Copy blocks and cast their weights by :func:`cast_matmuls`, block by block to save memory.

    Args:
        blocks: left unchanged.
        dtype: of autocast.
    """
    return nn.Sequential(*(cast_matmuls(deepcopy(block), dtype) for block in blocks))
