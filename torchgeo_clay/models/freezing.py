# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Frozen parts of an encoder, and low-rank adapters through peft (LoRA, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torchgeo_clay.models.clay import Clay

__all__ = ('add_lora', 'eval_frozen', 'freeze_encoder', 'merge_lora')

#: Parts of a classifier that are not the encoder.
_HEADS = ('head', 'head_drop', 'fc_norm', 'attn_pool')

#: Parts without weights that belong to the patch embedding.
_STEM = ('patch_drop', 'pos_drop', 'norm_pre')

#: What LoRA adapts: input and output projections of the blocks' attention (attention pooling has a ``proj`` too).
_TARGETS = r'blocks\.\d+\.attn\.(qkv|proj)'


def freeze_encoder(model: Clay, trainable_blocks: int = 0) -> Clay:
    """Freeze an encoder in place, except its last blocks and the norm after them, and return it.

    Its head or attention pooling is not changed, nor is a final norm that is frozen already (no map uses it).

    Args:
        model: the encoder.
        trainable_blocks: number of the last blocks that stay trainable; 0 for none.

    Raises:
        ValueError: for more blocks than the encoder has.
    """
    if not 0 <= trainable_blocks <= len(model.blocks):
        raise ValueError(
            f'trainable_blocks: expected 1 to {len(model.blocks)}, the blocks of this encoder, got {trainable_blocks}. '
            'To train everything, the patch embedding too, leave it out.'
        )
    trained = {p for block in model.blocks[len(model.blocks) - trainable_blocks :] for p in block.parameters()}
    if trainable_blocks:
        trained |= {p for p in model.norm.parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if name.partition('.')[0] not in _HEADS:
            parameter.requires_grad = parameter in trained
    return model


def eval_frozen(model: Clay) -> None:
    """Put the frozen parts of an encoder into eval mode, without dropout and drop path; others keep their mode."""
    parts = [child for name, child in model.named_children() if name not in (*_HEADS, *_STEM)]
    for part in (*parts, *model.blocks):  # all blocks together first, then each by itself
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            part.eval()
    if not any(p.requires_grad for p in model.patch_embed.parameters()):
        for name in _STEM:
            getattr(model, name).eval()


def _require_peft() -> Any:
    """Import the package peft."""
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ValueError(
            "lora= needs the package peft, which is an extra: pip install 'torchgeo-clay[lora]'. Without it, "
            'trainable_blocks= also trains part of the encoder.'
        ) from error
    return peft


def _lora_config(peft: Any, lora: int | Mapping[str, Any]) -> Any:
    """Make peft's configuration from a rank, or from peft's own arguments."""
    options = {'r': lora} if isinstance(lora, int) else dict(lora)
    rank = options.get('r', 8)
    if isinstance(lora, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f'lora: expected a rank of 1 or more, got {lora!r}. Usual are 4 to 32; null for no LoRA.')
    try:
        return peft.LoraConfig(**{'lora_alpha': 2 * rank, 'target_modules': _TARGETS} | options)
    except TypeError as error:
        raise ValueError(f'lora: expected a rank, or arguments of peft.LoraConfig, got {lora!r}: {error}.') from error


def add_lora(model: Clay, lora: int | Mapping[str, Any]) -> Clay:
    """Freeze an encoder in place, except its head, add adapters, initially zero, to its attention, and return it.

    Args:
        model: the encoder, its weights loaded.
        lora: the rank r, or arguments of :class:`peft.LoraConfig` such as ``{'r': 16, 'lora_dropout': 0.1}``.
            ``lora_alpha`` is 2r unless given.

    Raises:
        ValueError: without peft, for a rank below 1, or for arguments unknown to peft.
    """
    peft = _require_peft()
    config = _lora_config(peft, lora)
    freeze_encoder(model)
    trained = [p for p in model.parameters() if p.requires_grad]  # the head, which peft would freeze as well
    peft.inject_adapter_in_model(config, model)
    for parameter in trained:
        parameter.requires_grad = True
    return model


def merge_lora(model: Clay) -> Clay:
    """Copy an encoder with its adapters merged into the weights.

    An encoder without adapters is copied as it is.
    """
    merged = copy.deepcopy(model)
    if not hasattr(merged, 'peft_config'):
        return merged
    layer_type = _require_peft().tuners.lora.LoraLayer
    for name, module in list(merged.named_modules()):
        if isinstance(module, layer_type):
            module.merge(safe_merge=True)
            merged.set_submodule(name, module.get_base_layer())
    del merged.peft_config
    return merged
