# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What a user may do wrong, met where a user meets it: each is a clear error, or a skip that is named and counted."""

import errno
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from torchgeo_clay.datamodules import ClayPretrainDataModule
from torchgeo_clay.models import Clay, clay_tiny_patch8
from torchgeo_clay.sensors import SENSORS
from torchgeo_clay.tasks import ClayPretraining

NAIP = SENSORS['naip']
WAVELENGTHS = torch.tensor(NAIP.wavelengths)
OPTIONS = {'batch_size': 2, 'patch_size': 16, 'val_split': 0.3, 'seed': 0}


def write(
    path: Path,
    names: tuple[str, ...] | None = NAIP.band_names,
    bands: int = 4,
    crs: str | None = 'EPSG:32633',
    north: float = 5_600_000.0,
    value: float | None = None,
    nodata: float | None = None,
) -> Path:
    """Write a scene of 32 x 32 pixels, random unless a value is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).uniform(1, 255, (bands, 32, 32)).astype(np.float32)
    if value is not None:
        pixels[:] = value
    where = {'crs': crs, 'transform': from_origin(500_000, north, 1, 1)} if crs else {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        options = {'driver': 'GTiff', 'count': bands, 'height': 32, 'width': 32, 'dtype': 'float32', 'nodata': nodata}
        with rasterio.open(path, 'w', **options, **where) as file:
            file.write(pixels)
            if names is not None:
                file.descriptions = names
    return path


def truncated(path: Path, names: tuple[str, ...] | None) -> None:
    """Half a file. Names of bands are written last, and the list of all that is in it with them."""
    content = write(path, names).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def partly(path: Path, *values: float) -> None:
    """A scene with good pixels and others."""
    write(path)
    with rasterio.open(path, 'r+') as file:
        pixels = file.read()
        for i, value in enumerate(values):
            pixels[i, :, i * 8 : i * 8 + 8] = value
        file.write(pixels)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four good scenes of one sensor."""
    for i in range(4):
        write(tmp_path / 'root/naip' / f'good_{i}.tif')
    return tmp_path / 'root'


# files ----------------------------------------------------------------------------------------------------------------

SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    'zero bytes': (lambda path: path.write_bytes(b''), 'zero bytes'),
    'no raster': (lambda path: path.write_text('not a raster'), 'not readable as a raster'),
    'truncated': (lambda path: truncated(path, None), r'not readable at rows .* truncated or damaged'),
    'truncated before its directory': (lambda path: truncated(path, NAIP.band_names), 'not readable as a raster'),
    'too few bands': (lambda path: write(path, None, 3), 'too few bands: the file has 3'),
    'too many bands': (lambda path: write(path, None, 6), 'too many bands: the file has 6'),
    'a band missing': (lambda path: write(path, ('red', 'green', 'blue', 'other')), r'bands nir of naip are missing'),
    'other band names': (
        lambda path: write(path, ('slope', 'aspect', 'height', 'roughness')),
        'no band matches: the file has slope, aspect, height, roughness; naip has',
    ),
    'no CRS': (lambda path: write(path, crs=None), r'no CRS.*gsd='),
    'all nodata': (lambda path: write(path, value=-1, nodata=-1), 'all pixels are nodata'),
    'all NaN': (lambda path: write(path, value=np.nan), 'all pixels are nodata'),
    'all infinite': (lambda path: write(path, value=np.inf), 'all pixels are nodata'),
}
spoilt = pytest.mark.parametrize(('spoil', 'reason'), SPOILT.values(), ids=list(SPOILT))


@spoilt
def test_a_bad_file_is_named_counted_and_skipped_and_the_others_train(root, spoil, reason):
    spoil(root / 'naip/bad.tif')
    data = ClayPretrainDataModule(root, **OPTIONS)
    with pytest.warns(UserWarning, match=rf'(?s)naip: skipped 1 files\n.*bad\.tif: .*{reason}'):
        data.setup('fit')
    assert len(data.train_dataset) + len(data.val_dataset) == 4 * 4
    for batch in data.train_dataloader():
        assert torch.isfinite(batch['image']).all()


