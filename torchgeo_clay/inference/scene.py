# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Maps of whole scenes. Shapes: B windows, C bands, K channels of the model's answer, H × W pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from torchgeo_clay.datasets import Scene, SensorRaster
from torchgeo_clay.datasets.windows import check_windows, starts
from torchgeo_clay.inference.dense import Rows, blended_rows, device_of
from torchgeo_clay.sensors import Sensor
from torchgeo_clay.writers.atomic import check_writable
from torchgeo_clay.writers.cog import CACHE_MB, CogStream, Colour, Layout

__all__ = ('NODATA_CLASS', 'MapStyle', 'predict_scene', 'write_maps')

Kind = Literal['classes', 'values']

#: Stands for no data in a map of classes.
NODATA_CLASS = 255


@dataclass(frozen=True)
class MapStyle:
    """What a map shows, and how.

    Attributes:
        kind: ``classes`` for a model whose answer are logits, of which the likeliest class is written; ``values`` for
            one whose answer is written as it is.
        probabilities: whether the classes' probabilities are written too, beside the map.
        classes: names of the classes, in the order of the model's channels; for one channel, of its absence and
            presence.
        colours: of the classes: red, green and blue from 0 to 255.
        names: of the bands of a map of values.
        threshold: for a model with one channel the probability from which on the class is there.
    """

    kind: Kind = 'classes'
    probabilities: bool = False
    classes: Sequence[str] = ()
    colours: Sequence[Colour] = ()
    names: Sequence[str] = ()
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ValueError: for an unknown kind, a threshold out of range, or what does not go with the kind.
        """
        if self.kind not in ('classes', 'values'):
            raise ValueError(f"kind: expected 'classes' or 'values', got {self.kind!r}.")
        if self.kind == 'values' and (self.probabilities or self.classes or self.colours):
            raise ValueError("probabilities, classes and colours go with kind='classes', not with 'values'.")
        if self.kind == 'classes' and self.names:
            raise ValueError("names go with kind='values'; give classes= the names of the classes.")
        if not 0 < self.threshold < 1:
            raise ValueError(f'threshold: expected a probability between 0 and 1, got {self.threshold}.')

    def activation(self, answer: Tensor) -> Tensor:
        """Probabilities of logits (B, K, H, W), which unlike logits may be averaged; values stay as they are."""
        if self.kind == 'values':
            return answer
        return answer.sigmoid() if answer.shape[1] == 1 else answer.softmax(1)

    def check_channels(self, channels: int) -> None:
        """Raise if a model's channels are not the classes or bands named.

        Args:
            channels: K.

        Raises:
            ValueError: naming both.
        """
        said, expected = (self.names, channels) if self.kind == 'values' else (self.classes, max(channels, 2))
        if said and len(said) != expected:
            raise ValueError(
                f'{"names" if self.kind == "values" else "classes"}: expected {expected} names for the {channels} '
                f'channels of the model, got {len(said)}: {", ".join(said)}.'
            )
        if self.kind == 'classes' and max(channels, 2) > NODATA_CLASS:
            raise ValueError(f'model: expected at most {NODATA_CLASS} classes, got {channels}.')


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
    _refuse_existing([out, _beside(out)] if style.probabilities else [out], overwrite)
    check_writable(out.parent)
    raster = SensorRaster(path, sensor, bands, **reader)
    if len(raster.scenes) != 1:
        raise ValueError(f'path: expected one scene, got {len(raster.scenes)} in {path}.')
    scene = raster.scenes[0]
    where = device_of(model) if device is None else torch.device(device)
    total = len(starts(scene.height, chip, stride)) * len(starts(scene.width, chip, stride))
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_MB))
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


def _beside(out: Path) -> Path:
    """Where the probabilities of a map go."""
    return out.with_name(f'{out.stem}_probabilities{out.suffix}')


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


def write_maps(
    rows: Iterator[Rows], scene: Scene, out: Path, style: MapStyle, tags: dict[str, str] | None = None
) -> None:
    """Write the blended rows of a scene as a map, and its probabilities beside it where the style asks for them.

    Args:
        rows: blocks of rows; rows that are in none have no data.
        scene: the scene.
        out: the map.
        style: what it shows.
        tags: text to write beside the pixels.

    Raises:
        ValueError: if the channels do not fit the style, or no pixel of the scene is valid.
    """
    if (first := next(rows, None)) is None:
        raise ValueError(f'{scene.path}: no pixel holds data, so there is nothing to map. Is nodata set rightly?')
    channels = len(first[1])
    style.check_channels(channels)
    with ExitStack() as stack:
        outputs = [
            (stack.enter_context(CogStream(path, layout)), np.array(layout.nodata, layout.dtype), convert)
            for path, layout, convert in _outputs(scene, out, style, channels, tags or {})
        ]
        for row, values, valid in chain([first], rows):
            for stream, nodata, convert in outputs:
                stream.write(row, np.where(valid, convert(values), nodata))


Convert = Callable[[Any], Any]


def _outputs(
    scene: Scene, out: Path, style: MapStyle, channels: int, tags: dict[str, str]
) -> list[tuple[Path, Layout, Convert]]:
    """Of each raster to write the path, what it is, and how blended channels (K, H, W) become its pixels."""
    base = Layout(
        scene.height,
        scene.width,
        scene.crs,
        scene.transform,
        dtype='float32',
        count=channels,
        nodata=float('nan'),
        names=style.names,
        tags=tags,
    )
    if style.kind == 'values':
        return [(out, base, lambda values: values)]

    def likeliest(values: Any) -> Any:
        found = values >= style.threshold if channels == 1 else values.argmax(0, keepdims=True)
        return found.astype(np.uint8)

    classes = replace(
        base, dtype='uint8', count=1, nodata=NODATA_CLASS, names=['class'], classes=style.classes, colours=style.colours
    )
    outputs: list[tuple[Path, Layout, Convert]] = [(out, classes, likeliest)]
    if style.probabilities:
        names = style.classes if channels > 1 else style.classes[1:]
        outputs.append((_beside(out), replace(base, names=names), lambda values: values))
    return outputs
