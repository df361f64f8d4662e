# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""From scenes to maps, one cloud-optimized GeoTIFF per scene. Shapes: B chips, K channels, H × W pixels."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import rasterio
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from rasterio.errors import RasterioIOError
from torch import Tensor, nn

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.datamodules.common import counted
from torchgeo_clay.datamodules.scenes import SceneDataModule, SceneLoader, Unit
from torchgeo_clay.datasets import Scene
from torchgeo_clay.datasets.raster.files import open_raster
from torchgeo_clay.inference.blending import Blender
from torchgeo_clay.inference.output import (
    OnSkipped,
    SceneOutput,
    choose_device,
    evaluating,
    predict,
    report_skipped,
    trained_sensors,
    weights_digest,
)
from torchgeo_clay.models import CheckpointError
from torchgeo_clay.models.clay import find_clay
from torchgeo_clay.models.weights import check_whole, read_checkpoint
from torchgeo_clay.sensors import Sensor
from torchgeo_clay.tasks.base import ClayTask
from torchgeo_clay.writers.atomic import OutputError, check_writable, differences, remove_remains
from torchgeo_clay.writers.cog import CACHE_BYTES, CogStream, Color, Layout

__all__ = ('MapStyle', 'SceneMaps', 'map_scenes')

#: Tag of a map that identifies its run, JSON.
RUN = 'TORCHGEO_CLAY'

#: Stands for no data in a map of classes.
NODATA_CLASS = 255


def map_scenes(
    model_or_checkpoint: nn.Module | str | os.PathLike[str],
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    style: MapStyle | None = None,
    sensor: str | Sensor | None = None,
    bands: list[str] | None = None,
    chip: int = 256,
    stride: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    any_sensor: bool = False,
    on_skipped: OnSkipped = 'warn',
    **scenes: Any,
) -> list[Path]:
    """Map scenes from edge to edge with a trained model of dense prediction.

    Windows overlap and are blended with weights that sum to one everywhere; pixels without data stay without. Memory
    does not grow with a scene's height. ``torchgeo predict`` with ``clay_map.yaml`` gives the same maps.

    Example::

        torchgeo_clay.map_scenes('last.ckpt', 'scene.tif', 'maps', style=MapStyle(classes=['land', 'water']))

    Args:
        model_or_checkpoint: a checkpoint of one of this package's tasks, a task, or a module from normalized images
            (B, C, H, W) to (B, K, H, W); each Clay inside is conditioned on each batch's metadata.
        paths: files, folders and URLs of scenes.
        out: the folder of the maps, apart from the scenes; each is named after its scene. For one scene also a file
            that ends in ``.tif``.
        style: what maps show; None for the classes or values of the task, or the classes of a module's logits.
        sensor: of all scenes, a name, YAML file or sensor; None to detect it for each file.
        bands: the sensor's bands, in the order of the model's channels; None for all. Needs ``sensor``.
        chip: pixels per side of a window, a multiple of 8; best as in training.
        stride: pixels from one window to the next; None for half a chip.
        device: such as ``cuda``; None for a GPU if there is one.
        overwrite: whether maps of another run are replaced.
        any_sensor: whether to map scenes of sensors and bands that the model was not trained on.
        on_skipped: whether files that could not be used are an error, after all others are done.
        **scenes: options of :class:`~torchgeo_clay.datamodules.SceneDataModule`, such as ``batch_size``,
            ``num_workers``, ``offset``, ``gsd`` and ``time``.

    Returns:
        The paths of the maps, in the order of the scenes.

    Raises:
        ValueError: for a model that is not trained or does not answer for every pixel, a style that does not fit it,
            arguments that are out of range, or if no scene is left.
        SkippedScenesError: for files that could not be used, with ``on_skipped='raise'``.
        OutputError: if a map cannot be written, or exists already.
    """
    model = _load(model_or_checkpoint) if isinstance(model_or_checkpoint, str | os.PathLike) else model_or_checkpoint
    stride = chip // 2 if stride is None else stride
    data = SceneDataModule(paths, sensor, bands, chip, stride, unit_size=None, **scenes)
    where = choose_device(device)
    data.setup('predict')
    maps: list[Path] = []

    def answer(batch: dict[str, Any]) -> Any:
        if isinstance(model, ClayTask):  # conditions its encoder itself
            return model.predict_step(batch, 0)
        conditioning = Conditioning.from_batch(batch)
        with ExitStack() as scopes:
            for clay in find_clay(model):
                scopes.enter_context(clay.conditioned_on(conditioning))
            return model.predict_step(batch, 0) if isinstance(model, LightningModule) else model(batch['image'])

    def output(loader: SceneLoader) -> SceneMaps:
        given = not hasattr(model, 'trained_on')  # a module of the user's, whose training nothing here can tell
        found = SceneMaps(loader, model, out, style, overwrite=overwrite, any_sensor=any_sensor, loaded=given)
        maps.extend(found.paths.values())
        return found

    with evaluating(model.to(where)):
        failed = predict(answer, data, output, where)
    maps = [path for path in maps if path.exists()]
    report_skipped(failed, str(out), on_skipped if maps else 'raise')
    return maps


