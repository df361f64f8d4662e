# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The datamodule as Lightning and a user see it."""

import logging
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.datamodules import ClayPretrainDataModule
from torchgeo_clay.sensors import SENSORS

# runs are resumed without the callback that saved them
pytestmark = pytest.mark.filterwarnings('ignore:Be aware that when using `ckpt_path`:UserWarning')

OPTIONS = {'batch_size': 3, 'patch_size': 16, 'val_split': 0.3, 'seed': 1}


class Recorder(pl.LightningModule):
    """Learns one number, and writes down which samples it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple] = []
        self.validated: list[tuple] = []

    def digest(self, batch) -> tuple:
        sums = batch['image'].double().sum((1, 2, 3)) + batch['noise'].double().sum(1)
        return (self.current_epoch, batch['sensor'], tuple(batch['index'].tolist()), tuple(sums.tolist()))

    def training_step(self, batch):
        loss = ((self.weight - batch['image'].mean()) ** 2).mean()
        self.seen.append((*self.digest(batch), loss.item()))
        return loss

    def validation_step(self, batch):
        self.validated.append(self.digest(batch)[1:])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Die(Callback):
    """Ends a run as a crash would, in the middle of a step or between two."""

    def __init__(self, step: int, within: bool) -> None:
        self.step, self.within = step, within

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.within and trainer.global_step == self.step:
            raise RuntimeError('died')

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if not self.within and trainer.global_step == self.step:
            raise RuntimeError('died')


class SaveOnException(Callback):
    """Saves what there is when a run fails."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer, module, exception):
        trainer.save_checkpoint(self.path)


def fit(root: Path, *callbacks: Callback, ckpt=None, folder: Path | None = None, trainer=None, **options) -> Recorder:
    module = Recorder()
    pl.Trainer(
        accelerator='cpu',
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{'max_epochs': 3, **(trainer or {})},
    ).fit(module, datamodule=ClayPretrainDataModule(root, **OPTIONS | options), ckpt_path=ckpt)
    return module


@pytest.fixture
def datamodule(root) -> ClayPretrainDataModule:
    data = ClayPretrainDataModule(root, **OPTIONS)
    data.prepare_data()
    data.setup('fit')
    return data


def test_batches(datamodule):
    loader = datamodule.train_dataloader()
    sensors = []
    for raw in loader:
        raw = datamodule.on_before_batch_transfer(raw, 0)
        batch = datamodule.on_after_batch_transfer(raw, 0)
        sensor = SENSORS[batch['sensor']]
        sensors.append(sensor.name)
        c = len(sensor)
        shapes = {
            'image': (3, c, 16, 16), 'target': (3, c, 16, 16), 'valid': (3, 1, 16, 16), 'band_mask': (3, c),
            'noise': (3, 4), 'wavelength': (3, c), 'res': (3,), 'lat': (3,), 'lon': (3,), 'time': (3,), 'index': (3,),
        }  # fmt: skip
        assert {k: tuple(v.shape) for k, v in batch.items() if torch.is_tensor(v)} == shapes
        assert batch['lat'].dtype == batch['lon'].dtype == batch['time'].dtype == torch.float64
        np.testing.assert_allclose(batch['wavelength'].numpy(), [sensor.wavelengths] * 3, rtol=1e-6)
        mean, std = (np.array(v)[:, None, None] for v in (sensor.mean, sensor.std))
        expected = (raw['image'].numpy().astype(np.float64) - mean) / std
        np.testing.assert_allclose(batch['target'].numpy(), expected, atol=1e-5)
        hidden = ~batch['band_mask']
        assert not batch['image'][hidden].any()
        assert torch.equal(batch['image'][~hidden], batch['target'][~hidden])
        assert Conditioning.from_batch(batch).wavelengths.shape == (c,)
        assert batch['selection'] == sensor
    assert sensors.count('naip') == sensors.count('linz') == len(loader) // 2


def test_pixels_without_data_are_zero_after_normalizing(tmp_path, scene):
    scene(tmp_path / 'naip/a.tif', size=(64, 64), nodata=-9999, holes=np.arange(64)[:, None] % 4 == 0)
    data = ClayPretrainDataModule(tmp_path, **OPTIONS)
    data.setup('fit')
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    holes = ~batch['valid'].expand_as(batch['target'])
    assert holes.float().mean().item() == pytest.approx(0.25)
    assert not batch['target'][holes].any()
    assert batch['target'][~holes].all()


