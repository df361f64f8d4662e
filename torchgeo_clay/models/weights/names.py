# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Released ↔ our names of weights, and strict loading of them into a model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from torchgeo_clay.models.clay import Clay
from torchgeo_clay.models.mae import ClayMAE
from torchgeo_clay.models.weights.files import Archive, CheckpointError, write_safetensors

__all__ = ('load_encoder', 'load_mae', 'read_encoder', 'released_name', 'save_encoder')

#: Our name → the release's, as regular expressions of prefixes; the rest of a name (weight, bias, ...) is the same.
_TABLE: tuple[tuple[str, str], ...] = (
    # transformer, of encoder and decoder alike
    (r'blocks\.(\d+)\.norm1', r'transformer.layers.\1.0.norm'),
    (r'blocks\.(\d+)\.attn\.qkv', r'transformer.layers.\1.0.to_qkv'),
    (r'blocks\.(\d+)\.attn\.proj', r'transformer.layers.\1.0.to_out'),
    (r'blocks\.(\d+)\.norm2', r'transformer.layers.\1.1.net.0'),
    (r'blocks\.(\d+)\.mlp\.fc1', r'transformer.layers.\1.1.net.1'),
    (r'blocks\.(\d+)\.mlp\.fc2', r'transformer.layers.\1.1.net.3'),
    (r'norm', r'transformer.norm'),
    # patch embedding of the encoder, pixel head of the decoder
    (r'patch_embed\.kernels\.', r'patch_embedding.'),
    (r'head\.kernels\.', r'embed_to_pixels.'),
    (r'embed\b', r'enc_to_dec'),
    (r'mask_token', r'mask_patch'),
)
_KERNELS: tuple[tuple[str, str], ...] = (
    (r'fc1', r'fclayer.l1'),
    (r'fc2', r'fclayer.l2'),
    (r'to_kernel', r'weight_generator.fc_weight'),
    (r'to_bias', r'weight_generator.fc_bias'),
    (r'encoder\.', r'weight_generator.encoder.layers.0.'),
    (r'(weight_tokens|bias_token)', r'weight_generator.\1'),
)

#: A tensor that only an encoder has, by which its place in a file is found.
_OURS, _RELEASED = 'patch_embed.kernels.fc1.weight', 'patch_embedding.fclayer.l1.weight'

#: Parts of a classifier that are not the encoder: absent from a released file, ignored in one of ours.
_HEADS = r'(head|fc_norm|attn_pool)\.(?!kernels)'

#: Width and depth of an encoder → its builder.
_SIZES = {(192, 6): 'tiny', (384, 6): 'small', (768, 12): 'base', (1024, 24): 'large'}


def _translate(name: str, table: Iterable[tuple[str, str]]) -> str:
    """Replace the first prefix of the table that matches."""
    for ours, released in table:
        name, count = re.subn('^' + ours, released, name)
        if count:
            break
    return name


def released_name(name: str) -> str:
    """The release's name of a weight of ours, both without the prefix of their module.

    Args:
        name: such as ``blocks.0.attn.qkv.weight``.

    Returns:
        Such as ``transformer.layers.0.0.to_qkv.weight``.
    """
    if match := re.match(r'(patch_embed|head)\.kernels\.', name):
        prefix = match.group()
        return _translate(prefix, _TABLE) + _translate(name.removeprefix(prefix), _KERNELS)
    return _translate(name, _TABLE)


def _find_encoder(archive: Archive) -> tuple[str, bool]:
    """Prefix of the encoder's names in a file, and whether they are the release's."""
    for marker, released in ((_RELEASED, True), (_OURS, False)):
        found = [k.removesuffix(marker) for k in archive.shapes if k == marker or k.endswith('.' + marker)]
        if len(found) == 1:
            return found[0], released
        if found:
            raise CheckpointError(f'{archive.path}: holds {len(found)} encoders, under {found}; expected one.')
    raise CheckpointError(
        f'{archive.path}: holds no Clay encoder. Expected a released checkpoint, one of our pretraining, or an '
        f'encoder-only .safetensors; its tensors are {list(archive.shapes)[:4]} …'
    )