@spoilt
def test_nothing_but_a_bad_file_is_an_error_that_says_why(tmp_path, spoil, reason):
    (tmp_path / 'naip').mkdir()
    spoil(tmp_path / 'naip/bad.tif')
    with pytest.raises(ValueError, match=rf'(?s)no scene .*left.*bad\.tif.*{reason}') as error:
        ClayPretrainDataModule(tmp_path, **OPTIONS).setup('fit')
    assert str(error.value).count('bad.tif') <= 2  # of thousands of files not all are listed
    assert 'PosixPath' not in str(error.value)


def test_pixels_that_are_not_finite_reach_no_loss(root, tmp_path):
    partly(root / 'naip/holes.tif', np.nan, np.inf, -np.inf)
    data = ClayPretrainDataModule(root, **OPTIONS, min_valid=0)
    data.setup('fit')
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    batches += [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    assert not all(batch['valid'].all() for batch in batches)
    task = ClayPretraining('clay_mae_tiny_patch8')
    for batch in batches:
        assert torch.isfinite(batch['image']).all()
        assert torch.isfinite(task.reconstruction(batch).loss)


def test_a_file_that_goes_bad_while_training_is_replaced_until_there_are_too_many(root, caplog):
    data = ClayPretrainDataModule(root, **OPTIONS, max_failures=1)
    data.setup('fit')
    loader = data.train_dataloader()
    data.teardown('fit')  # the files are opened anew below
    data.setup('fit')
    bad = [Path(region.path) for region in data._parts['train']['naip'].regions]
    bad[0].write_bytes(b'')
    assert len(list(loader)) == len(loader)
    assert caplog.text.count('Skipped') == 1
    assert str(bad[0]) in caplog.text
    data.teardown('fit')
    bad[1].write_bytes(b'')
    with pytest.raises(OSError, match='2 scenes could not be read, more than max_failures=1'):
        list(loader)


def test_roots(tmp_path, root):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=r'root: .*empty holds nothing\. Expected one folder per sensor'):
        ClayPretrainDataModule(tmp_path / 'empty', **OPTIONS).setup('fit')
    with pytest.raises(ValueError, match='is not a folder'):
        ClayPretrainDataModule(tmp_path / 'absent', **OPTIONS).setup('fit')
    (root / 'naip').rename(root / 'niap')
    with pytest.raises(ValueError, match=r"Unknown sensor 'niap'\. Did you mean 'naip'.*Rename the folder"):
        ClayPretrainDataModule(root, **OPTIONS).setup('fit')


@pytest.mark.parametrize('gsd', [0, -1.0, float('nan')])
def test_gsd_given_for_a_folder(root, gsd):
    with pytest.raises(ValueError, match='gsd: expected positive meters per pixel'):
        ClayPretrainDataModule(root, **OPTIONS, readers={'naip': {'gsd': gsd}}).setup('fit')


def test_a_chip_whose_latitude_is_a_longitude(tmp_path):
    (tmp_path / 'naip').mkdir()
    angle = np.radians([45.0, 120.0])
    lon, lat = ([np.sin(a), np.cos(a)] for a in angle)  # stored under each other's name
    np.savez(
        tmp_path / 'naip/a.npz', pixels=np.ones((4, 16, 16), np.uint8),
        lat_norm=lat, lon_norm=lon, week_norm=[0.0, 1.0], hour_norm=[0.0, 1.0],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"a\.npz: expected a latitude from -90 to 90, got 120.*order='lonlat'"):
        ClayPretrainDataModule(tmp_path, **OPTIONS).setup('fit')