def test_train_and_validation_share_no_scene(datamodule):
    for name in ('naip', 'linz'):
        train, val = ({r.path for r in datamodule._parts[s][name].regions} for s in ('train', 'val'))
        assert train
        assert val
        assert not train & val
    assert datamodule.val_dataset.sizes == {'naip': 18, 'linz': 4}


def test_number_of_workers_changes_nothing(root):
    one, two = fit(root, trainer={'max_epochs': 2}), fit(root, num_workers=2, trainer={'max_epochs': 2})
    assert one.seen == two.seen
    assert one.validated == two.validated


def test_validation_is_the_same_in_every_epoch(root):
    module = fit(root, trainer={'num_sanity_val_steps': 0})
    each = len(module.validated) // 3
    epochs = [module.validated[i * each : (i + 1) * each] for i in range(3)]
    assert epochs[0] == epochs[1] == epochs[2]
    numbers = sorted((s, n) for s, ns, _ in epochs[0] for n in ns)
    assert numbers == sorted([('naip', n) for n in range(18)] + [('linz', n) for n in range(4)])


@pytest.mark.parametrize(('died', 'workers'), [(4, 0), (9, 0), (13, 2), (18, 0), (20, 0), (35, 0)])
def test_a_killed_run_resumed_is_an_uninterrupted_run(root, tmp_path, died, workers):
    whole = fit(root).seen
    assert len(whole) == 54
    saved = ModelCheckpoint(tmp_path / 'saved', every_n_train_steps=3, filename='{step}', save_top_k=-1)
    with pytest.raises(RuntimeError, match='died'):
        fit(root, saved, Die(died, within=True), folder=tmp_path, num_workers=workers)
    last = died // 3 * 3
    resumed = fit(root, ckpt=tmp_path / f'saved/step={last}.ckpt', num_workers=workers).seen
    assert [s[:-1] for s in resumed] == [s[:-1] for s in whole[last:]]
    np.testing.assert_allclose([s[-1] for s in resumed], [s[-1] for s in whole[last:]], rtol=1e-5)


@pytest.mark.parametrize('limit', [{'max_epochs': -1, 'max_steps': 54}, {'limit_train_batches': 10}])
def test_a_killed_run_resumed_with_limits(root, tmp_path, limit):
    whole = fit(root, trainer=limit).seen
    saved = ModelCheckpoint(tmp_path / 'saved', every_n_train_steps=4, filename='{step}', save_top_k=-1)
    with pytest.raises(RuntimeError, match='died'):
        fit(root, saved, Die(27, within=True), folder=tmp_path, trainer=limit)
    assert fit(root, ckpt=tmp_path / 'saved/step=24.ckpt', trainer=limit).seen == whole[24:]


@pytest.mark.parametrize('died', [4, 18, 22])
def test_a_task_that_asks_for_the_number_of_steps_resumes_too(root, tmp_path, died, monkeypatch):
    """Lightning makes the loader then, before it has read the state of the loops."""

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches == 54
        return torch.optim.SGD(self.parameters(), lr=0.1)

    monkeypatch.setattr(Recorder, 'configure_optimizers', configure_optimizers)
    whole = fit(root).seen
    with pytest.raises(RuntimeError, match='died'):
        fit(root, SaveOnException(tmp_path / 'saved.ckpt'), Die(died, within=True), folder=tmp_path)
    assert fit(root, ckpt=tmp_path / 'saved.ckpt').seen == whole[died:]