def _load(path: str | os.PathLike[str]) -> LightningModule:
    """Load the task of a checkpoint."""
    checkpoint = read_checkpoint(Path(path))
    check_whole(Path(path))
    name = checkpoint.get(LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, {}).get('_class_path', '')
    module, _, kind = name.rpartition('.')
    if not module:
        raise CheckpointError(
            f'{path}: expected a checkpoint of a task such as ClaySemanticSegmentation, found none that names its '
            'class. Load it yourself and give the task.'
        )
    task: LightningModule = getattr(import_module(module), kind).load_from_checkpoint(path, map_location='cpu')
    return task


@dataclass(frozen=True)
class MapStyle:
    """What a map shows, and how.

    Attributes:
        kind: ``classes`` to write the likeliest class of a model that returns logits or probabilities; ``values`` to
            write what the model returns.
        probabilities: whether the classes' probabilities are written too, to ``…_probabilities.tif``.
        classes: names of the classes, in the order of the model's channels; two names for a model with one channel.
        colors: of the classes: red, green and blue from 0 to 255.
        names: of the bands of a map of values.
        threshold: for a model with one channel, the smallest probability of the second class.
    """

    kind: Literal['classes', 'values'] = 'classes'
    probabilities: bool = False
    classes: Sequence[str] = ()
    colors: Sequence[Color] = ()
    names: Sequence[str] = ()
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ValueError: for an unknown kind, a threshold out of range, or what does not go with the kind.
        """
        if self.kind not in ('classes', 'values'):
            raise ValueError(f"kind: expected 'classes' or 'values', got {self.kind!r}.")
        if self.kind == 'values' and (self.probabilities or self.classes or self.colors):
            raise ValueError("probabilities, classes and colors go with kind='classes', not with 'values'.")
        if self.kind == 'classes' and self.names:
            raise ValueError("names go with kind='values'; give classes= the names of the classes.")
        if not 0 < self.threshold < 1:
            raise ValueError(f'threshold: expected a probability between 0 and 1, got {self.threshold}.')

    def check_channels(self, channels: int) -> None:
        """Raise if a model's K channels are not the classes or bands named."""
        given, expected = (self.names, channels) if self.kind == 'values' else (self.classes, max(channels, 2))
        if given and len(given) != expected:
            raise ValueError(
                f'{"names" if self.kind == "values" else "classes"}: expected {expected} names for the {channels} '
                f'channels of the model, got {len(given)}: {", ".join(given)}.'
            )
        if self.kind == 'classes' and max(channels, 2) > NODATA_CLASS:
            raise ValueError(f'model: expected at most {NODATA_CLASS} classes, got {channels}.')


