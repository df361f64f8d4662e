# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The four sizes of Clay's masked autoencoder, each a literal call. Source: the release's ``src/model.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torchgeo_clay.models.clay import Clay
from torchgeo_clay.models.decoder import ClayDecoder
from torchgeo_clay.models.mae import ClayMAE
from torchgeo_clay.models.teacher import make_teacher
from torchgeo_clay.models.weights.names import holds_teacher, load_mae
from torchgeo_clay.models.weights.released import WeightsLike, fetch

__all__ = ('clay_mae_base_patch8', 'clay_mae_large_patch8', 'clay_mae_small_patch8', 'clay_mae_tiny_patch8')

Teacher = str | nn.Module | None


def _mae(
    name: str,
    weights: WeightsLike,
    teacher: Teacher,
    encoder: dict[str, Any],
    decoder: dict[str, Any],
    mae: dict[str, Any],
) -> ClayMAE:
    """An autoencoder, with random weights or those of a file."""
    if weights is None:
        return ClayMAE(
            Clay(**encoder), ClayDecoder(encoder_dim=encoder['embed_dim'], **decoder), make_teacher(teacher), **mae
        )
    path = fetch(weights, name)
    in_file = isinstance(teacher, str) and holds_teacher(path)
    module = None if in_file else make_teacher(teacher)
    with torch.device('meta'):
        if in_file:
            module = make_teacher(teacher, pretrained=False)
        model = ClayMAE(Clay(**encoder), ClayDecoder(encoder_dim=encoder['embed_dim'], **decoder), module, **mae)
    return load_mae(model, path)


def clay_mae_tiny_patch8(
    weights: WeightsLike = None,
    teacher: Teacher = None,
    representation_weight: float = 0.05,
    norm_pix_loss: bool = False,
    mask_ratio: float = 0.75,
    teacher_dim: int | None = None,
    **vit_kwargs: Any,
) -> ClayMAE:
    """Clay's masked autoencoder, tiny (encoder 4 M, decoder 1.7 M parameters).

    Args:
        weights: None for random ones, or the path of a
            released-format ``.ckpt`` or of a checkpoint of our own pretraining. What does not match raises.
        teacher: a module, or a timm name, whose weights are read from the checkpoint where it holds them and fetched
            from timm's Hub where not; None for none.
        representation_weight: see :class:`ClayMAE`, as for the next three.
        norm_pix_loss: see :class:`ClayMAE`.
        mask_ratio: see :class:`ClayMAE`.
        teacher_dim: see :class:`ClayMAE`.
        **vit_kwargs: of the encoder, see :class:`Clay`.

    Raises:
        CheckpointError: for weights that can't be fetched, read, or do not fit.
        ValueError: for a teacher that can't be made.
    """
    return _mae(
        'clay_tiny_patch8',
        weights,
        teacher,
        encoder={'embed_dim': 192, 'depth': 6, 'num_heads': 4, 'mlp_ratio': 2, **vit_kwargs},
        decoder={'dim': 96, 'depth': 3, 'heads': 2, 'dim_head': 48, 'mlp_ratio': 2},
        mae={
            'representation_weight': representation_weight,
            'norm_pix_loss': norm_pix_loss,
            'mask_ratio': mask_ratio,
            'teacher_dim': teacher_dim,
        },
    )


def clay_mae_small_patch8(
    weights: WeightsLike = None,
    teacher: Teacher = None,
    representation_weight: float = 0.05,
    norm_pix_loss: bool = False,
    mask_ratio: float = 0.75,
    teacher_dim: int | None = None,
    **vit_kwargs: Any,
) -> ClayMAE:
    """Clay's masked autoencoder, small (encoder 11 M, decoder 3.7 M parameters).

    Args:
        weights: None for random ones, or the path of a
            released-format ``.ckpt`` or of a checkpoint of our own pretraining. What does not match raises.
        teacher: a module, or a timm name, whose weights are read from the checkpoint where it holds them and fetched
            from timm's Hub where not; None for none.
        representation_weight: see :class:`ClayMAE`, as for the next three.
        norm_pix_loss: see :class:`ClayMAE`.
        mask_ratio: see :class:`ClayMAE`.
        teacher_dim: see :class:`ClayMAE`.
        **vit_kwargs: of the encoder, see :class:`Clay`.

    Raises:
        CheckpointError: for weights that can't be fetched, read, or do not fit.
        ValueError: for a teacher that can't be made.
    """
    return _mae(
        'clay_small_patch8',
        weights,
        teacher,
        encoder={'embed_dim': 384, 'depth': 6, 'num_heads': 6, 'mlp_ratio': 2, **vit_kwargs},
        decoder={'dim': 192, 'depth': 4, 'heads': 4, 'dim_head': 64, 'mlp_ratio': 2},
        mae={
            'representation_weight': representation_weight,
            'norm_pix_loss': norm_pix_loss,
            'mask_ratio': mask_ratio,
            'teacher_dim': teacher_dim,
        },
    )


