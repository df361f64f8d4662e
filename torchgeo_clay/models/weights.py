# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Weights: reading files, the release's names, strict loading, and the Hub.

Files are mapped into memory, so of the release's 5.16 GB only the 1.25 GB of the encoder are ever read.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from ipaddress import ip_address
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    set_client_factory,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of requests, httpx or httpx2, by version
from huggingface_hub.utils import _http
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models._api import Weights, WeightsEnum

from torchgeo_clay.models.clay import GRADED, Clay, Position, position_problem
from torchgeo_clay.models.mae import ClayMAE

__all__ = (
    'Archive',
    'CheckpointError',
    'ClayLarge8_Weights',
    'WeightsLike',
    'check_file',
    'check_whole',
    'load_encoder',
    'load_mae',
    'read_checkpoint',
    'read_encoder',
    'released_name',
    'resolve_weights',
    'save_encoder',
    'tensor_digest',
    'write_safetensors',
)


# names ----------------------------------------------------------------------------------------------------------------

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
        name, matches = re.subn('^' + ours, released, name)
        if matches:
            break
    return name


def released_name(name: str) -> str:
    """Our name of a weight → the release's: ``blocks.0.attn.qkv.weight`` → ``transformer.layers.0.0.to_qkv.weight``."""
    if match := re.match(r'(patch_embed|head)\.kernels\.', name):
        prefix = match.group()
        return _translate(prefix, _TABLE) + _translate(name.removeprefix(prefix), _KERNELS)
    return _translate(name, _TABLE)


#: Plain values of a checkpoint: thousands, for the names of tensors and the settings; each takes up to 224 bytes.
_MOST_VALUES = 2_000_000

#: Size of a pickle, most of which may be text.
_MOST_BYTES = 2**28

# files ----------------------------------------------------------------------------------------------------------------


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message says why, and what can."""


class Archive:
    """The tensors of a weights file, read on request.

    Attributes:
        path: the file.
        shapes: the shapes of its tensors, by name.
        extra: the other contents of a checkpoint, or the metadata of a safetensors file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map a file into memory.

        Args:
            path: a Lightning or plain PyTorch checkpoint (zip format), or a ``.safetensors``.

        Raises:
            CheckpointError: if it is missing, truncated, neither of the formats, holds code, or no ``state_dict``.
        """
        self.path = Path(path)
        check_file(self.path)
        read = _map_safetensors if self.path.suffix == '.safetensors' else _map_checkpoint
        self._mapped, self.extra = read(self.path)
        self.shapes = {k: tuple(v.shape) for k, v in self._mapped.items()}

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Read the tensors of these names into memory of their own, on the CPU.

        Raises:
            CheckpointError: if all tensors are read and do not match the file's digest.
        """
        tensors = {k: self._mapped[k].detach().clone() for k in keys}
        expected = self.extra.get('sha256')
        if expected is not None and tensors.keys() == self.shapes.keys() and tensor_digest(tensors) != expected:
            raise CheckpointError(
                f'{self.path}: the tensors do not match the SHA-256 written with them: the file was damaged or '
                f'changed. Fetch it again{_cached(self.path)}.'
            )
        return tensors

    @cached_property
    def encoder(self) -> tuple[str, bool]:
        """Prefix of the encoder's names, and whether they are the release's.

        Raises:
            CheckpointError: if the file holds no encoder of Clay v1.5, or several.
        """
        for marker, released in ((_RELEASED, True), (_OURS, False)):
            found = [k.removesuffix(marker) for k in self.shapes if k == marker or k.endswith('.' + marker)]
            if len(found) == 1:
                if released:
                    _refuse_v1(self, found[0])
                return found[0], released
            if found:
                raise CheckpointError(f'{self.path}: holds {len(found)} encoders, under {found}; expected one.')
        raise CheckpointError(
            f'{self.path}: holds no Clay encoder. Expected a released checkpoint, one of our pretraining, or an '
            f'encoder-only .safetensors; its tensors are {list(self.shapes)[:4]} …'
        )

    @property
    def position(self) -> Position:
        """Position code that the encoder was trained with. Raises as :attr:`encoder`."""
        return 'graded' if self.encoder[0] + GRADED in self.shapes else 'release'

    @property
    def holds_teacher(self) -> bool:
        """Whether it holds a teacher's weights."""
        return any(re.search(r'(^|\.)teacher\.', k) for k in self.shapes)