def _completed(style: MapStyle, model: nn.Module) -> MapStyle:
    """Complete a style by what a task knows; raise for names that are not one per class."""
    if not isinstance(model, LightningModule):
        return style
    hparams, labels = model.hparams, list(model.hparams.get('labels') or ())
    if hparams.get('task') in ('binary', 'multiclass'):
        style = replace(style, classes=list(style.classes) or labels)
        channels = hparams['num_classes'] if hparams['task'] == 'multiclass' else 1
    else:
        style = replace(style, kind='values', names=list(style.names) or labels)
        channels = hparams.get('num_labels') or hparams.get('num_outputs')
    if channels is not None:
        style.check_channels(channels)
    return style


class SceneMaps(SceneOutput):
    """Maps of scenes. A map exists under its name once it is complete."""

    whole_scenes = True

    def __init__(
        self,
        loader: SceneLoader,
        model: nn.Module,
        out: str | os.PathLike[str],
        style: MapStyle | None,
        *,
        overwrite: bool = False,
        any_sensor: bool = False,
        loaded: bool = False,
    ) -> None:
        """Initialize a new SceneMaps instance.

        Args:
            loader: whose windows are mapped, of whole scenes.
            model: with its weights.
            out: the folder of the maps, or the map of one scene.
            style: what they show, see :func:`map_scenes`.
            overwrite: whether maps of another run are replaced.
            any_sensor: see :func:`trained_sensors`, as for the next.
            loaded: whether a checkpoint was loaded into the model.

        Raises:
            ValueError: for a model that is not trained, a style that does not fit it, scenes cut into units, or a
                folder of maps among the scenes.
        """
        super().__init__(loader, out)
        self.trained_on = trained_sensors(model, any_sensor=any_sensor, loaded=loaded)
        self.is_task, self.overwrite = isinstance(model, LightningModule), overwrite
        self.style = _completed(style or MapStyle(), model)
        self.paths = map_paths(Path(out), self.data.paths, [unit.source for unit in self.data.units])
        hparams = model.hparams if isinstance(model, LightningModule) else {}
        run = {
            **{key: hparams.get(key) for key in ('model', 'backbone', 'task')},
            'weights_sha256': weights_digest(model),
            **asdict(self.style),
            **self.data.settings,
        }
        self.run: dict[str, Any] = json.loads(json.dumps(run))  # as it is read back
        self.open: dict[int, tuple[Blender, MapStream]] = {}
        self.stack = ExitStack()
        self.maps = 0

    def begin(self) -> set[str]:
        """Find existing maps, remove remains of a killed run, and skip scenes of other sensors.

        Raises:
            OutputError: if other files exist, or the folder cannot be written to.
            ValueError: if no scene is of a sensor that the model was trained on.
        """
        done = self.skip_sensors()
        done |= {unit.key for unit in self.data.units if unit.key not in done and self._is_done(unit)}
        for folder in {path.parent for path in self.paths.values()}:
            check_writable(folder)
        remove_remains(chain(*map(_files, self.paths.values())))
        return done

    def _is_done(self, unit: Unit) -> bool:
        """Return whether a unit's map is there; raise if another file is that may not be replaced."""
        path, expected = self.paths[unit.source], {**self.run, 'scene': unit.key}
        files = _files(path, probabilities=self.style.probabilities)
        there = [file for file in files if file.exists()]
        other = [(file, found) for file in there if (found := _run_of(file)) != expected]
        if other and not self.overwrite:
            file, found = other[0]
            kind = f'of another run ({differences(found, expected)})' if found else 'and no map of torchgeo_clay'
            raise OutputError(
                f'out: {file} is there already, {kind}. Choose another folder, remove it, or give overwrite: true.'
            )
        return not other and len(there) == len(files)

    def start(self, done: set[str]) -> None:
        """Skip units, and bound GDAL's cache while maps are written."""
        super().start(done)
        self.stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES))

    def close(self) -> None:
        """Remove maps that are not finished."""
        super().close()
        self.stack.close()

    def take(self, outputs: Any, batch: Mapping[str, Any]) -> None:
        """Blend answers (B, K, H, W), or TorchGeo's dictionaries of them, and write the rows that are complete."""
        answer = check_answer(outputs['probabilities'] if isinstance(outputs, dict) else outputs, batch['image'])
        if self.style.kind == 'classes' and not self.is_task:  # logits, which are not to be averaged
            answer = answer.sigmoid() if answer.shape[1] == 1 else answer.softmax(1)
        values = answer.float().cpu().numpy()
        self.skip_not_finite(batch, values)
        valid = batch['valid'][:, 0].cpu().numpy()
        for i, (place, (row, col)) in enumerate(zip(batch['unit'], batch['corner'], strict=True)):
            if place in self.pending:
                blender, stream = self._opened(place)
                for rows in blender.add(row, col, values[i], valid[i]):
                    stream.write(*rows)

    def _opened(self, place: int) -> tuple[Blender, MapStream]:
        """Return what blends a scene's windows, and its map."""
        if place not in self.open:
            unit, data = self.loader.units[place], self.data
            tags = {
                'SENSOR': unit.sensor,
                'SOURCE': unit.source,
                RUN: json.dumps({**self.run, 'scene': unit.key}),
                'TORCHGEO_CLAY_VERSION': version('torchgeo-clay'),
            }
            blender = Blender(unit.scene.height, unit.scene.width, data.chip, data.stride, data.align)
            self.open[place] = blender, MapStream(unit.scene, self.paths[unit.source], self.style, tags)
        return self.open[place]

    def complete(self, place: int) -> None:
        """Finish a scene's map."""
        if place not in self.open:
            self.failed[self.loader.units[place].source] = 'no pixel holds data. Is its nodata value right?'
            return
        blender, stream = self.open[place]
        for rows in blender.finish():
            stream.write(*rows)
        stream.finish()
        del self.open[place]
        self.maps += 1

    def drop(self, place: int) -> None:
        """Remove a map that is not finished."""
        if place in self.open:
            self.open.pop(place)[1].drop()

    def finish(self, failed: Mapping[str, str], missing: int) -> dict[str, str]:
        """Log the numbers of maps."""
        more = f' Missing: {counted(missing, "map")}; run again to continue.' if missing else ''
        rank_zero_info(f'{counted(self.maps, "map")}: {self.summary}.{more}')
        return dict(failed)