def test_validating_a_checkpoint_leaves_training_alone(root, tmp_path):
    with pytest.raises(RuntimeError, match='died'):
        fit(root, SaveOnException(tmp_path / 'saved.ckpt'), Die(22, within=True), folder=tmp_path)
    data, module = ClayPretrainDataModule(root, **OPTIONS), Recorder()
    options = {'accelerator': 'cpu', 'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False}
    pl.Trainer(**options).validate(module, datamodule=data, ckpt_path=tmp_path / 'saved.ckpt', verbose=False)
    pl.Trainer(**options, enable_model_summary=False, max_epochs=1).fit(module, datamodule=data)
    assert [s[:4] for s in module.seen] == [s[:4] for s in fit(root, trainer={'max_epochs': 1}).seen]


def test_what_an_exception_saves_is_what_was_trained_on(root, tmp_path):
    whole = fit(root).seen
    with pytest.raises(RuntimeError, match='died'):
        fit(root, SaveOnException(tmp_path / 'saved.ckpt'), Die(22, within=True), folder=tmp_path)
    assert fit(root, ckpt=tmp_path / 'saved.ckpt').seen == whole[22:]


@pytest.mark.parametrize('after_training', [True, False])
@pytest.mark.parametrize('limit', [{'max_epochs': 3}, {'max_epochs': -1, 'max_steps': 54}])
def test_a_run_resumed_at_the_end_of_an_epoch(root, tmp_path, limit, after_training):
    whole = fit(root, trainer=limit).seen
    saved = ModelCheckpoint(
        tmp_path / 'saved', every_n_epochs=1, filename='{epoch}', save_top_k=-1, save_on_train_epoch_end=after_training
    )
    fit(root, saved, folder=tmp_path, trainer={'max_epochs': 2})
    assert fit(root, ckpt=tmp_path / 'saved/epoch=0.ckpt', trainer=limit).seen == whole[18:]


def test_resuming_with_another_batch_size(root, tmp_path):
    saved = ModelCheckpoint(tmp_path / 'saved', every_n_train_steps=3, filename='{step}', save_top_k=-1)
    with pytest.raises(RuntimeError, match='died'):
        fit(root, saved, Die(4, within=False), folder=tmp_path)
    with pytest.raises(ValueError, match=r'batch_size × devices: expected 3, got 2'):
        fit(root, ckpt=tmp_path / 'saved/step=3.ckpt', batch_size=2)


def test_overfit_batches_repeat(root):
    module = fit(root, trainer={'overfit_batches': 4})
    assert [s[1:4] for s in module.seen[:4]] == [s[1:4] for s in module.seen[4:8]]


def test_summary(root, caplog, scene):
    (root / 'naip/broken.tif').write_bytes(b'')
    scene(root / 'naip/empty.tif', nodata=-9999, holes=np.ones((48, 48), bool))
    scene(root / 'naip/small.tif', size=(10, 48))
    scene(root / 'naip/few.tif', bands=2)
    scene(root / 'naip/no_crs.tif', crs=None)
    (root / 'naip/readme.doc').write_text('notes')
    data = ClayPretrainDataModule(root, **OPTIONS)
    with caplog.at_level(logging.INFO), pytest.warns(UserWarning, match='naip: skipped 5 files') as caught:
        data.setup('fit')
    said = str(caught[0].message)
    for name, reason in [
        ('broken.tif', 'zero bytes'), ('empty.tif', 'all pixels are nodata'), ('few.tif', 'too few bands'),
        ('no_crs.tif', 'gsd='), ('readme.doc', 'neither a raster'),
    ]:  # fmt: skip
        assert any(name in line and reason in line for line in said.splitlines())
    line = next(r.message for r in caplog.records if r.message.startswith('naip: 6 scenes'))
    assert 'GSD 1 m; dates 2021-06-05; 1 scenes smaller than a patch, padded; 5 files skipped' in line
    assert any('linz' in r.message and 'oversampled' in r.message for r in caplog.records)


def test_a_single_scene_gives_a_strip_to_validation(tmp_path, scene):
    scene(tmp_path / 'naip/a.tif', size=(48, 100))
    data = ClayPretrainDataModule(tmp_path, **OPTIONS)
    data.setup('fit')
    train, val = data._parts['train']['naip'].regions[0], data._parts['val']['naip'].regions[0]
    assert (train.left, train.width, val.left, val.width) == (0, 70, 70, 30)
    columns = [int(data.train_dataset[k]['image'][1].max()) for k in data.train_dataloader().batch_sampler.plan.keys(0)]
    assert max(columns) <= 70


def test_a_single_small_scene_trains_only(tmp_path, scene):
    scene(tmp_path / 'naip/a.tif', size=(24, 24))
    data = ClayPretrainDataModule(tmp_path, **OPTIONS, patches_per_scene=6)
    with pytest.warns(UserWarning, match='naip: its only scene is too small'):
        data.setup('fit')
    assert data.val_dataloader() == []
    assert len(data.train_dataloader()) == 2


def test_no_validation_wanted(root):
    data = ClayPretrainDataModule(root, **OPTIONS | {'val_split': 0})
    data.setup('fit')
    assert data.val_dataloader() == []
    assert data.train_dataset.sizes == {'naip': 45, 'linz': 12}


def test_a_sensor_of_the_users_own(root):
    (root / 'linz').rename(root / 'drone')
    (root / 'drone/sensor.yaml').write_text(
        'name: drone\ngsd: 0.05\nbands:\n'
        '  red: {wavelength: 0.65, mean: 10, std: 5}\n  green: {wavelength: 0.56, mean: 10, std: 5}\n'
        '  blue: {wavelength: 0.48, mean: 10, std: 5}\n'
    )
    data = ClayPretrainDataModule(root, sensors=['drone'], **OPTIONS)
    data.setup('fit')
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch['sensor'] == 'drone'
    assert data.selected['drone'].mean == (10, 10, 10)
    assert batch['target'].shape == (3, 3, 16, 16)


def test_options_of_the_readers(root):
    readers = {'naip': {'bands': ['nir', 'R'], 'offset': -1.0, 'gsd': 2.0, 'time': '2019-01-01T00:00:00Z'}}
    data = ClayPretrainDataModule(root, sensors=['naip'], readers=readers, **OPTIONS)
    data.setup('fit')
    raw = next(iter(data.val_dataloader()))
    assert raw['image'].shape == (3, 2, 16, 16)
    assert raw['image'][0, 1, 0, 0] == 0  # row 1 of the file, less 1
    assert raw['res'].tolist() == [2, 2, 2]
    assert raw['time'].tolist() == [1546300800] * 3
    assert data.selected['naip'].band_names == ('nir', 'red')


def test_wrong_units_are_named_once(tmp_path, scene):
    for i in range(3):
        scene(tmp_path / 'sentinel-1-rtc' / f'{i}.tif', 'sentinel-1-rtc', dtype='float32')  # from 1 to 48: no decibels
    data = ClayPretrainDataModule(tmp_path, **OPTIONS)
    with pytest.warns(UserWarning, match=r'0\.tif, .*2\.tif: sentinel-1-rtc: expected decibels .* in bands vv, vh'):
        data.setup('fit')
    for batch in data.train_dataloader():
        data.on_before_batch_transfer(batch, 0)


def test_wrong_units_of_chips_are_named(tmp_path):
    (tmp_path / 'sentinel-1-rtc').mkdir()
    codes = dict.fromkeys(('lat_norm', 'lon_norm', 'week_norm', 'hour_norm'), np.array([0.0, 1.0]))
    for i in range(4):
        np.savez(tmp_path / f'sentinel-1-rtc/{i}.npz', pixels=np.full((2, 32, 32), 0.1, np.float32), **codes)
    with pytest.warns(UserWarning, match=r'/sentinel-1-rtc: sentinel-1-rtc: expected decibels'):
        ClayPretrainDataModule(tmp_path, **OPTIONS).setup('fit')


def test_wrong_units_are_named_for_every_folder_of_a_sensor(tmp_path, scene):
    description = {'name': 'sentinel-1-rtc', 'gsd': 10, 'scale': 'db', 'bands': {}}
    for band in SENSORS['sentinel-1-rtc'].bands:
        description['bands'][band.name] = {'wavelength': band.wavelength, 'mean': band.mean, 'std': band.std}
    for folder in ('sentinel-1-rtc', 'sentinel-1-2023'):
        scene(tmp_path / folder / '0.tif', 'sentinel-1-rtc', dtype='float32')
        scene(tmp_path / folder / '1.tif', 'sentinel-1-rtc', dtype='float32')
    (tmp_path / 'sentinel-1-2023/sensor.yaml').write_text(yaml.safe_dump(description))
    data = ClayPretrainDataModule(tmp_path, **OPTIONS)
    with pytest.warns(UserWarning, match='expected decibels') as caught:
        data.setup('fit')
    assert len({folder for w in caught for folder in ('1-rtc/', '1-2023/') if folder in str(w.message)}) == 2


def test_chips(root, tmp_path):
    for i in range(4):
        (root / 'modis').mkdir(exist_ok=True)
        np.savez(
            root / 'modis' / f'{i}.npz', pixels=np.full((7, 32, 32), 100 + i, np.int16),
            lat_norm=np.array([0.5, 3**0.5 / 2]), lon_norm=np.array([0.0, 1.0]),
            week_norm=np.array([0.0, 1.0]), hour_norm=np.array([0.0, -1.0]),
        )  # fmt: skip
    (root / 'modis/bad.npz').write_bytes(b'PK')
    data = ClayPretrainDataModule(root, sensors=['modis'], **OPTIONS)
    with pytest.warns(UserWarning, match=r'modis: skipped 1 files\n.*bad.npz'):
        data.setup('fit')
    assert data.train_dataset.sizes == {'modis': 12}
    raw = next(iter(data.val_dataloader()))
    assert raw['image'].shape == (3, 7, 16, 16)
    np.testing.assert_allclose(raw['lat'], 30)
    assert raw['res'].tolist() == [500] * 3


def test_simulated_scenes(tmp_path):
    how = {'sensors': ['naip', 'modis'], 'scenes_per_sensor': 3, 'size': 64}
    data = ClayPretrainDataModule(tmp_path / 'new', synthetic=how, **OPTIONS)
    data.prepare_data()
    data.setup('fit')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for batch in data.train_dataloader():
            data.on_before_batch_transfer(batch, 0)
    assert set(data.selected) == {'naip', 'modis'}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'patch_size': 20}, 'patch_size: expected a multiple of 8.* got 20.* nearest is 16|24'),
        ({'patch_size': 0}, 'multiple of 8'),
        ({'batch_size': 0}, 'batch_size: expected 1 or more'),
        ({'seed': -1}, 'seed: expected 0 or more'),
        ({'val_split': 1.0}, 'val_split: expected a share from 0 to below 1'),
        ({'min_valid': 1.5}, 'min_valid: expected a share'),
        ({'patches_per_scene': 0}, 'patches_per_scene: expected 1 or more'),
        ({'batch_size': 100}, r'linz: expected at least one batch of 100 samples.*got \d+ patches.*patches_per_scene'),
        ({'shares': 'fair'}, "shares: expected 'equal', 'size'"),
        ({'sensors': ['nap']}, r"there is no folder 'nap' in .*, only linz, naip"),
        ({'sensors': []}, 'empty list'),
        ({'sensors': 'naip'}, r"write \['naip'\]"),
        ({'readers': {'nap': {}}}, "readers: there is no folder 'nap'"),
        ({'readers': {'naip': {'ofset': 1}}}, "unknown option 'ofset' of naip"),
        ({'readers': {'naip': {'bands': ['swir']}}}, "naip has no band 'swir'"),
    ],
)
def test_mistakes(root, options, message):
    with pytest.raises(ValueError, match=message):
        ClayPretrainDataModule(root, **OPTIONS | options).setup('fit')


