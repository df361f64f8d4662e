# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The four sizes of Clay's encoder and of its masked autoencoder, each a literal call.

Source of the numbers: the release's ``src/model.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torchgeo_clay.models.clay import Clay
from torchgeo_clay.models.mae import ClayDecoder, ClayMAE
from torchgeo_clay.models.teacher import make_teacher
from torchgeo_clay.models.weights import Archive, WeightsLike, load_encoder, load_mae, resolve_weights

__all__ = (
    'ENCODERS',
    'clay_base_patch8',
    'clay_large_patch8',
    'clay_mae_base_patch8',
    'clay_mae_large_patch8',
    'clay_mae_small_patch8',
    'clay_mae_tiny_patch8',
    'clay_small_patch8',
    'clay_tiny_patch8',
)

#: Names of the builders of encoders.
ENCODERS = ('clay_tiny_patch8', 'clay_small_patch8', 'clay_base_patch8', 'clay_large_patch8')

Teacher = str | nn.Module | None


def _open(name: str, weights: WeightsLike, options: dict[str, Any]) -> Archive | None:
    """Open a model's weights; ``position`` becomes the one that was asked for, else theirs, else the release's."""
    path = resolve_weights(weights, name)
    archive = None if path is None else Archive(path)
    options['position'] = options.get('position') or ('release' if archive is None else archive.position)
    return archive


def _encoder(name: str, weights: WeightsLike, **kwargs: Any) -> Clay:
    """Build an encoder, with random weights or those of a file."""
    archive = _open(name, weights, kwargs)
    if archive is None:
        return Clay(**kwargs)
    with torch.device('meta'):  # so that a large model is in memory once, not twice
        model = Clay(**kwargs)
    return load_encoder(model, archive)


def clay_large_patch8(weights: WeightsLike = None, **vit_kwargs: Any) -> Clay:
    """Build Clay's large encoder (311 M parameters), the size of the v1.5 release.

    Args:
        weights: True for the release's, a member of :class:`ClayLarge8_Weights` or its name, the path of a released
            ``.ckpt``, a checkpoint of our own pretraining or an encoder-only ``.safetensors``; None or False for
            random ones. Loading is strict.
        **vit_kwargs: see :class:`Clay`; ``position`` is that of the weights where it is not given.

    Raises:
        CheckpointError: for weights that cannot be fetched or read, or do not fit.
        TypeError: for arguments that :class:`Clay` refuses.
    """
    return _encoder('clay_large_patch8', weights, embed_dim=1024, depth=24, num_heads=16, mlp_ratio=4, **vit_kwargs)


def clay_base_patch8(weights: WeightsLike = None, **vit_kwargs: Any) -> Clay:
    """Build Clay's base encoder (92 M parameters). Arguments and errors as :func:`clay_large_patch8`."""
    return _encoder('clay_base_patch8', weights, embed_dim=768, depth=12, num_heads=12, mlp_ratio=4, **vit_kwargs)


def clay_small_patch8(weights: WeightsLike = None, **vit_kwargs: Any) -> Clay:
    """Build Clay's small encoder (11 M parameters). Arguments and errors as :func:`clay_large_patch8`."""
    return _encoder('clay_small_patch8', weights, embed_dim=384, depth=6, num_heads=6, mlp_ratio=2, **vit_kwargs)


def clay_tiny_patch8(weights: WeightsLike = None, **vit_kwargs: Any) -> Clay:
    """Build Clay's tiny encoder (4 M parameters). Arguments and errors as :func:`clay_large_patch8`."""
    return _encoder('clay_tiny_patch8', weights, embed_dim=192, depth=6, num_heads=4, mlp_ratio=2, **vit_kwargs)


#: Arguments of :class:`ClayMAE`; the others of an autoencoder's builder are of the encoder.
_MAE_OPTIONS = ('representation_weight', 'norm_pix_loss', 'mask_ratio', 'teacher_dim')


def _mae(
    encoder: Callable[..., Clay], weights: WeightsLike, teacher: Teacher, options: dict[str, Any], **decoder: Any
) -> ClayMAE:
    """Build an autoencoder, with random weights or those of a file."""
    own = {key: options.pop(key) for key in _MAE_OPTIONS if key in options}
    archive = _open(encoder.__name__, weights, options)
    in_file = archive is not None and isinstance(teacher, str) and archive.holds_teacher
    module = None if in_file else make_teacher(teacher)
    with torch.device('cpu' if archive is None else 'meta'):
        if in_file:
            module = make_teacher(teacher, pretrained=False)
        clay = encoder(**options)
        model = ClayMAE(clay, ClayDecoder(encoder_dim=clay.embed_dim, **decoder), module, **own)
    return model if archive is None else load_mae(model, archive)


def clay_mae_large_patch8(
    weights: WeightsLike = None,
    teacher: Teacher = None,
    representation_weight: float = 0.05,
    norm_pix_loss: bool = False,
    **options: Any,
) -> ClayMAE:
    """Build Clay's large masked autoencoder (encoder 311 M, decoder 16 M parameters), the size of the v1.5 release.

    Args:
        weights: as :func:`clay_large_patch8`, except for encoder-only files.
        teacher: a module, or a timm name, whose weights are read from the checkpoint if it holds them, else fetched
            from timm's Hub; None for none.
        representation_weight: see :class:`ClayMAE`.
        norm_pix_loss: see :class:`ClayMAE`.
        **options: ``mask_ratio`` and ``teacher_dim`` of :class:`ClayMAE`; the others are of the encoder, see
            :class:`Clay`.

    Raises:
        CheckpointError: for weights that cannot be fetched or read, or do not fit.
        ValueError: for a teacher that cannot be built.
        TypeError: for arguments that :class:`Clay` refuses.
    """
    options |= {'representation_weight': representation_weight, 'norm_pix_loss': norm_pix_loss}
    return _mae(clay_large_patch8, weights, teacher, options, dim=512, depth=4, heads=4, dim_head=64, mlp_ratio=4)


def clay_mae_base_patch8(weights: WeightsLike = None, teacher: Teacher = None, **options: Any) -> ClayMAE:
    """Build the base autoencoder (encoder 92 M, decoder 16 M parameters). Arguments as the large one's."""
    return _mae(clay_base_patch8, weights, teacher, options, dim=512, depth=4, heads=4, dim_head=64, mlp_ratio=4)


def clay_mae_small_patch8(weights: WeightsLike = None, teacher: Teacher = None, **options: Any) -> ClayMAE:
    """Build the small autoencoder (encoder 11 M, decoder 3.7 M parameters). Arguments as the large one's."""
    return _mae(clay_small_patch8, weights, teacher, options, dim=192, depth=4, heads=4, dim_head=64, mlp_ratio=2)


def clay_mae_tiny_patch8(weights: WeightsLike = None, teacher: Teacher = None, **options: Any) -> ClayMAE:
    """Build the tiny autoencoder (encoder 4 M, decoder 1.7 M parameters). Arguments as the large one's."""
    return _mae(clay_tiny_patch8, weights, teacher, options, dim=96, depth=3, heads=2, dim_head=48, mlp_ratio=2)