def _cached(path: Path) -> str:
    """Name what to delete before a file of the Hub's cache is fetched again; the cache would give the same file."""
    return f': delete {path.resolve()} and {path} first' if path.resolve().parent.name == 'blobs' else ''


def check_file(path: Path) -> None:
    """Raise for a path that is no file, before it is opened: opening a pipe waits for someone to write into it.

    Raises:
        CheckpointError: for a path that does not exist, a folder, or anything else that is no plain file.
    """
    if path.is_file():
        return
    kind = 'a folder' if path.is_dir() else 'a pipe, a device or a socket' if path.exists() else ''
    expected = 'Expected a .ckpt or a .safetensors'
    if not kind:
        raise CheckpointError(f'No weights file at {path}. {expected}; check the path.')
    raise CheckpointError(f'No weights file at {path}: it is {kind}. {expected}; give the path of a file.')


def _check_pickle(path: Path) -> None:
    """Raise for a checkpoint whose plain values would take much memory, or that is no zip file. Reads no tensor.

    PyTorch stores, and does not deflate; so what a file takes in memory is about its size, but for its pickle, a byte
    of which can become an object of 200.

    Raises:
        CheckpointError: for such a file.
    """
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f'{path}: not a whole PyTorch checkpoint in zip format. Is it truncated? Fetch it again{_cached(path)}. '
            'Written by PyTorch before 1.6? Then load and save it with a newer one.'
        )
    excess = 'Expected tensors and some settings. If you trust it, load it yourself and save its state_dict alone.'
    try:
        with zipfile.ZipFile(path) as file:
            if any(part.compress_type != zipfile.ZIP_STORED for part in file.infolist()):
                raise CheckpointError(f'{path}: holds deflated parts, which PyTorch never writes. {excess}')
            for part in file.infolist():
                if part.filename.endswith('data.pkl') and _counts(file, part) > _MOST_VALUES:
                    raise CheckpointError(f'{path}: holds more than {_MOST_VALUES:,} plain values. {excess}')
    except (zipfile.BadZipFile, OSError, ValueError, IndexError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f'{path}: not a PyTorch checkpoint, or a damaged one ({error}). Fetch it again{_cached(path)}.'
        ) from error


def _counts(file: zipfile.ZipFile, part: zipfile.ZipInfo) -> int:
    """Return the number of operations of a pickle, up to more than :data:`_MOST_VALUES`, and bytes it would allocate.

    A pickle of fewer bytes has fewer operations.
    """
    content = file.read(part) if part.file_size < _MOST_BYTES else b''
    # a bytearray can be asked for any number of bytes; tensors have none
    if not content or re.search(rb'builtin\w*\nbytearray', content):
        return _MOST_VALUES + 1
    if part.file_size <= _MOST_VALUES:
        return part.file_size
    return sum(1 for _ in islice(pickletools.genops(content), _MOST_VALUES + 1))


def check_whole(path: Path) -> None:
    """Raise unless each part of a checkpoint has the checksum that was written with it. Reads all of it.

    Raises:
        CheckpointError: for a file that is damaged.
    """
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        damaged = str(error)
    if damaged is not None:
        raise CheckpointError(
            f'{path}: {damaged} does not match the checksum written with it: the file was damaged or changed. Copy it '
            'again, or give the checkpoint before it. (Written after torch.serialization.set_crc32_options(False)? '
            'Then load and save it without.)'
        )


