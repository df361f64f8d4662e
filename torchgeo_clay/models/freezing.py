# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Frozen and trainable parts of an encoder."""

from __future__ import annotations

from torch import nn

from torchgeo_clay.models.clay import Clay

__all__ = ('eval_frozen', 'freeze_encoder')

#: Parts of a classifier that are not the encoder.
_HEADS = ('head', 'head_drop', 'fc_norm', 'attn_pool')

#: Parts without weights that belong to the patch embedding.
_STEM = ('patch_drop', 'pos_drop', 'norm_pre')


def freeze_encoder(model: Clay, trainable_blocks: int = 0) -> Clay:
    """Freeze an encoder, except its last blocks and the norm after them.

    Args:
        model: the encoder, changed in place. Its head or attention pooling is not changed, nor is a final norm that
            is frozen already (of an encoder of which only the blocks are used).
        trainable_blocks: number of the last blocks that stay trainable; 0 for none.

    Returns:
        The model.

    Raises:
        ValueError: for more blocks than the encoder has.
    """
    if not 0 <= trainable_blocks <= len(model.blocks):
        raise ValueError(
            f'trainable_blocks: expected 1 to {len(model.blocks)}, the blocks of this encoder, got {trainable_blocks}. '
            'To train everything, the patch embedding too, leave it out.'
        )
    trained: set[nn.Parameter] = set()
    if trainable_blocks:
        trained = {p for block in model.blocks[-trainable_blocks:] for p in block.parameters()}
        trained |= {p for p in model.norm.parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if name.partition('.')[0] not in _HEADS:
            parameter.requires_grad = parameter in trained
    return model


def eval_frozen(model: Clay) -> None:
    """Put the frozen parts of an encoder into eval mode: no dropout, no drop path.

    Args:
        model: the encoder, changed in place; trainable parts keep their mode.
    """
    parts = [child for name, child in model.named_children() if name not in (*_HEADS, *_STEM)]
    for part in (*parts, *model.blocks):  # all blocks together first, then each by itself
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            part.eval()
    if not any(p.requires_grad for p in model.patch_embed.parameters()):
        for name in _STEM:
            getattr(model, name).eval()