def check_answer(answer: Any, images: Tensor) -> Tensor:
    """Return a model's answer (B, K, H, W) or (B, H, W) for images (B, C, H, W) as (B, K, H, W)."""
    if isinstance(answer, Tensor) and answer.ndim == 3:
        answer = answer[:, None]
    expected = images.shape[0], *images.shape[2:]
    if not isinstance(answer, Tensor) or answer.ndim != 4 or (answer.shape[0], *answer.shape[2:]) != expected:
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(
            f'model: expected one that answers for every pixel, ({expected[0]}, K, {expected[1]}, {expected[2]}) for '
            f'images {tuple(images.shape)}, got {shape}. For one answer per chip use embed().'
        )
    return answer


class MapStream:
    """A scene's map that takes blended rows as they come, and its probabilities if the style asks for them.

    A map that cannot be finished leaves no file. The map is renamed last, so where it exists, its probabilities do.
    """

    def __init__(self, scene: Scene, out: Path, style: MapStyle, tags: dict[str, str]) -> None:
        """Initialize a new MapStream instance; nothing is written before the first rows.

        Args:
            scene: the scene.
            out: the map.
            style: what it shows.
            tags: metadata items of the file.
        """
        self.scene, self.out, self.style, self.tags = scene, out, style, tags
        self._stack = ExitStack()
        self._outputs: list[tuple[CogStream, npt.NDArray[Any], Convert]] = []

    def write(self, row: int, values: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]) -> None:
        """Write a block of rows (K, H, W), valid (H, W), that begins at a row; rows in no block have no data."""
        if not self._outputs:
            self.style.check_channels(len(values))
            outputs = _outputs(self.scene, self.style, len(values), self.tags)
            self._outputs = [
                (self._stack.enter_context(CogStream(path, layout)), np.array(layout.nodata, layout.dtype), convert)
                for path, (layout, convert) in zip(
                    _files(self.out, probabilities=len(outputs) > 1), outputs, strict=True
                )
            ]
        for stream, nodata, convert in self._outputs:
            stream.write(row, np.where(valid, convert(values), nodata))

    def finish(self) -> None:
        """Make the COGs."""
        self._stack.close()

    def drop(self) -> None:
        """Remove the written files."""
        error = InterruptedError(f'{self.out} is not finished.')
        self._stack.__exit__(type(error), error, None)