def _refuse_v1(archive: Archive, prefix: str) -> None:
    """Raise for a v1 model, recognized by its teacher (SAM): another architecture, though the names are alike."""
    parameters = archive.extra.get('hyper_parameters')
    named = str(parameters.get('teacher', '')) if isinstance(parameters, Mapping) else ''
    held = [k for k in archive.shapes if k.startswith(prefix.removesuffix('encoder.') + 'teacher.')]
    # the name may be a left-over default, so it counts only where the file holds no teacher
    if any('rel_pos' in k for k in held) if held else 'sam' in named:
        raise CheckpointError(
            f'{archive.path}: is a v1 model of Clay (made-with-clay/Clay-legacy), another architecture with other '
            'statistics. This package is for v1.5: made-with-clay/Clay, v1.5/clay-v1.5.ckpt.'
        )


def _encoder_size(archive: Archive) -> tuple[int, int, int]:
    """Width, depth and hidden width of the encoder in a file."""
    prefix, released = _find_encoder(archive)
    blocks = prefix + ('transformer.layers.' if released else 'blocks.')
    depth = len({k.removeprefix(blocks).split('.')[0] for k in archive.shapes if k.startswith(blocks)})
    hidden = prefix + (released_name('blocks.0.mlp.fc1.weight') if released else 'blocks.0.mlp.fc1.weight')
    return archive.shapes.get(prefix + 'cls_token', (0,))[-1], depth, archive.shapes.get(hidden, (0,))[0]


def _size_hint(archive: Archive) -> str:
    """Describe the encoder in a file."""
    _, released = _find_encoder(archive)
    width, depth, _ = _encoder_size(archive)
    name = _SIZES.get((width, depth))
    hint = f' The file holds an encoder {width} wide and {depth} deep'
    hint += f', which is clay_{name}_patch8' if name else ''
    if name == 'base' and released:
        hint += ', or the v1 model (made-with-clay/Clay-legacy), which is another architecture and not for this package'
    return hint + '.'


def _gather(archive: Archive, module: nn.Module, prefix: str, released: bool) -> dict[str, Tensor]:
    """The tensors of a file for a module, under our names, after comparing all names and shapes."""
    expected = {k: v for k, v in module.state_dict().items() if not re.match(_HEADS, k)}
    names = {prefix + (released_name(k) if released else k): k for k in expected}
    present = {k for k in archive.shapes if k.startswith(prefix) and not re.match(_HEADS, k.removeprefix(prefix))}
    missing, unexpected = sorted(set(names) - present), sorted(present - set(names))
    if missing or unexpected:
        raise CheckpointError(
            f'{archive.path}: does not fit the model: {len(missing)} tensors are missing {missing[:3]}, '
            f'{len(unexpected)} unexpected {unexpected[:3]}.{_size_hint(archive)}'
        )
    for there, here in names.items():
        if archive.shapes[there] != tuple(expected[here].shape):
            raise CheckpointError(
                f'{archive.path}: {there} is {archive.shapes[there]}, the model expects {tuple(expected[here].shape)}.'
                f'{_size_hint(archive)}'
            )
    tensors = archive.read(names)
    return {here: tensors[there].to(expected[here].dtype) for there, here in names.items()}


