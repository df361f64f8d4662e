# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Every YAML of configs/ with its own callbacks on two processes: none waits for another that never comes."""

from pathlib import Path
from typing import Any, NamedTuple

import geopandas
import pytest
import rasterio
import torch
from config_data import DATA, DOWNSTREAM, PREDICTION, PRETRAINING, TORCHGEO_DATA, one_step, smaller
from ranks import Run, start

from torchgeo_clay.models import clay_tiny_patch8, save_encoder

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('ranks')]

#: Configuration of a prediction → the one whose checkpoint it takes.
TRAINED = {'clay_map': 'clay_synthetic_segmentation', 'clay_detect': 'clay_synthetic_detection'}

#: Configurations whose test data are two samples, one for each process.
TWO_SAMPLES = (
    'clay_eurosat_full', 'clay_eurosat_lora', 'clay_eurosat_probe', 'clay_hyspecnet', 'clay_landcoverai', 'clay_levircd'
)  # fmt: skip


#: TorchGeo unpacks the archive of its test data in each process, one of which then reads half a file of the other.
UNPACKED_TWICE = 'clay_chesapeake'


def lacks_data(config: Path) -> bool:
    """Whether a configuration needs data that are not in the repository."""
    return config in DOWNSTREAM and DATA[config.stem].__name__ == 'shared_options' and not TORCHGEO_DATA.is_dir()


def predict(config: Path, folder: Path, scenes: str) -> list[str]:
    """Options that let a configuration predict one scene with a tiny model."""
    chips = ['--data.chip=32', f'--data.paths={scenes}', f'--trainer.default_root_dir={folder}']
    if config.stem == 'clay_embed':
        torch.manual_seed(0)
        save_encoder(clay_tiny_patch8(), folder / 'tiny.safetensors')
        model = ['--model.model=clay_tiny_patch8', f'--model.weights={folder}/tiny.safetensors']
        return [f'--config={config}', *chips, *model, f'--trainer.callbacks.out={folder}/out.parquet']
    (checkpoint,) = (folder.parent / TRAINED[config.stem]).rglob('last.ckpt')
    out = folder / ('out.parquet' if config.stem == 'clay_detect' else 'maps')
    options = [f'--ckpt_path={checkpoint}', f'--trainer.callbacks.out={out}', '--trainer.callbacks.any_sensor=true']
    return [f'--config={config}', *chips, *options, '--data.stride=16']


class Runs(NamedTuple):
    """Runs by the name of their configuration, and the exit codes of their ranks."""

    runs: dict[str, Run]
    codes: dict[str, list[int]]


@pytest.fixture(scope='module')
def done(tiny_scenes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs, done once: what is imported for one of them is there for all."""
    root = tmp_path_factory.mktemp('two')
    fits: dict[str, list[str]] = {}
    for config in [*PRETRAINING, *DOWNSTREAM]:
        if not lacks_data(config) and config.stem != UNPACKED_TWICE:
            folder = root / config.stem
            folder.mkdir()
            options = smaller(config, tiny_scenes, folder) if config in PRETRAINING else one_step(config, folder)
            fits[config.stem] = options
            if config.stem in TWO_SAMPLES:
                fits[config.stem].append('--data.datamodule.batch_size=1')
    runs = {name: Run(str(root / name), 2, options) for name, options in fits.items()}
    codes = start([*runs.values()])
    (scene, *_) = sorted(Path(tiny_scenes['root']).rglob('naip/*.tif'))
    for config in PREDICTION:
        folder = root / config.stem
        folder.mkdir()
        runs[config.stem] = Run(str(folder), 2, predict(config, folder, str(scene)), command='predict')
    codes += start([runs[config.stem] for config in PREDICTION])
    return Runs(runs, dict(zip(runs, codes, strict=True)))


@pytest.mark.parametrize('config', [*PRETRAINING, *DOWNSTREAM], ids=lambda path: path.stem)
def test_fit(config: Path, done: Runs) -> None:
    if lacks_data(config):
        pytest.skip("needs TorchGeo's test data in ../shared/data/torchgeo")
    if config.stem == UNPACKED_TWICE:
        pytest.skip('TorchGeo unpacks its test data in both processes at once')
    run = done.runs[config.stem]
    assert done.codes[config.stem] == [0, 0], run.told(0) + run.told(1)
    (last,) = Path(run.folder).rglob('last.ckpt')
    assert torch.load(last, weights_only=False)['global_step'] == (3 if config in PRETRAINING else 1)
    if config in PRETRAINING:
        assert {path.name.split('-epoch')[0] for path in Path(run.folder).rglob('*.png')} >= {'naip', 'modis'}


@pytest.mark.parametrize('config', PREDICTION, ids=lambda path: path.stem)
def test_predict_one_scene(config: Path, done: Runs) -> None:
    run = done.runs[config.stem]
    assert done.codes[config.stem] == [0, 0], run.told(0) + run.told(1)
    if config.stem == 'clay_map':
        (path,) = Path(run.folder, 'maps').glob('*.tif')
        with rasterio.open(path) as file:
            assert file.shape == (64, 64)
    else:
        table = geopandas.read_parquet(Path(run.folder, 'out.parquet'))
        assert len(table) == 4 or config.stem == 'clay_detect'
