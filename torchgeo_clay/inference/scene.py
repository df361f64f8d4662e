# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Maps of whole scenes. Shapes: B windows, C bands, K channels of the model's answer, H × W pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import rasterio
import torch
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from torchgeo_clay.datasets import SensorRaster
from torchgeo_clay.datasets.raster.windows import check_windows, starts
from torchgeo_clay.inference.blender import blended_rows, device_of
from torchgeo_clay.inference.maps import MapStyle, beside, write_maps
from torchgeo_clay.sensors import Sensor
from torchgeo_clay.writers.atomic import check_writable
from torchgeo_clay.writers.cog import CACHE_BYTES

__all__ = ('predict_scene',)


def predict_scene(
    model: nn.Module,
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    sensor: str | os.PathLike[str] | Sensor,
    bands: Sequence[str] | None = None,
    style: MapStyle | None = None,
    chip: int = 256,
    stride: int | None = None,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    overwrite: bool = False,
    progress: bool = False,
    tags: dict[str, str] | None = None,
    **reader: Any,
) -> Path:
    """Map a scene from wall to wall with a model of dense prediction.

    Windows overlap and are blended with weights that sum to one everywhere. Pixels without data stay without. Memory
    does not grow with the scene's height.

    Example::

        task = ClaySemanticSegmentation.load_from_checkpoint('last.ckpt')
        style = MapStyle(classes=['land', 'water'], colours=[(230, 220, 200), (0, 90, 200)])
        predict_scene(task, 'scene.tif', 'water.tif', sensor='sentinel-2-l2a', style=style)

    Args:
        model: takes normalised images (B, C, H, W) and answers (B, K, H, W), a task or a module; each Clay in it is
            told wavelengths, GSD, time and place.
        path: the scene, any file or URL that rasterio opens.
        out: the map, a COG; probabilities go beside it under ``…_probabilities.tif``.
        sensor: name of a sensor, a YAML file, or a sensor.
        bands: its bands, in the order of the model's channels; None for all.
        style: what the map shows; None for the likeliest class.
        chip: pixels per side of a window, a multiple of 8.
        stride: pixels from one window to the next; None for half a chip.
        batch_size: windows that the model sees at once.
        device: where the model is moved to; None to leave it.
        overwrite: whether a map that is there is replaced.
        progress: whether to show how far it is, in windows per second.
        tags: text to write beside the pixels.
        **reader: ``offset``, ``to_db``, ``gsd`` and ``time`` of :class:`~torchgeo_clay.datasets.SensorRaster`.

    Returns:
        The path of the map.

    Raises:
        ValueError: for a chip or stride that will not do, a scene that can't be read, a model whose answer is not one
            of every pixel or does not fit the style, or a map that is there already.
        OutputError: for a folder that can't be written to, or a full disk.
    """
    stride = chip // 2 if stride is None else stride
    check_windows(chip, stride)
    if batch_size < 1:
        raise ValueError(f'batch_size: expected 1 or more, got {batch_size}.')
    out, style = Path(out), style or MapStyle()
    if out.resolve() == Path(path).resolve():
        raise ValueError(f'out: expected another file than the scene, got {out} for both.')
    _refuse_existing([out, beside(out)] if style.probabilities else [out], overwrite)
    check_writable(out.parent)
    raster = SensorRaster(path, sensor, bands, **reader)
    if len(raster.scenes) != 1:
        raise ValueError(f'path: expected one scene, got {len(raster.scenes)} in {path}.')
    scene = raster.scenes[0]
    where = device_of(model) if device is None else torch.device(device)
    total = len(starts(scene.height, chip, stride)) * len(starts(scene.width, chip, stride))
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES))
        stack.callback(raster.close)
        stack.enter_context(_evaluated(model.to(where)))
        bar = stack.enter_context(tqdm(total=total, desc=Path(scene.path).name, unit='chip', disable=not progress))
        rows = blended_rows(
            model,
            raster,
            chip=chip,
            stride=stride,
            batch_size=batch_size,
            device=where,
            activation=style.activation,
            progress=lambda done: bar.update(len(done)),
        )
        write_maps(rows, scene, out, style, {'SENSOR': raster.sensor.name, 'SOURCE': scene.path, **(tags or {})})
    return out


def _refuse_existing(paths: Sequence[Path], overwrite: bool) -> None:
    """Raise where a file is there already and is not to be replaced."""
    there = [str(p) for p in paths if p.exists()]
    if there and not overwrite:
        raise ValueError(f'out: {", ".join(there)} exists already. Choose another name, or give overwrite=True.')


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """A model in eval mode and without gradients; afterwards as it was."""
    modes = {module: module.training for module in model.modules()}  # parts may be frozen in eval mode
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