def _assign(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load tensors into a module; one on the meta device takes them, and parts without tensors are initialized."""
    own = module.state_dict()
    module.load_state_dict({**own, **state}, assign=any(v.is_meta for v in own.values()))
    for child in module.modules():  # such as a new head, which no encoder file holds
        reset = getattr(child, 'init_weights', None) or getattr(child, 'reset_parameters', None)
        if reset and any(p.is_meta for p in child.parameters(recurse=False)):
            child.to_empty(device='cpu', recurse=False)
            reset()
    left = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if left:
        raise CheckpointError(
            f'{type(module).__name__} computes {left} when it is built, which no file holds: it cannot be built '
            'without memory. If it is the teacher, make it yourself and give teacher= the module.'
        )


def load_encoder(model: Clay, path: str | os.PathLike[str]) -> Clay:
    """Load an encoder's weights, strictly.

    Args:
        model: the encoder; one on the meta device takes the tensors, so that no memory is used twice.
        path: a released checkpoint, a checkpoint of our own pretraining or of a task, or an encoder-only
            ``.safetensors``.

    Returns:
        The model. Its classification head, if it has one, keeps its weights, or is new.

    Raises:
        CheckpointError: for files that cannot be read, hold another model, or do not match in a name or shape.
    """
    archive = Archive(path)
    prefix, released = _find_encoder(archive)
    if released:
        _refuse_v1(archive, prefix)
    if any('.lora_A.' in k for k in archive.shapes):
        raise CheckpointError(
            f'{path}: holds an encoder with separate LoRA adapters. Load the task with load_from_checkpoint and '
            'write its encoder with export(), which merges them; then give that file.'
        )
    _assign(model, _gather(archive, model, prefix, released))
    return model


def load_mae(model: ClayMAE, path: str | os.PathLike[str]) -> ClayMAE:
    """Load an autoencoder's weights, strictly: encoder, decoder and, where the model has them, projection and teacher.

    Args:
        model: the autoencoder. A teacher is loaded only if it has no weights yet (is on the meta device).
        path: a released checkpoint, or one of our own pretraining.

    Returns:
        The model.

    Raises:
        CheckpointError: see :func:`load_encoder`; also for a file that holds only the encoder.
    """
    archive = Archive(path)
    prefix, released = _find_encoder(archive)
    if released:
        _refuse_v1(archive, prefix)
    stem = prefix.removesuffix('encoder.')
    if not any(k.startswith(stem + 'decoder.') for k in archive.shapes) or stem == prefix:
        raise CheckpointError(
            f'{archive.path}: holds only an encoder; the autoencoder needs a decoder too. Expected a released '
            'checkpoint or one of our pretraining. For the encoder alone use clay_…_patch8(weights=…).'
        )
    known = tuple(stem + part for part in ('encoder.', 'decoder.', 'proj.', 'teacher.'))
    unknown = [k for k in archive.shapes if k.startswith(stem) and not k.startswith(known)]
    if unknown:
        raise CheckpointError(f'{archive.path}: {len(unknown)} unexpected tensors {unknown[:3]}; expected {known}.')
    parts: dict[str, tuple[nn.Module, bool]] = {
        'encoder.': (model.encoder, released),
        'decoder.': (model.decoder, released),
    }
    if model.proj is not None:
        parts['proj.'] = (model.proj, False)
    if model.teacher is not None and any(p.is_meta for p in model.teacher.parameters()):
        parts['teacher.'] = (model.teacher, False)
    states = {name: _gather(archive, module, stem + name, names) for name, (module, names) in parts.items()}
    for name, (module, _) in parts.items():
        _assign(module, states.pop(name))
    return model


def read_encoder(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read an encoder's weights under this package's names, whatever its size.

    Args:
        path: as :func:`load_encoder`.

    Raises:
        CheckpointError: see :func:`load_encoder`.
    """
    archive = Archive(path)
    width, depth, hidden = _encoder_size(archive)
    with torch.device('meta'):  # for its names and shapes, on which the number of heads has no influence
        model = Clay(embed_dim=width, depth=depth, num_heads=1, mlp_ratio=hidden / width)
    return load_encoder(model, path).state_dict()


def holds_teacher(path: str | os.PathLike[str]) -> bool:
    """Return True if a checkpoint holds a teacher's weights."""
    return any(re.search(r'(^|\.)teacher\.', k) for k in Archive(path).shapes)


def save_encoder(model: Clay, path: str | os.PathLike[str]) -> None:
    """Write the encoder alone, under the release's names, with the SHA-256 of its tensors.

    Args:
        model: the encoder.
        path: a file ending in ``.safetensors``.

    Raises:
        ValueError: for another suffix.
    """
    state = {released_name(k): v for k, v in model.state_dict().items() if not re.match(_HEADS, k)}
    write_safetensors(state, path, {'format': 'pt', 'model': 'Clay v1.5 encoder'})
