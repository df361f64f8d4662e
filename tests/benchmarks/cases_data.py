# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Reading chips beside TorchGeo's own reader, and embedding scenes from file to table beside the model alone."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path

import numpy as np
import rasterio
import torch
from measuring import Row, Way, compare
from rasterio.transform import from_origin
from rasterio.windows import Window
from torch.utils.data import DataLoader

PIXELS = 256
SIDE = 2048
CPU = torch.device('cpu')


def write_scene(path: Path, seed: int = 0) -> None:
    """A tiled, deflated Sentinel-2 scene of ten bands, smooth with some noise, so that it compresses as one does."""
    from torchgeo_clay.sensors import get_sensor

    sensor, rng = get_sensor('sentinel-2-l2a'), np.random.default_rng(seed)
    coarse = rng.normal(0, 400, (len(sensor), SIDE // 32, SIDE // 32))
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse)[None], (SIDE, SIDE), mode='bicubic')[0].numpy()
    level = np.array(sensor.mean)[:, None, None]
    pixels = (smooth + level + rng.normal(0, 40, smooth.shape)).clip(1, 10_000).astype('uint16')
    options = {'driver': 'GTiff', 'tiled': True, 'blockxsize': 256, 'blockysize': 256, 'compress': 'deflate'}
    where = {'crs': 'EPSG:32633', 'transform': from_origin(500_000 + seed * SIDE * 10, 5_600_000, 10, 10)}
    shape = {'count': len(sensor), 'height': SIDE, 'width': SIDE, 'dtype': 'uint16'}
    with rasterio.open(path, 'w', **options, **where, **shape) as file:
        file.write(pixels)
        file.descriptions = sensor.band_names


def write_scenes(root: Path, count: int) -> Path:
    """Scenes in a folder of their sensor."""
    folder = root / 'sentinel-2-l2a'
    folder.mkdir(parents=True)
    for i in range(count):
        write_scene(folder / f'S2_2020060{i + 1}T101010.tif', i)
    return folder


def loading(root: Path, rounds: int) -> list[Row]:
    """The same 64 chips of a scene: TorchGeo's reader, ours, plain windowed reads; then batches of random windows.

    One thread, as in the worker process of a loader.
    """
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import RandomPatchSampler

    from torchgeo_clay.datamodules import ClayPretrainDataModule
    from torchgeo_clay.datasets import SensorRaster

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = write_scenes(root, 2)
    scene = next(iter(sorted(folder.iterdir())))

    class Stock(RasterDataset):
        filename_glob = '*.tif'
        filename_regex = r'S2_(?P<date>\d{8})'
        date_format = '%Y%m%d'

    stock, ours, plain = Stock(str(scene)), SensorRaster(scene, 'sentinel-2-l2a'), rasterio.open(scene)
    corners = list(product(range(0, SIDE, PIXELS), repeat=2))
    left, top = 500_000, 5_600_000
    size = (PIXELS, PIXELS)

    def query(row: int, col: int) -> tuple[slice, slice]:
        x, y = left + 10 * col, top - 10 * row
        return slice(x, x + 10 * PIXELS), slice(y - 10 * PIXELS, y)

    for row, col in (corners[1], corners[-1]):  # the same pixels
        assert np.array_equal(stock[query(row, col)]['image'], ours.patch(0, row, col, size)['image'].float())
    ways: dict[str, Way] = {
        'TorchGeo RasterDataset': lambda: [stock[query(*c)] for c in corners],
        'SensorRaster.patch': lambda: [ours.patch(0, *c, size) for c in corners],
        'SensorRaster, as a TorchGeo dataset': lambda: [ours[query(*c)] for c in corners],
        'rasterio, plain windowed reads': lambda: [plain.read(window=Window(c, r, *size)) for r, c in corners],
    }
    rows = compare('chips', ways, len(corners), rounds, CPU, memory=False)
    data = ClayPretrainDataModule(str(root), batch_size=8, patch_size=PIXELS, val_split=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        data.setup('fit')
    both = Stock(str(folder))
    sampler = RandomPatchSampler(both, size=PIXELS, length=len(corners))
    stock_loader = DataLoader(both, sampler=sampler, batch_size=8, collate_fn=stack_samples)
    batches: dict[str, Way] = {
        'TorchGeo RasterDataset in a DataLoader': lambda: list(stock_loader),
        'ClayPretrainDataModule, drawn and augmented': lambda: list(islice(data.train_dataloader(), 8)),
    }
    rows += compare('batches', batches, len(corners), rounds, CPU, memory=False)
    data.teardown('fit')
    plain.close()
    torch.set_num_threads(threads)
    return rows


def embedding(root: Path, size: str, rounds: int, device: torch.device) -> list[Row]:
    """Scene to GeoParquet by the trainer, beside the encoder alone on the same chips in memory."""
    from lightning.pytorch import Trainer

    from torchgeo_clay.callbacks import EmbeddingWriter
    from torchgeo_clay.datamodules import SceneDataModule
    from torchgeo_clay.tasks import ClayEmbedding

    folder = write_scenes(root, 1)
    task, batch = ClayEmbedding(f'clay_{size}_patch8', weights=False), 64 if device.type == 'cuda' else 16
    options = {'logger': False, 'enable_progress_bar': False, 'enable_model_summary': False, 'devices': 1}
    precision = 'bf16-mixed' if device.type == 'cuda' else '32-true'

    def predict() -> None:
        writer = EmbeddingWriter(str(root / 'out.parquet'), overwrite=True, quicklooks=False)
        trainer = Trainer(accelerator=device.type, precision=precision, callbacks=[writer], **options)
        data = SceneDataModule(str(folder), 'sentinel-2-l2a', chip=PIXELS, batch_size=batch, num_workers=0)
        trainer.predict(task, datamodule=data, return_predictions=False)

    count = (SIDE // PIXELS) ** 2
    data = SceneDataModule(str(folder), 'sentinel-2-l2a', chip=PIXELS, batch_size=batch)
    data.setup('predict')
    moved = [data.transfer_batch_to_device(b, device, 0) for b in data.predict_dataloader()]
    held = [data.on_after_batch_transfer(b, 0) for b in moved]

    def alone() -> None:
        task.to(device).eval()
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == 'bf16-mixed'):
            for b in held:
                task(b)

    with quiet():
        return compare('embedding', {'the model alone': alone, 'torchgeo predict': predict}, count, rounds, device)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what Lightning says of each run."""
    loggers = [logging.getLogger(name) for name in ('lightning.pytorch', 'lightning.fabric')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