def test_a_latitude_beyond_the_pole_is_seen_before_the_transfer(root):
    data = ClayPretrainDataModule(root, **OPTIONS)
    data.setup('fit')
    batch = next(iter(data.val_dataloader()))
    data.on_before_batch_transfer(batch, 0)
    with pytest.raises(ValueError, match=r'lat: expected degrees from -90 to 90'):
        data.on_before_batch_transfer({**batch, 'lat': torch.full_like(batch['lat'], 90.5)}, 0)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'patch_size': 20}, r'patch_size: expected a multiple of 8.*got 20'),
        ({'batch_size': 100}, r'naip: expected at least one batch of 100 samples.*got \d+ patches'),
    ],
)
def test_sizes(root, options, message):
    with pytest.raises(ValueError, match=message):
        ClayPretrainDataModule(root, **OPTIONS | options).setup('fit')


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    root = tmp_path / 'scenes'
    how = {'sensors': ['naip'], 'scenes_per_sensor': 3, 'size': 32}
    write_bytes, written = Path.write_bytes, []

    def until_full(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'write_bytes', until_full)
        with pytest.raises(OSError, match=r'No space left.*MB are free; no file was left') as caught:
            ClayPretrainDataModule(root, synthetic=how, **OPTIONS).prepare_data()
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.rglob('*.tif'))
    data = ClayPretrainDataModule(root, synthetic=how, **OPTIONS)  # room was made
    data.prepare_data()
    data.setup('fit')
    assert len(data.train_dataloader())


# model ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def model() -> Clay:
    return clay_tiny_patch8().eval()


@pytest.mark.parametrize(
    ('wavelengths', 'gsd', 'message'),
    [
        (WAVELENGTHS * 1000, 1.0, 'nanometers'),
        (WAVELENGTHS[:3], 1.0, r'one wavelength per channel.*3.*4'),
        (WAVELENGTHS.to('meta'), 1.0, 'on cpu'),
        (WAVELENGTHS, 0.0, 'positive meters per pixel'),
        (WAVELENGTHS, -10.0, 'positive meters per pixel'),
        (WAVELENGTHS, float('nan'), 'no code for unknown'),
    ],
    ids=['nanometers', 'length', 'device', 'zero', 'negative', 'nan'],
)
def test_wavelengths_and_gsd(model, wavelengths, gsd, message):
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 4, 16, 16), wavelengths, gsd)


def test_images_that_are_not_whole_patches(model):
    with pytest.raises(ValueError, match=r'multiple of 8|multiples of 8'):
        model(torch.zeros(1, 4, 16, 20), WAVELENGTHS, 1.0)


# task and command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('ratio', [0.0, 1.0])
def test_mask_ratio(ratio):
    with pytest.raises(ValueError, match=rf'mask_ratio: expected a share between 0 and 1.*{ratio:g}'):
        ClayPretraining('clay_mae_tiny_patch8', model_options={'mask_ratio': ratio})


def test_a_teacher_that_is_not_reachable(monkeypatch, tmp_path):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    name = 'vit_small_patch14_reg4_dinov2.lvd142m'
    with pytest.raises(ValueError, match=rf"teacher '{name}' could not be built.*(?i:offline).*teacher=None"):
        ClayPretraining('clay_mae_tiny_patch8', teacher=name)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--data.synthetic=false'], r'holds nothing\. Expected one folder per sensor'),
        (['--trainer.precision=bf16-true'], r"got 'bf16-true'.*Use 'bf16-mixed'"),
        (['--data.patch_size=20'], r'patch_size: expected a multiple of 8'),
        (['--model.model_options.mask_ratio=1'], r'mask_ratio: expected a share'),
    ],
    ids=['empty root', 'bf16-true', 'patch size', 'mask ratio'],
)
def test_the_command_says_what_is_wrong(options, message, repo_root, tmp_path, torchgeo_command):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=message):
        torchgeo_command(
            'fit', f'--config={repo_root / "configs/clay_pretrain.yaml"}', f'--data.root={tmp_path / "empty"}',
            '--trainer.accelerator=cpu', f'--trainer.default_root_dir={tmp_path}',
            f'--trainer.logger.save_dir={tmp_path}',
            '--data.synthetic={"sensors": ["naip"], "scenes_per_sensor": 2, "size": 64}', *options,
        )  # fmt: skip
