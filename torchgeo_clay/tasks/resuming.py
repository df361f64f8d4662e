# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""``--ckpt_path`` of TorchGeo's command: which file is meant, and whether it can be used, before any data are read.

Lightning's command opens the file before it makes a task, and reports what PyTorch says of it, which does not name the
file; a pipe it opens after the data are there, and waits. So this is put before that step when the package is imported.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

from torchgeo_clay.models.weights import CheckpointError, check_whole, read_checkpoint

__all__ = ('check_before_lightning', 'newest_checkpoint')

#: What Lightning takes for ``ckpt_path`` besides paths.
_KEYWORDS = ('best', 'last', 'hpc', 'registry')


def check_before_lightning() -> None:
    """Check ``--ckpt_path`` in every command line of Lightning's from now on; once is enough."""
    original = LightningCLI._parse_ckpt_path
    if hasattr(original, '__wrapped__'):
        return

    @functools.wraps(original)
    def checked(self: LightningCLI) -> None:
        command = self.config.get('subcommand')
        options = self.config.get(command) if command else None
        if options and options.get('ckpt_path'):
            _check(command, options)
        original(self)

    LightningCLI._parse_ckpt_path = checked  # type: ignore[method-assign]


def _check(command: str, options: Namespace) -> None:
    """Find the file that is meant by ``last``, and raise if a file cannot be used.

    Raises:
        CheckpointError: naming the file.
    """
    path = os.fspath(options['ckpt_path'])
    if path == 'last' and (newest := newest_checkpoint(options['trainer'])):
        options['ckpt_path'] = path = str(newest)
    if '://' in path or path.split(':')[0] in _KEYWORDS or _is_sharded(Path(path)):
        return
    if path.endswith('.safetensors'):
        raise CheckpointError(
            f'{path}: expected a checkpoint of a run, got weights alone. Give them to --model.weights.'
        )
    contents = read_checkpoint(Path(path))
    check_whole(Path(path))
    wanted = ('pytorch-lightning_version', 'state_dict', *(('optimizer_states', 'loops') if command == 'fit' else ()))
    if missing := [name for name in wanted if name not in contents]:
        raise CheckpointError(
            f'{path}: expected a checkpoint of a run, found none of its {", ".join(missing)}: it holds weights alone. '
            'Give them to --model.weights.'
        )
    if command == 'fit':
        _check_task(path, contents, options)


def _check_task(path: str, contents: Mapping[str, Any], options: Namespace) -> None:
    """Raise for a checkpoint of another task than the one to go on with, which Lightning would train instead."""
    names = (contents.get('hyper_parameters', {}).get('_class_path'), options.get('model.class_path'))
    saved, given = (_class(name) for name in names)
    if saved is None or given is None or issubclass(saved, given) or issubclass(given, saved):
        return
    if any(task.__module__.startswith('torchgeo_clay.') for task in (saved, given)):
        raise CheckpointError(
            f'{path}: expected a checkpoint of {given.__name__}, got one of {saved.__name__}. To go on with that run, '
            'give the --config that it began with; to begin with its encoder, give the file to --model.weights.'
        )


def _class(name: str | None) -> type | None:
    """Return the class of that name, or None."""
    module, _, kind = (name or '').rpartition('.')
    try:
        found = getattr(importlib.import_module(module), kind) if module else None
    except (ImportError, AttributeError):  # of another project that is not here
        return None
    return found if isinstance(found, type) else None


def _is_sharded(path: Path) -> bool:
    """Return whether a folder is a checkpoint of FSDP or DeepSpeed."""
    return path.is_dir() and ((path / '.metadata').exists() or (path / 'checkpoint').is_dir())


def newest_checkpoint(trainer: Namespace) -> Path | None:
    """Return the file that ``last`` means where a logger has a folder per run, as Lightning looks in the next one only.

    Args:
        trainer: the arguments of the trainer.

    Returns:
        The newest ``last.ckpt`` of the logger's folders, or None if there is none or the folder is always the same.
    """
    callbacks = trainer.get('callbacks') or []
    options = [c.get('init_args', {}) for c in (callbacks if isinstance(callbacks, list) else [callbacks])]
    logger = trainer.get('logger')
    logger = logger[0] if isinstance(logger, list) and logger else logger
    if logger is False or any(o.get('dirpath') for o in options):
        return None
    given = logger.get('init_args', {}) if isinstance(logger, Namespace) else {}
    if given.get('version') is not None:
        return None
    folder = Path(given.get('save_dir') or trainer.get('default_root_dir') or '.')
    folder /= (given.get('name') or '') if 'name' in given else 'lightning_logs'
    found = folder.glob(
        f'version_*/checkpoints/{ModelCheckpoint.CHECKPOINT_NAME_LAST}*{ModelCheckpoint.FILE_EXTENSION}'
    )
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
