# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""``SyntheticScenes``: a folder of simulated acquisitions for every sensor."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from torchgeo_clay.sensors import Sensor, get_sensor
from torchgeo_clay.simulator.landscape import CLASSES
from torchgeo_clay.simulator.render import Scene, make_scene
from torchgeo_clay.simulator.store import complete_folder, write_geotiff

__all__ = ('SyntheticScenes',)

Kind = Literal['images', 'labels', 'targets']

# Increase it whenever the simulator's pixels change, so that old folders are not reused.
_VERSION = 1
_DEFAULT_SENSORS = ('sentinel-2-l2a', 'sentinel-1-rtc', 'landsat-c2l2-sr', 'naip', 'linz', 'modis')
_log = logging.getLogger(__name__)


class SyntheticScenes:
    """Simulated scenes with land cover and vegetation cover, written as GeoTIFFs on first use.

    One landscape model (water, forest, grass, crops, soil, built-up, snow, cloud) is rendered for every sensor: a pixel
    is a mixture of materials, whose spectra are sampled at the sensor's wavelengths (radar: whose backscatter is
    speckled), blurred by the optics, and stored in the units of the sensor's product. Biome, place, season and hour
    vary by scene. Places are near real ones of their biome, in the CRS of the product.

    Limits: scenes of different sensors share biomes and places, but not the ground; terrain is the same fractal at
    0.5 m and at 500 m, and only fields, houses and roads have a size in meters (see ``simulator/landscape.py``);
    spectra are approximate. The scenes are for trying out, testing and comparing, not for learning about the Earth.

    Layout, with one folder of images per sensor, as the pretraining datamodule expects::

        root/images/SENSOR/SCENE.tif     (C, H, W), sensor's units; tags DATETIME (UTC), SENSOR, BIOME
        root/labels/SENSOR/SCENE.tif     (1, H, W) uint8, position in CLASSES, with a color map
        root/targets/SENSOR/SCENE.tif    (1, H, W) float32, green vegetation cover 0 to 1
        root/manifest.json               parameters and files; its presence says "complete"

    A scene's name is like 000_farmland_20200514T163012. Labels and targets describe the image: under a cloud the label
    is cloud and the target 0, but radar penetrates clouds. Sensors of a GSD under 3 m have neither clouds nor
    snow. Equal arguments give equal files (with equal versions of numpy and GDAL).

    Example::

        scenes = SyntheticScenes('data/synthetic')
        datamodule = ClayPretrainDataModule(root=scenes.images)

    Attributes:
        root: the folder.
        images, labels, targets: its folders of images, land cover and vegetation cover, a subfolder per sensor.
        sensors: the sensors.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        sensors: Sequence[str | Sensor] = _DEFAULT_SENSORS,
        scenes_per_sensor: int = 16,
        size: int = 256,
        seed: int = 0,
    ) -> None:
        """Initialize a new SyntheticScenes instance, writing the scenes that do not exist yet.

        Any number of processes may do so at once; one writes, the others wait. The default set takes some 15 s on one
        core and 62 MB.

        Args:
            root: folder to write to; created if missing; must be empty or hold the scenes of equal arguments.
            sensors: names of :data:`torchgeo_clay.sensors.SENSORS`, paths of a sensor's YAML, or sensors. A sensor of
                the user's own gets values whose mean and standard deviation are about its table's.
            scenes_per_sensor: number of scenes; eight or more show every kind of landscape.
            size: height and width of a scene, pixels, 32 or more.
            seed: other seeds give other landscapes.
        """
        if isinstance(sensors, str):
            raise ValueError(f'Expected a list of sensors, got the string {sensors!r}; write [{sensors!r}].')
        for name, value, least in (('scenes_per_sensor', scenes_per_sensor, 1), ('size', size, 32), ('seed', seed, 0)):
            if value < least:
                raise ValueError(f'{name}: expected {least} or more, got {value}.')
        self.root = Path(root)
        self.sensors = tuple(get_sensor(s) for s in sensors)
        _check_names([s.name for s in self.sensors])
        self.scenes_per_sensor, self.size, self.seed = scenes_per_sensor, size, seed
        self.images, self.labels, self.targets = (self.root / kind for kind in ('images', 'labels', 'targets'))
        parameters = {
            'version': _VERSION,
            'sensors': [asdict(s) for s in self.sensors],
            'scenes_per_sensor': scenes_per_sensor,
            'size': size,
            'seed': seed,
        }
        # bytes without compression: bands of at most 4 bytes, with label and target
        needed = sum(4 * len(s) + 5 for s in self.sensors) * scenes_per_sensor * size**2
        self._files = complete_folder(self.root, parameters, needed, self._write)

    def files(self, sensor: str, kind: Kind = 'images') -> list[Path]:
        """The files of a sensor, sorted; position i is the same scene for every kind."""
        names = [s.name for s in self.sensors]
        if sensor not in names:
            raise ValueError(f'Expected one of the sensors of this set ({", ".join(names)}), got {sensor!r}.')
        if kind not in ('images', 'labels', 'targets'):
            raise ValueError(f"Expected 'images', 'labels' or 'targets', got {kind!r}.")
        prefix = f'{kind}/{sensor}/'
        return [self.root / name for name in sorted(self._files) if name.startswith(prefix)]

    def describe(self) -> str:
        """A few lines on what there is: scenes, sizes, GSD and bytes by sensor, and the classes."""
        lines = [f'Synthetic scenes in {self.root} (seed {self.seed}, {sum(self._files.values()) / 1e6:.1f} MB)']
        for s in self.sensors:
            total = sum(self._files[path.relative_to(self.root).as_posix()] for path in self.files(s.name))
            shape = f'{len(s)} × {self.size} × {self.size}'
            lines.append(f'  {s.name}: {self.scenes_per_sensor} scenes, {shape}, {s.gsd:g} m, {total / 1e6:.1f} MB')
        lines.append('  classes: ' + ', '.join(f'{i} {c.name}' for i, c in enumerate(CLASSES)))
        return '\n'.join(lines)

    def __repr__(self) -> str:
        """The call that makes an equal set."""
        names = [s.name for s in self.sensors]
        return (
            f'SyntheticScenes({str(self.root)!r}, sensors={names}, scenes_per_sensor={self.scenes_per_sensor}, '
            f'size={self.size}, seed={self.seed})'
        )

    def _write(self, root: Path) -> None:
        """Simulate and write all scenes."""
        _log.info('Simulating %d scenes for each of %d sensors.', self.scenes_per_sensor, len(self.sensors))
        for sensor in self.sensors:
            for index in range(self.scenes_per_sensor):
                _write_scene(root, sensor, index, make_scene(sensor, index, self.size, self.seed))


def _check_names(names: Sequence[str]) -> None:
    """Raise for no sensors, a sensor named twice, or a name that cannot be a folder."""
    if not names:
        raise ValueError('Expected at least one sensor, got none.')
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'sensors: expected each once, got {name!r} {names.count(name)} times.')
        if name.startswith('.') or Path(name).name != name or '\\' in name:
            raise ValueError(f'sensor {name!r}: expected a name that can be that of a folder; rename the sensor.')


def _write_scene(root: Path, sensor: Sensor, index: int, scene: Scene) -> None:
    """Write image, label and target of one scene."""
    setting = scene.setting
    file = f'{sensor.name}/{index:03d}_{setting.biome.name}_{setting.time:%Y%m%dT%H%M%S}.tif'
    tags = {
        'DATETIME': f'{setting.time:%Y-%m-%dT%H:%M:%S}',
        'SENSOR': sensor.name,
        'BIOME': setting.biome.name,
        'NOTE': 'simulated; DATETIME is UTC',
    }
    legend = {'CLASSES': ', '.join(f'{i} {c.name}' for i, c in enumerate(CLASSES))}
    colors = {i: c.color for i, c in enumerate(CLASSES)}
    target = np.round(scene.target, 3)  # a thousandth is plenty, and packs better
    write = partial(write_geotiff, crs=setting.crs, transform=setting.transform)
    write(root / 'images' / file, scene.image, descriptions=sensor.band_names, tags=tags)
    write(root / 'labels' / file, scene.label[None], descriptions=['land cover'], tags=tags | legend, colors=colors)
    write(root / 'targets' / file, target[None], descriptions=['vegetation cover'], tags=tags)