Convert = Callable[[Any], Any]


def _outputs(scene: Scene, style: MapStyle, channels: int, tags: dict[str, str]) -> list[tuple[Layout, Convert]]:
    """Return the layout of each raster to write, and how blended channels (K, H, W) become its pixels."""
    size, place = (scene.height, scene.width), (scene.crs, scene.transform)
    base = Layout(*size, *place, 'float32', channels, float('nan'), names=style.names, tags=tags)
    if style.kind == 'values':
        return [(base, lambda values: values)]

    def likeliest(values: Any) -> Any:
        found = values >= style.threshold if channels == 1 else values.argmax(0, keepdims=True)
        return found.astype(np.uint8)

    classes = replace(
        base, dtype='uint8', count=1, nodata=NODATA_CLASS, names=['class'], classes=style.classes, colors=style.colors
    )
    names = style.classes if channels > 1 else style.classes[1:]
    outputs: list[tuple[Layout, Convert]] = [(classes, likeliest), (replace(base, names=names), lambda values: values)]
    return outputs if style.probabilities else outputs[:1]


def map_paths(out: Path, inputs: Sequence[str], sources: Sequence[str]) -> dict[str, Path]:
    """Return the path of each scene's map: the scene's name, numbered where another map is called so.

    Args:
        out: the folder of the maps, or the map of one scene.
        inputs: as given by the user; a folder of scenes is refused, where maps would replace scenes or become some.
        sources: the scenes found there.
    """
    if out.suffix.lower() in ('.tif', '.tiff'):
        if len(sources) != 1:
            raise ValueError(f'out: expected a folder for {len(sources)} scenes, got the file {out}.')
        if out.resolve() == Path(sources[0]).resolve():
            raise ValueError(f'out: expected another file than the scene, got {out} for both.')
        return {sources[0]: out}
    where = out.resolve()
    folders = [Path(path).resolve() for path in map(os.path.expanduser, inputs) if os.path.isdir(path)]
    parents = {Path(source).resolve().parent for source in sources if os.path.exists(source)}
    for path in [*folders, *sorted(parents)]:
        if path == where or (path in folders and path in where.parents):
            raise ValueError(f'out: expected a folder apart from the scenes, got {out}, and scenes in {path}.')
    taken: set[Path] = set()
    found: dict[str, Path] = {}
    for source in sources:
        stem = Path(urlsplit(source).path if '://' in source else source).stem
        names = (out / f'{stem}{suffix}.tif' for suffix in chain([''], (f'_{i}' for i in count(1))))
        found[source] = next(path for path in names if taken.isdisjoint(_files(path)))
        taken.update(_files(found[source]))
    return found


def _files(path: Path, *, probabilities: bool = True) -> list[Path]:
    """Return the files of a map: of its classes or values, and of the probabilities."""
    return [path, path.with_name(f'{path.stem}_probabilities{path.suffix}')][: 1 + probabilities]


def _run_of(path: Path) -> dict[str, Any]:
    """Read the run that a map is of; empty if other software wrote it."""
    try:
        with open_raster(path) as file:
            text = file.tags().get(RUN)
    except (ValueError, RasterioIOError):
        return {}
    return json.loads(text) if text else {}
