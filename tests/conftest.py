# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Fixtures that every test may use: the checkout, real acquisitions beside it, the live reference model."""

import contextlib
import importlib
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import hypothesis
import pytest
import torch

pytest_plugins = ['isolation', 'forking']

# Nothing here asserts on wall time, and the first call of a function may take long.
hypothesis.settings.register_profile('default', deadline=None)
hypothesis.settings.load_profile('default')
# No test draws on a screen.
os.environ.setdefault('MPLBACKEND', 'Agg')

REPO = Path(__file__).resolve().parents[1]
REAL_DATA = REPO / '../shared/data/real'

# Set by the reference at import; see `_side_effects_undone`.
_CUDNN = 'TORCH_CUDNN_V8_API_DISABLED'


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker of a parallel run one thread, so that two of them do not fight over the cores."""
    if hasattr(config, 'workerinput'):
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    for item in items:
        if item.get_closest_marker('gpu') and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason='needs a CUDA device'))
        if item.get_closest_marker('real_data') and not REAL_DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason='needs the acquisitions in ../shared/data/real'))
        if item.get_closest_marker('network') and not os.environ.get('CLAY_TEST_NETWORK'):
            item.add_marker(pytest.mark.skip(reason='talks to other machines; set CLAY_TEST_NETWORK=1 to run it'))


@pytest.fixture(autouse=True)
def _no_network_but_loopback(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections to other machines, which a test would otherwise make unseen where there is a network."""
    if request.node.get_closest_marker('network'):
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ('127.0.0.1', '::1', 'localhost'):
            raise ConnectionRefusedError(f'a test without the mark `network` connects to {address}')
        connect(self, address)

    monkeypatch.setattr(socket.socket, 'connect', guarded)


@pytest.fixture(scope='session')
def repo_root() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope='session')
def real_data() -> Path:
    """The folder of real acquisitions; tests that ask for it carry the mark `real_data`."""
    if not REAL_DATA.is_dir():
        pytest.skip('needs the acquisitions in ../shared/data/real')
    return REAL_DATA.resolve()


@pytest.fixture(scope='session')
def cases(real_data: Path) -> Path:
    """The folder of files on which something once went wrong; tests that ask for it carry the mark `real_data`."""
    folder = real_data.parent / 'cases'
    if not folder.is_dir():
        pytest.skip('needs the files in ../shared/data/cases')
    return folder


@pytest.fixture(scope='session')
def eurosat_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EuroSAT as it lies on disk, four chips of 32 pixels in every split; channel i holds 100·(i + 1) and noise."""
    import numpy as np
    import rasterio
    from rasterio.transform import from_origin

    root = tmp_path_factory.mktemp('eurosat')
    rng = np.random.default_rng(0)
    names = []
    for number, kind in enumerate(('AnnualCrop', 'Forest', 'River', 'SeaLake')):
        folder = root / 'ds/images/remote_sensing/otherDatasets/sentinel_2/tif' / kind
        folder.mkdir(parents=True)
        pixels = (100 * np.arange(1, 14)[:, None, None] + rng.integers(0, 80, (13, 32, 32))).astype(np.uint16)
        with rasterio.open(
            folder / f'{kind}_1.tif',
            'w',
            driver='GTiff',
            count=13,
            height=32,
            width=32,
            dtype='uint16',
            crs='EPSG:32633',
            transform=from_origin(500_000 + 5000 * number, 5_600_000, 10, 10),
        ) as file:
            file.write(pixels)
        names.append(f'{kind}_1.jpg')
    for split in ('train', 'val', 'test'):
        (root / f'eurosat-{split}.txt').write_text('\n'.join(names))
    return root


@pytest.fixture(scope='session')
def torchgeo_data(real_data: Path) -> Path:
    """TorchGeo's own test data, random pixels in each dataset's format; tests carry the mark `real_data`."""
    folder = real_data.parent / 'torchgeo'
    if not folder.is_dir():
        pytest.skip("needs TorchGeo's test data in ../shared/data/torchgeo")
    return folder


@pytest.fixture(scope='session')
def tiny_scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of `ClayPretrainDataModule` for three tiny scenes of each of three unlike sensors, written once."""
    from torchgeo_clay.datasets import SyntheticScenes

    root = tmp_path_factory.mktemp('tiny') / 'scenes'
    synthetic = {'sensors': ['naip', 'sentinel-1-rtc', 'modis'], 'scenes_per_sensor': 3, 'size': 64}
    SyntheticScenes(root, **synthetic)
    return {
        'root': str(root),
        'synthetic': synthetic,
        'batch_size': 2,
        'patch_size': 32,
        'val_split': 0.3,
        'seed': 0,
    }


@pytest.fixture
def torchgeo_command() -> Iterator[Callable[..., None]]:
    """TorchGeo's command with its arguments, run in this process, whose environment it changes: here it is put back."""
    from torchgeo.main import main

    def run(*args: object) -> None:
        with mock.patch.object(sys, 'argv', ['torchgeo', *map(str, args)]):
            main()

    # Lightning's CLI calls what jsonargparse has renamed.
    with mock.patch.dict(os.environ, JSONARGPARSE_DEPRECATION_WARNINGS='off'):
        yield run


@contextlib.contextmanager
def _side_effects_undone() -> Iterator[None]:
    """Put back what importing the reference changes for the whole process."""
    precision, cudnn = torch.get_float32_matmul_precision(), os.environ.get(_CUDNN)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        if cudnn is None:
            os.environ.pop(_CUDNN, None)
        else:
            os.environ[_CUDNN] = cudnn


@pytest.fixture(scope='session')
def reference() -> Iterator[ModuleType]:
    """The module `src.model` of the released model (`claymodel` 1.5.0), an oracle fetched by `make test`.

    Looked for in the folder named by CLAY_REFERENCE, else in `.cache/reference`: the one that holds `src/model.py`.
    """
    root = Path(os.environ.get('CLAY_REFERENCE') or REPO / '.cache/reference').resolve()
    if not (root / 'src/model.py').is_file():
        pytest.skip('needs the live reference model: run `make reference`, or set CLAY_REFERENCE to its folder')
    before = set(sys.modules)
    sys.path.insert(0, str(root))
    try:
        with _side_effects_undone(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            module = importlib.import_module('src.model')
        yield module
    finally:
        sys.path.remove(str(root))
        for name in set(sys.modules) - before:
            if name == 'src' or name.startswith('src.'):
                del sys.modules[name]