def clay_mae_base_patch8(
    weights: WeightsLike = None,
    teacher: Teacher = None,
    representation_weight: float = 0.05,
    norm_pix_loss: bool = False,
    mask_ratio: float = 0.75,
    teacher_dim: int | None = None,
    **vit_kwargs: Any,
) -> ClayMAE:
    """Clay's masked autoencoder, base (encoder 92 M, decoder 16 M parameters).

    Args:
        weights: None for random ones, or the path of a
            released-format ``.ckpt`` or of a checkpoint of our own pretraining. What does not match raises.
        teacher: a module, or a timm name, whose weights are read from the checkpoint where it holds them and fetched
            from timm's Hub where not; None for none.
        representation_weight: see :class:`ClayMAE`, as for the next three.
        norm_pix_loss: see :class:`ClayMAE`.
        mask_ratio: see :class:`ClayMAE`.
        teacher_dim: see :class:`ClayMAE`.
        **vit_kwargs: of the encoder, see :class:`Clay`.

    Raises:
        CheckpointError: for weights that can't be fetched, read, or do not fit.
        ValueError: for a teacher that can't be made.
    """
    return _mae(
        'clay_base_patch8',
        weights,
        teacher,
        encoder={'embed_dim': 768, 'depth': 12, 'num_heads': 12, 'mlp_ratio': 4, **vit_kwargs},
        decoder={'dim': 512, 'depth': 4, 'heads': 4, 'dim_head': 64, 'mlp_ratio': 4},
        mae={
            'representation_weight': representation_weight,
            'norm_pix_loss': norm_pix_loss,
            'mask_ratio': mask_ratio,
            'teacher_dim': teacher_dim,
        },
    )


def clay_mae_large_patch8(
    weights: WeightsLike = None,
    teacher: Teacher = None,
    representation_weight: float = 0.05,
    norm_pix_loss: bool = False,
    mask_ratio: float = 0.75,
    teacher_dim: int | None = None,
    **vit_kwargs: Any,
) -> ClayMAE:
    """Clay's masked autoencoder, large (encoder 311 M, decoder 16 M parameters). The size of the v1.5 release.

    Args:
        weights: None for random ones, a member of :class:`ClayLarge8_Weights`, or the path of a
            released-format ``.ckpt`` or of a checkpoint of our own pretraining. What does not match raises.
        teacher: a module, or a timm name, whose weights are read from the checkpoint where it holds them and fetched
            from timm's Hub where not; None for none.
        representation_weight: see :class:`ClayMAE`, as for the next three.
        norm_pix_loss: see :class:`ClayMAE`.
        mask_ratio: see :class:`ClayMAE`.
        teacher_dim: see :class:`ClayMAE`.
        **vit_kwargs: of the encoder, see :class:`Clay`.

    Raises:
        CheckpointError: for weights that can't be fetched, read, or do not fit.
        ValueError: for a teacher that can't be made.
    """
    return _mae(
        'clay_large_patch8',
        weights,
        teacher,
        encoder={'embed_dim': 1024, 'depth': 24, 'num_heads': 16, 'mlp_ratio': 4, **vit_kwargs},
        decoder={'dim': 512, 'depth': 4, 'heads': 4, 'dim_head': 64, 'mlp_ratio': 4},
        mae={
            'representation_weight': representation_weight,
            'norm_pix_loss': norm_pix_loss,
            'mask_ratio': mask_ratio,
            'teacher_dim': teacher_dim,
        },
    )
