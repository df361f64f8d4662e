# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Tests do not affect each other: process-wide state is restored, fixtures that tests share are checked for changes."""

import logging
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

# Values of these types are compared as they are.
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def folder_listing(root: Path) -> tuple[Any, ...]:
    """Names, sizes and modification times of the files in a folder, or of one file."""
    files = sorted(root.rglob('*')) if root.is_dir() else [root] if root.exists() else []
    stats = [(str(path), path.stat(follow_symlinks=False)) for path in files]
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)


def fingerprint(value: Any) -> Any:
    """Return what changes if `value` is changed in place: cheap, and without a look at the numbers of a module.

    A module's weights count as changed by the version counter that torch increments with every in-place operation.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Path):
        return folder_listing(value)
    if isinstance(value, torch.Tensor):
        return id(value), value._version, value.requires_grad, value.grad is None
    if isinstance(value, np.ndarray):
        return value.shape, zlib.crc32(np.ascontiguousarray(value).view(np.uint8)) if value.dtype != object else None
    if isinstance(value, nn.Module):
        weights = {**dict(value.named_parameters()), **dict(value.named_buffers())}
        parts = {
            name: {k: v if isinstance(v, PLAIN) else id(v) for k, v in vars(part).items() if k != '_trainer'}
            | {'hooks': [len(v) for k, v in vars(part).items() if k.endswith('_hooks')]}
            for name, part in value.named_modules()
        }
        trainer = getattr(value, '_trainer', None) is not None
        return {'trainer attached': trainer, 'weights': fingerprint(weights), 'modules': parts}
    if isinstance(value, Mapping):
        return {key: fingerprint(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [fingerprint(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: fingerprint(getattr(value, field.name)) for field in fields(value)}
    return id(value)


def difference(before: Any, after: Any, where: str = '') -> str:
    """Return the first place where two fingerprints differ, '' if they do not."""
    if before == after:
        return ''
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(after.keys() - before.keys())]:
            found = difference(before.get(key, 'absent'), after.get(key, 'absent'), f'{where}[{key!r}]')
            if found:
                return found
    return f'{where or "the value"}: {str(before)[:200]} became {str(after)[:200]}'


@dataclass
class Shared:
    """A fixture's value that several tests see."""

    value: Any
    before: Any


SHARED: dict[pytest.FixtureDef[Any], Shared] = {}


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[Any]:
    """Remember what the value of a fixture wider than a test is like, and restore the environment it changed.

    TorchGeo's command sets GDAL's variables, which would outlive a test if such a fixture runs it.
    """
    environment = dict(os.environ)
    value = yield
    if fixturedef.scope != 'function':
        _restore_environment(environment)
    ours = not fixturedef.func.__module__.startswith('_pytest')
    if fixturedef.scope != 'function' and ours and not _outside(value, request):
        SHARED[fixturedef] = Shared(value, fingerprint(value))
    return value


def _outside(value: Any, request: pytest.FixtureRequest) -> bool:
    """Whether a value is a path that no test writes to: the checkout, or data beside it."""
    factory: pytest.TempPathFactory = request.session.config._tmp_path_factory
    return isinstance(value, Path) and not value.is_relative_to(factory.getbasetemp())


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[Any]) -> None:
    """Forget a fixture that is torn down."""
    SHARED.pop(fixturedef, None)


def changed_fixtures(names: list[str]) -> list[str]:
    """Describe the changes of shared fixtures since they were made, or since this was last called."""
    found = []
    for definition, shared in SHARED.items():
        if definition.argname in names:
            after = fingerprint(shared.value)
            if change := difference(shared.before, after):
                found.append(f'{definition.argname} ({definition.scope}): {change}')
                shared.before = after
    return found


def _logging_state() -> dict[str, tuple[Any, ...]]:
    loggers = [logging.root, *(v for v in logging.root.manager.loggerDict.values() if isinstance(v, logging.Logger))]
    return {log.name: (log, log.level, log.propagate, log.disabled, list(log.handlers)) for log in loggers}


def _restore_logging(state: dict[str, tuple[Any, ...]]) -> None:
    for log, level, propagate, disabled, handlers in state.values():
        if (log.level, log.propagate, log.disabled, log.handlers) != (level, propagate, disabled, handlers):
            log.setLevel(level)
            log.propagate, log.disabled, log.handlers[:] = propagate, disabled, handlers


def _restore_environment(state: dict[str, str]) -> None:
    for name in os.environ.keys() - state.keys():
        del os.environ[name]
    os.environ.update(state)


def _gdal_config() -> dict[str, Any]:
    """GDAL's options that TorchGeo's command sets: rasterio.Env makes one of the environment last beyond it."""
    from rasterio.env import get_gdal_config

    return {name: get_gdal_config(name) for name in ('GDAL_DISABLE_READDIR_ON_OPEN', 'GDAL_SWATH_SIZE')}


def _restore_gdal_config(state: dict[str, Any]) -> None:
    from rasterio._env import del_gdal_config, set_gdal_config

    for name, value in state.items():
        if value is None:
            del_gdal_config(name)
        else:
            set_gdal_config(name, value)


def _restore_figures(state: list[int]) -> None:
    if 'matplotlib.pyplot' in sys.modules:
        pyplot = sys.modules['matplotlib.pyplot']
        for number in set(pyplot.get_fignums()) - set(state):
            pyplot.close(number)


def _restore_list(target: list[str], state: list[str]) -> None:
    target[:] = state


# State of the process that libraries or tests set: read it, write it back.
STATE = {
    'environment': (lambda: dict(os.environ), _restore_environment),
    'options of GDAL': (_gdal_config, _restore_gdal_config),
    'working directory': (Path.cwd, os.chdir),
    'sys.argv': (lambda: list(sys.argv), lambda state: _restore_list(sys.argv, state)),
    'sys.path': (lambda: list(sys.path), lambda state: _restore_list(sys.path, state)),
    'logging': (_logging_state, _restore_logging),
    'figures': (list, _restore_figures),
    'dtype': (torch.get_default_dtype, torch.set_default_dtype),
    'gradients': (torch.is_grad_enabled, torch.set_grad_enabled),
    'threads': (torch.get_num_threads, torch.set_num_threads),
    'matmul precision': (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    'determinism': (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    'cudnn.benchmark': (
        lambda: torch.backends.cudnn.benchmark,
        lambda state: setattr(torch.backends.cudnn, 'benchmark', state),
    ),
}


@contextmanager
def restored() -> Iterator[None]:
    """Restore the state of the process afterwards."""
    before = {name: read() for name, (read, _) in STATE.items()}
    try:
        yield
    finally:
        for name, (read, write) in STATE.items():
            if name in ('figures', 'logging') or read() != before[name]:
                write(before[name])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed torch from the seed of the run and the test's name, as pytest-randomly does for `random` and NumPy."""
    seed = getattr(item.config.option, 'randomly_seed', 0)
    torch.manual_seed(zlib.crc32(f'{seed} {item.nodeid}'.encode()))


@pytest.fixture(autouse=True)
def _isolated(request: pytest.FixtureRequest) -> Iterator[None]:
    """Restore the state of the process; fail the test that changed a fixture which others see, too."""
    with restored():
        yield
    if changes := changed_fixtures(request.fixturenames):
        pytest.fail(
            f'{request.node.name} changed a fixture that other tests share: {"; ".join(changes)}', pytrace=False
        )
