# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Pictures of reconstructions: what is in them, and when and where they are written."""

from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from einops import rearrange
from lightning.pytorch.loggers import Logger
from matplotlib.image import imread

from torchgeo_clay.callbacks import ReconstructionPlot, reconstruction
from torchgeo_clay.callbacks.reconstruction import _reconstruct, plot_reconstruction
from torchgeo_clay.datamodules import ClayPretrainDataModule
from torchgeo_clay.models import clay_mae_tiny_patch8
from torchgeo_clay.sensors import SENSORS, Sensor
from torchgeo_clay.tasks import ClayPretraining

NAIP = SENSORS['naip']


class Figures(Logger):
    """A logger that keeps the names of figures, as TensorBoard's writer is handed them."""

    name, version = 'figures', 0

    def __init__(self) -> None:
        super().__init__()
        self.added: list[tuple[str, int]] = []
        self.experiment = SimpleNamespace(add_figure=self.add_figure)

    def add_figure(self, tag: str, figure: Any, global_step: int, close: bool) -> None:
        assert len(figure.axes) >= 3
        self.added.append((tag, global_step))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...


def trainer(folder, callback: ReconstructionPlot, logger: Any = False, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        **{
            'accelerator': 'cpu',
            'callbacks': [callback],
            'logger': logger,
            'default_root_dir': folder,
            'enable_checkpointing': False,
            'enable_progress_bar': False,
            'enable_model_summary': False,
            'limit_train_batches': 1,
            'limit_val_batches': 3,  # one of each sensor, three scenes each
            **options,
        }
    )


def task() -> ClayPretraining:
    torch.manual_seed(0)
    return ClayPretraining('clay_mae_tiny_patch8')


def images(figure) -> np.ndarray:
    """The images of a figure: (row, column, H, W, 3)."""
    arrays = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    return np.stack(arrays).reshape(-1, 3, *arrays[0].shape)


