# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Weights: the released ones, pinned by commit, and the names and strict loading of those of any file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of requests, httpx or httpx2, by version
from torch import Tensor, nn
from torchvision.models._api import Weights, WeightsEnum

from torchgeo_clay.models.clay import Clay
from torchgeo_clay.models.mae import ClayMAE
from torchgeo_clay.models.weights.files import Archive, CheckpointError, write_safetensors

__all__ = (
    'ClayLarge8_Weights',
    'WeightsLike',
    'load_encoder',
    'load_mae',
    'read_encoder',
    'released_name',
    'resolve_weights',
    'save_encoder',
)

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


_REPO, _FILE = 'made-with-clay/Clay', 'v1.5/clay-v1.5.ckpt'

#: Last known commit of the file.
_REVISION = '2033cf5c59afbd8fef655008d0b0a9d6861951c8'


class ClayLarge8_Weights(WeightsEnum):
    """Released weights of the large model.

    The file has 5.16 GB, as it holds decoder, teacher and optimizer state too; loading reads the parts it needs.
    The weights are licensed under Apache-2.0.
    """

    CLAY_V1_5 = Weights(
        url=hf_hub_url(_REPO, _FILE, revision=_REVISION),
        transforms=nn.Identity(),  # normalization follows the sensor of each image, see torchgeo_clay.sensors
        meta={
            'model': 'clay_large_patch8',
            'dataset': 'Clay v1.5 training data: Sentinel-2, Sentinel-1, Landsat 8/9, NAIP, LINZ, MODIS',
            'repo': 'https://github.com/Clay-foundation/model',
            'hf_repo': _REPO,
            'filename': _FILE,
            'revision': _REVISION,
            'license': 'Apache-2.0',
            'num_params': 311442944,
        },
    )

    def fetch(self, cache_dir: str | os.PathLike[str] | None = None) -> Path:
        """Fetch the file through the Hub's cache (``HF_HOME``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` are respected).

        Args:
            cache_dir: another cache than the Hub's own.

        Returns:
            The path of the file.

        Raises:
            CheckpointError: if the Hub cannot be reached, or the file received does not have the Hub's SHA-256.
        """
        where = {'repo_id': self.meta['hf_repo'], 'filename': self.meta['filename'], 'revision': self.meta['revision']}
        cache = None if cache_dir is None else Path(cache_dir)
        cached = try_to_load_from_cache(**where, cache_dir=cache)
        if isinstance(cached, str):
            return Path(cached)
        try:
            path = Path(hf_hub_download(**where, cache_dir=cache))
            expected = _hub_digest(path, where)
        except (OSError, RuntimeError, ValueError, HTTPError) as error:
            cause = '' if str(error.__cause__) in str(error) else f' ({error.__cause__})'
            raise CheckpointError(
                f'{self!r}: {where["filename"]} of {where["repo_id"]} could not be fetched: '
                f'{error}{cause} Offline? Fetch it where there is a network, and copy the Hub cache, or give weights= '
                'the path of the file.'
            ) from error
        _verify(path, expected, where)
        return path

    def get_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Fetch the encoder's weights under this package's names, as TorchGeo's tasks do.

        Args:
            *args: ignored (torchvision's are for downloads by URL).
            **kwargs: ignored.
        """
        return read_encoder(self.fetch())


#: ``weights`` everywhere in this package: True for the release's, a member of the enum or its name, the path of a
#: file, or None or False for random ones.
WeightsLike = ClayLarge8_Weights | bool | str | os.PathLike[str] | None


def _hub_digest(path: Path, where: dict[str, str]) -> str:
    """The SHA-256 that the Hub states for a file: the name of a large file in its cache, and the file's ETag."""
    digest = path.resolve().name
    if not re.fullmatch('[0-9a-f]{64}', digest):  # a cache without symbolic links, as on Windows
        digest = str(get_hf_file_metadata(hf_hub_url(**where)).etag)
    return digest


def _verify(path: Path, expected: str, where: dict[str, str]) -> None:
    """Compare a fetched file with the Hub's SHA-256, and remove it if they differ."""
    with open(path, 'rb') as file:
        got = hashlib.file_digest(file, 'sha256').hexdigest()
    if got != expected:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise CheckpointError(
            f'{where["filename"]} of {where["repo_id"]}: the Hub states SHA-256 {expected}, the file received '
            f'has {got}. It was removed from the cache; fetch it again.'
        )


def resolve_weights(weights: WeightsLike, model: str) -> Path | None:
    """Find the file that ``weights`` means, and fetch it if it is released.

    Args:
        weights: True for the release's, a member of the enum or its name (``CLAY_V1_5`` or
            ``ClayLarge8_Weights.CLAY_V1_5``), a path, or None or False for random ones.
        model: name of the encoder's builder.

    Returns:
        The file, or None for random weights.

    Raises:
        CheckpointError: for True or a member where none were released for this size, an unknown member, or weights
            that cannot be fetched.
    """
    if weights is None or weights is False:
        return None
    members = ClayLarge8_Weights.__members__
    released = {w.meta['model']: w for w in members.values()}
    if weights is True:
        if model not in released:
            raise CheckpointError(
                f'weights=True: there are no released weights of {model}. Released: {", ".join(released)}. For weights '
                'of your own pretraining give weights= the path of its checkpoint; for random ones, False.'
            )
        return released[model].fetch()
    if isinstance(weights, str):
        enum, _, name = weights.rpartition('.')
        if enum == ClayLarge8_Weights.__name__ and name not in members:
            raise CheckpointError(f'No weights {weights!r}. Released: {list(members.values())}.')
        weights = members[name] if enum in ('', ClayLarge8_Weights.__name__) and name in members else weights
    if not isinstance(weights, ClayLarge8_Weights):
        return Path(weights)
    if weights.meta['model'] != model:
        raise CheckpointError(
            f'{weights!r} are weights of {weights.meta["model"]}, not of {model}. Of Clay v1.5 only the large model is '
            'released; for other sizes give weights= a checkpoint of your own pretraining, or None.'
        )
    return weights.fetch()