def _map_safetensors(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Tensors and metadata of a safetensors file."""
    try:
        with safe_open(path, framework='pt') as file:
            return load_file(path), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f'{path}: not a whole .safetensors file ({error}). Is it truncated? Fetch it again{_cached(path)}.'
        ) from error


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Return what a checkpoint holds, its tensors mapped.

    Raises:
        CheckpointError: for a file that is missing, truncated, in another format, or holds code.
    """
    check_file(path)
    _check_pickle(path)
    try:
        contents = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f'{path}: holds more than tensors and plain values: code, which is never run here. If you trust it, load '
            'it yourself and save its state_dict alone. PyTorch says: ' + str(error).strip().split('\n')[-1]
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise CheckpointError(
            f'{path}: not a PyTorch checkpoint, or a damaged one ({error}). Fetch it again{_cached(path)}.'
        ) from error
    if not isinstance(contents, Mapping):
        raise CheckpointError(f'{path}: expected a checkpoint with a state_dict, got a {type(contents).__name__}.')
    return contents


def _map_checkpoint(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """The state dict of a checkpoint, and its other contents."""
    contents = read_checkpoint(path)
    state = contents.get('state_dict', contents)
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()) or not state:
        raise CheckpointError(
            f'{path}: expected a state_dict of tensors, or a checkpoint that holds one; found {list(contents)[:8]}.'
        )
    return state, {k: v for k, v in contents.items() if k != 'state_dict'} if state is not contents else {}


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


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f'{key} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_safetensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    """Write tensors, their digest and further metadata, atomically.

    Raises:
        ValueError: unless the path ends in ``.safetensors``.
        OutputError: if the file cannot be written.
    """
    if Path(path).suffix != '.safetensors':
        raise ValueError(f'Expected a path that ends in .safetensors, got {path}.')
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    from torchgeo_clay.writers.atomic import atomic  # with pyarrow behind it, which reading weights does without

    with atomic(path) as partial:
        save_file(tensors, partial, {**metadata, 'sha256': tensor_digest(tensors)})


def save_encoder(model: Clay, path: str | os.PathLike[str]) -> None:
    """Write the encoder alone, under the release's names, to a ``.safetensors`` with the SHA-256 of its tensors."""
    state = {released_name(k): v for k, v in model.state_dict().items() if not re.match(_HEADS, k)}
    write_safetensors(state, path, {'format': 'pt', 'model': 'Clay v1.5 encoder'})


# strict loading -------------------------------------------------------------------------------------------------------


def _encoder_size(archive: Archive) -> tuple[int, int, int]:
    """Width, depth and hidden width of the encoder in a file."""
    prefix, released = archive.encoder

    def shape(name: str) -> tuple[int, ...] | None:
        return archive.shapes.get(prefix + (released_name(name) if released else name))

    depth = next(i for i in count() if not shape(f'blocks.{i}.norm1.weight'))
    return (shape('cls_token') or (0,))[-1], depth, (shape('blocks.0.mlp.fc1.weight') or (0,))[0]


def _size_hint(archive: Archive) -> str:
    """Describe the encoder in a file."""
    width, depth, _ = _encoder_size(archive)
    name = _SIZES.get((width, depth))
    hint = f' The file holds an encoder {width} wide and {depth} deep'
    hint += f', which is clay_{name}_patch8' if name else ''
    if name == 'base' and archive.encoder[1]:
        hint += ', or the v1 model (made-with-clay/Clay-legacy), which is another architecture and not for this package'
    return hint + '.'


def _gather(archive: Archive, module: nn.Module, prefix: str, released: bool) -> dict[str, Tensor]:
    """The tensors of a file for a module, under our names, after comparing all names and shapes."""
    if isinstance(module, Clay) and archive.position != module.position:
        problem = position_problem(archive.position, module.position)
        raise CheckpointError(f'{archive.path}: expected weights with the position code of the model. {problem}')
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
    return {here: _converted(archive, there, tensors.pop(there), expected[here].dtype) for there, here in names.items()}


def _converted(archive: Archive, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of a file in the model's type; raise for kinds of numbers and values that weights never have."""
    if tensor.dtype != dtype and not (tensor.is_floating_point() and dtype.is_floating_point):
        raise CheckpointError(
            f'{archive.path}: {name} is {tensor.dtype}, the model expects {dtype}. Quantized weights are not read: '
            'give those of float32, float16 or bfloat16.'
        )
    converted = tensor.to(dtype)
    if not converted.isfinite().all():
        raise CheckpointError(
            f'{archive.path}: {name} holds {int((~converted.isfinite()).sum())} values that are not finite numbers in '
            f'{dtype}: every output would be NaN. The training diverged, or the file is damaged: use a checkpoint '
            f'before that, or fetch it again{_cached(archive.path)}.'
        )
    return converted


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


def load_encoder(model: Clay, path: str | os.PathLike[str] | Archive) -> Clay:
    """Load an encoder's weights, strictly.

    Args:
        model: the encoder; one on the meta device takes the tensors, so that no memory is used twice.
        path: a released checkpoint, a checkpoint of our own pretraining or of a task, or an encoder-only
            ``.safetensors``; or one that is open.

    Returns:
        The model. Its classification head, if it has one, keeps its weights, or is new.

    Raises:
        CheckpointError: for files that cannot be read, hold another model, do not match in a name, shape or kind of
            number, or hold values that are not finite.
    """
    archive = path if isinstance(path, Archive) else Archive(path)
    if any('.lora_A.' in k for k in archive.shapes):
        raise CheckpointError(
            f'{archive.path}: holds an encoder with separate LoRA adapters. Load the task with load_from_checkpoint '
            'and write its encoder with export(), which merges them; then give that file.'
        )
    _assign(model, _gather(archive, model, *archive.encoder))
    return model


def load_mae(model: ClayMAE, path: str | os.PathLike[str] | Archive) -> ClayMAE:
    """Load an autoencoder's weights, strictly: encoder, decoder and, where the model has them, projection and teacher.

    Args:
        model: the autoencoder. A teacher is loaded only if it has no weights yet (is on the meta device).
        path: a released checkpoint, or one of our own pretraining; or one that is open.

    Returns:
        The model.

    Raises:
        CheckpointError: see :func:`load_encoder`; also for a file that holds only the encoder.
    """
    archive = path if isinstance(path, Archive) else Archive(path)
    prefix, released = archive.encoder
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
    parts: dict[str, nn.Module] = {'encoder.': model.encoder, 'decoder.': model.decoder}
    if model.proj is not None:
        parts['proj.'] = model.proj
    if model.teacher is not None and any(p.is_meta for p in model.teacher.parameters()):
        parts['teacher.'] = model.teacher
    # a projection's names are the same, a teacher's are timm's; all are compared before any is loaded
    states = {k: _gather(archive, part, stem + k, released and k != 'teacher.') for k, part in parts.items()}
    for k, part in parts.items():
        _assign(part, states.pop(k))
    return model


def read_encoder(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read an encoder's weights of any size under our names. Path and errors as :func:`load_encoder`."""
    archive = Archive(path)
    width, depth, hidden = _encoder_size(archive)
    with torch.device('meta'):  # for its names and shapes, on which the number of heads has no influence
        model = Clay(embed_dim=width, depth=depth, num_heads=1, mlp_ratio=hidden / width, position=archive.position)
    return load_encoder(model, archive).state_dict()


# the Hub --------------------------------------------------------------------------------------------------------------

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

    def fetch(self, cache_dir: str | Path | None = None) -> Path:
        """Fetch the file through the Hub's cache (``HF_HOME``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` are respected).

        It is compared with the SHA-256 that the server states, as the release publishes none.

        Args:
            cache_dir: another cache than the Hub's own.

        Returns:
            The path of the file.

        Raises:
            CheckpointError: if the Hub cannot be reached, answers with another commit, without a SHA-256 or from a host
                without TLS (other than this machine), or if the file received does not have its SHA-256.
        """
        where = {'repo_id': self.meta['hf_repo'], 'filename': self.meta['filename'], 'revision': self.meta['revision']}
        cached = try_to_load_from_cache(**where, cache_dir=cache_dir)
        if isinstance(cached, str):
            return Path(cached)
        try:
            with _guarded_client(self.meta['revision']):
                path = Path(hf_hub_download(**where, cache_dir=cache_dir))
                expected = path.resolve().name  # the Hub's cache names a large file by its SHA-256
                if not _SHA256.fullmatch(expected):  # but not where there are no links, as on Windows
                    expected = str(get_hf_file_metadata(hf_hub_url(**where)).etag)
        except CheckpointError:
            raise
        except (OSError, RuntimeError, ValueError, HTTPError) as error:
            cause = '' if str(error.__cause__) in str(error) else f' ({error.__cause__})'
            raise CheckpointError(
                f'{self!r}: {where["filename"]} of {where["repo_id"]} could not be fetched: '
                f'{error}{cause} Offline? Fetch it where there is a network, and copy the Hub cache, or give weights= '
                'the path of the file.'
            ) from error
        _verify(path, expected, Path(cache_dir or constants.HF_HUB_CACHE))
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


#: A SHA-256 as text.
_SHA256 = re.compile('[0-9a-f]{64}')


def _check_request(request: Any) -> None:
    """Raise for an address without TLS that is not this machine: whoever is in between could send another file."""
    host = request.url.host
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == 'localhost'
    if request.url.scheme != 'https' and not local:
        raise CheckpointError(
            f'The weights would come from {request.url.scheme}://{host}: expected https, as anyone on the way could '
            'change them. Is HF_ENDPOINT set to a mirror without TLS? Fetch the file by other means and give weights= '
            'its path.'
        )


def _check_response(response: Any, revision: str) -> None:
    """Raise for headers of the Hub that are not what they should be; huggingface_hub makes paths of them."""
    headers = response.headers
    commit, etag = headers.get('X-Repo-Commit'), headers.get('X-Linked-Etag') or headers.get('ETag')
    if commit is not None and commit != revision:
        raise CheckpointError(f'The Hub answers with commit {commit[:80]!r}; expected {revision}, which is pinned.')
    digests = [headers['X-Xet-Hash']] if 'X-Xet-Hash' in headers else []
    if 'X-Linked-Etag' in headers or (commit is not None and etag is not None and response.status_code < 400):
        digests.append(etag.removeprefix('W/').strip('"'))
    if wrong := [digest for digest in digests if not _SHA256.fullmatch(digest)]:
        raise CheckpointError(
            f'The Hub states {wrong[0][:80]!r} for the weights; expected a SHA-256, 64 hexadecimal digits. Is '
            'HF_ENDPOINT set to a mirror that hides it? Use another, or give weights= the path of the file.'
        )


@contextmanager
def _guarded_client(revision: str) -> Iterator[None]:
    """Check each request and response of huggingface_hub before it acts on them."""
    factory = _http._GLOBAL_CLIENT_FACTORY  # it has a setter alone; a user's own (proxy, certificates) is kept

    def guarded() -> Any:
        client: Any = factory()
        hooks = client.event_hooks
        client.event_hooks = {
            'request': [*hooks['request'], _check_request],
            'response': [*hooks['response'], lambda response: _check_response(response, revision)],
        }
        return client

    set_client_factory(guarded)
    try:
        yield
    finally:
        set_client_factory(factory)


def _verify(path: Path, expected: str, cache: Path) -> None:
    """Compare a fetched file with the Hub's SHA-256, and remove it from the cache if they differ."""
    with open(path, 'rb') as file:
        got = hashlib.file_digest(file, 'sha256').hexdigest()
    if got != expected:
        for each in {path.resolve(), path}:
            if each.parent.resolve().is_relative_to(cache.resolve()):
                each.unlink(missing_ok=True)
        raise CheckpointError(
            f'{path.name}: the Hub states SHA-256 {expected}, the file received has {got}. It was removed from the '
            'cache; fetch it again.'
        )


def resolve_weights(weights: WeightsLike, model: str, cache_dir: str | Path | None = None) -> Path | None:
    """Find the file that ``weights`` means, and fetch it if it is released.

    Args:
        weights: True for the release's, a member of the enum or its name (``CLAY_V1_5`` or
            ``ClayLarge8_Weights.CLAY_V1_5``), a path, or None or False for random ones.
        model: name of the encoder's builder.
        cache_dir: as :meth:`ClayLarge8_Weights.fetch`.

    Returns:
        The file, or None for random weights.

    Raises:
        CheckpointError: for True or a member where none were released for this size, an unknown member, or weights
            that cannot be fetched.
    """
    if weights is None or weights is False:
        return None
    if isinstance(weights, str):
        members = ClayLarge8_Weights.__members__
        name = weights.removeprefix(f'{ClayLarge8_Weights.__name__}.')
        if name != weights and name not in members:
            raise CheckpointError(f'No weights {weights!r}. Released: {list(members.values())}.')
        weights = members.get(name, weights)
        if isinstance(weights, str) and re.match(r'[a-z0-9+]+://', weights):
            raise CheckpointError(
                f'weights={weights!r}: expected the path of a file, as nothing is downloaded from an address. Fetch it '
                'and give its path; True fetches the released weights.'
            )
    if isinstance(weights, str | os.PathLike):
        return Path(weights)
    released: Any = ClayLarge8_Weights.CLAY_V1_5 if weights is True else weights
    if released.meta['model'] != model:
        raise CheckpointError(
            f'There are no released weights of {model}: of Clay v1.5 only the large model is released '
            f'({released.meta["model"]}). For your own give weights= the path of the checkpoint (in timm the file of '
            'pretrained_cfg_overlay), for random ones False.'
        )
    return released.fetch(cache_dir)