def test_roots_without_scenes(tmp_path, scene):
    def setup():
        ClayPretrainDataModule(tmp_path / 'root', **OPTIONS).setup('fit')

    with pytest.raises(ValueError, match=r'root: .* is not a folder\. Expected one folder per sensor'):
        setup()
    (tmp_path / 'root').mkdir()
    with pytest.raises(ValueError, match=r'holds nothing\. Expected one folder per sensor'):
        setup()
    path = scene(tmp_path / 'root/loose.tif')
    with pytest.raises(ValueError, match='holds 1 scenes without a folder'):
        setup()
    path.unlink()
    (tmp_path / 'root/naip').mkdir()
    with pytest.raises(ValueError, match=r'naip: expected GeoTIFF scenes or \.npz chips, found none'):
        setup()
    scene(tmp_path / 'root/naip/a.tif', nodata=-9999, holes=np.ones((48, 48), bool))
    with pytest.raises(ValueError, match=r'(?s)no scene is left of 1 files.*a\.tif: all pixels are nodata'):
        setup()
    (tmp_path / 'root/naip').rename(tmp_path / 'root/sentinel-2-l2')
    with pytest.raises(ValueError, match=r"Unknown sensor 'sentinel-2-l2'\. Did you mean 'sentinel-2-l2a'"):
        setup()


@pytest.mark.parametrize('precision', ['bf16-true', '16-true'])
def test_half_precision(root, precision):
    with pytest.raises(ValueError, match=rf"got '{precision}'.*Use '{precision[:-5]}-mixed'"):
        fit(root, trainer={'precision': precision})


def test_teardown_closes_files_that_open_again(datamodule):
    loader = datamodule.train_dataloader()
    first = next(iter(loader))
    sources = [source for part in datamodule._parts['train'].values() for source in part.sources]
    assert any(len(source._handles) for source in sources)
    datamodule.teardown('fit')
    assert not any(len(source._handles) for source in sources)
    again = next(iter(datamodule.train_dataloader()))
    assert torch.equal(again['image'], first['image'])