def example(channels: int, mask=(1, 1, 0, 1)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target, made = (torch.rand(2, channels, 16, 16, generator=generator) for _ in range(2))
    return target, made, torch.tensor([mask, mask])


def test_columns_are_what_their_titles_say():
    target, made, mask = example(4)
    figure = plot_reconstruction(target, made, mask, NAIP, torch.tensor([1.0, 1000.0]))
    assert [axis.get_title() for axis in figure.axes[:3]] == [
        'original', 'seen by the encoder', 'masked patches predicted'
    ]  # fmt: skip
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == ['16 m', '16 km']
    hidden = torch.ones(2, 4, 16, 16, dtype=torch.bool)
    hidden[..., 8:16, 0:8] = False
    loss = (made - target).abs()[hidden].mean()
    assert figure.get_suptitle().startswith(f'naip · loss {loss:.3f}')
    original, seen, filled = np.moveaxis(images(figure), 1, 0)
    whole = images(plot_reconstruction(target, made, torch.ones(2, 4), NAIP, torch.ones(2)))[:, 2]
    visible = (slice(None), slice(8, 16), slice(0, 8))  # the third of four patches
    np.testing.assert_array_equal(seen[visible], original[visible])
    np.testing.assert_array_equal(filled[visible], original[visible])
    masked = np.ones((16, 16), bool)
    masked[8:16, 0:8] = False
    assert (seen[:, masked] == 0.5).all()  # grey
    np.testing.assert_array_equal(filled[:, masked], whole[:, masked])
    assert not (filled[:, masked] == original[:, masked]).all()


def test_colours_are_the_sensors_in_its_units():
    target, made, mask = example(4)
    shown = images(plot_reconstruction(target, made, mask, NAIP, torch.ones(2)))[:, 0]
    red_green_blue = slice(0, 3)  # NAIP's order; infrared comes last and is not shown
    mean, std = (np.array(values)[red_green_blue, None, None] for values in (NAIP.mean, NAIP.std))
    for image, normalized in zip(shown, target.double().numpy()[:, red_green_blue], strict=True):
        units = normalized * std + mean
        low, high = np.quantile(units, [0.02, 0.98])
        expected = np.clip((units - low) / (high - low), 0, 1)
        np.testing.assert_allclose(image, expected.transpose(1, 2, 0), atol=1e-5)


@pytest.mark.parametrize(
    ('sensor', 'grey', 'said'),
    [
        (NAIP.select(['nir', 'red']), True, 'nir;'),
        (SENSORS['sentinel-1-rtc'], False, 'VV, VH, mean;'),
        (SENSORS['sentinel-1-rtc'].select(['vv']), True, 'vv;'),
        (SENSORS['modis'], False, 'sur_refl_b01, sur_refl_b04, sur_refl_b03;'),
    ],
    ids=['two of naip', 'radar', 'one polarisation', 'modis'],
)
def test_sensors_without_rgb_show_their_first_band_in_grey(sensor: Sensor, grey, said):
    target, made, mask = example(len(sensor))
    figure = plot_reconstruction(target, made, mask, sensor, torch.ones(2))
    shown = images(figure)
    assert (np.ptp(shown, axis=-1) == 0).all() == grey
    assert said in figure.get_suptitle()
    if grey:
        first = target[0, 0].double().numpy()
        assert np.corrcoef(shown[0, 0, ..., 0].ravel(), first.ravel())[0, 1] > 0.98


@pytest.mark.parametrize('share', [0.5, 1.0])
def test_pixels_without_data_are_grey(share):
    target, made, mask = example(4)
    target[:, :, : int(16 * share)] = torch.nan
    shown = images(plot_reconstruction(target, made, mask, NAIP, torch.ones(2)))
    assert np.isfinite(shown).all()
    assert (shown[:, 0, : int(16 * share)] == 0.5).all()
    assert (shown >= 0).all()
    assert (shown <= 1).all()


def test_a_flat_image_is_no_division_by_zero():
    _, made, mask = example(4)
    shown = images(plot_reconstruction(torch.ones(2, 4, 16, 16), made, mask, NAIP, torch.ones(2)))
    assert np.isfinite(shown).all()


def test_one_picture_per_sensor_in_the_epochs_asked_for(tiny_scenes, tmp_path):
    logger = Figures()
    plot = ReconstructionPlot(every_n_epochs=2, num_images=2, dirpath=tmp_path / 'pictures')
    trainer(tmp_path, plot, logger, max_epochs=5).fit(task(), datamodule=ClayPretrainDataModule(**tiny_scenes))
    names = ('modis', 'naip', 'sentinel-1-rtc')
    written = sorted(path.name for path in (tmp_path / 'pictures').iterdir())
    assert written == sorted(f'{name}-epoch{epoch:04d}.png' for name in names for epoch in (1, 3, 4))
    assert sorted(logger.added) == sorted((f'reconstruction/{name}', step) for name in names for step in (2, 4, 5))
    for name in written:
        height, width, _ = imread(tmp_path / 'pictures' / name).shape
        assert (height, width) == (690, 960)  # two rows of three


def test_title_names_epoch_and_loss(tiny_scenes, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(reconstruction, 'write_figure', lambda *args: titles.append(args[1].get_suptitle()))
    trainer(tmp_path, ReconstructionPlot(), max_epochs=2).fit(task(), datamodule=ClayPretrainDataModule(**tiny_scenes))
    assert [title.partition(' · loss 0.')[0] for title in titles] == [
        f'{name} · epoch {epoch}' for epoch in (1, 2) for name in ('modis', 'naip', 'sentinel-1-rtc')
    ]


def test_normalized_patches_are_shown_in_the_units_of_the_image():
    model = clay_mae_tiny_patch8(norm_pix_loss=True)
    image = 5 + torch.rand(1, 4, 32, 32)
    batch = {
        'image': image, 'wavelength': torch.tensor([NAIP.wavelengths]), 'res': torch.ones(1), 'sensor': 'naip'
    }  # fmt: skip
    _, pixels, mask = _reconstruct(model, batch)
    assert mask.sum() == 12
    patches, predicted = (rearrange(x, 'b c (h p) (w q) -> b (h w) (c p q)', p=8, q=8) for x in (image, pixels))
    noise = torch.rand(1, 16, generator=torch.Generator().manual_seed(0))
    raw = model.reconstruct(image, NAIP.wavelengths, 1.0, noise=noise)
    expected = rearrange(raw, 'b c (h p) (w q) -> b (h w) (c p q)', p=8, q=8)
    expected = expected * patches.std(-1, keepdim=True) + patches.mean(-1, keepdim=True)
    torch.testing.assert_close(predicted, expected, rtol=1e-3, atol=1e-3)


def test_a_picture_that_cannot_be_written_ends_no_training(tiny_scenes, tmp_path):
    (tmp_path / 'file').touch()
    plot = ReconstructionPlot(dirpath=tmp_path / 'file' / 'pictures')
    with pytest.warns(UserWarning, match=r'epoch0000.png: the picture could not be written'):
        trainer(tmp_path, plot, max_epochs=1).fit(task(), datamodule=ClayPretrainDataModule(**tiny_scenes))


def test_validate_writes_without_an_epoch_beside_the_log(tiny_scenes, tmp_path):
    plot = ReconstructionPlot(every_n_epochs=100, num_images=1)
    trainer(tmp_path, plot).validate(task(), datamodule=ClayPretrainDataModule(**tiny_scenes), verbose=False)
    assert len(list((tmp_path / 'reconstructions').glob('*.png'))) == 3


def test_the_sanity_check_is_not_plotted(tiny_scenes, tmp_path):
    logger = Figures()
    trainer(tmp_path, ReconstructionPlot(), logger, max_epochs=1, num_sanity_val_steps=3).fit(
        task(), datamodule=ClayPretrainDataModule(**tiny_scenes)
    )
    assert sorted(step for _, step in logger.added) == [1, 1, 1]


@pytest.mark.parametrize('options', [{'every_n_epochs': 0}, {'num_images': 0}])
def test_numbers_below_one(options):
    with pytest.raises(ValueError, match='expected 1 or more, got 0'):
        ReconstructionPlot(**options)
