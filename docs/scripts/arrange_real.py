# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Copy real scenes into one folder per sensor, as ClayPretrainDataModule takes them.

    python docs/scripts/arrange_real.py ../shared/data/real data/real-arranged

The source is the collection of open crops that docs/real-data.md lists. What it leaves out, and why, stands there too.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import yaml

from torchgeo_clay.datamodules.pretrain.scan import SENSOR_FILE
from torchgeo_clay.sensors import get_sensor

log = logging.getLogger('arrange_real')

#: Folder → patterns of the files that go into it, relative to the source.
SCENES = {
    'landsat-c2l1': ('landsat/L8_L1_Elkton_VA_30m.tif',),
    'landsat-c2l2-sr': ('landsat/LC08_L2SP_*_crop.tif',),
    'linz': ('aerial_rgb/*.tif',),
    'modis': ('modis/MOD09A1_*_crop.tif',),
    'naip': ('naip/*.tif',),
    'sentinel-1-rtc': ('sentinel1/*.tif',),
    'sentinel-2-l2a': (
        'sentinel2/terramesh_*_s2l2a.tif',
        'sentinel2/bigearthnet_*.tif',
        'multisensor_worldcereal/*_s2l2a_*.tif',
    ),
    'sentinel-2-l2a-60m': ('sentinel2/S2A_MSIL2A_*_60m_crop.tif',),
}

#: Sentinel-2 delivers its near infrared (B08) at 10 m only, so a scene at 60 m is of nine of the ten bands.
BANDS_60M = ('blue', 'green', 'red', 'rededge1', 'rededge2', 'rededge3', 'nir08', 'swir16', 'swir22')


def sensor_description(name: str, bands: tuple[str, ...]) -> str:
    """Describe some bands of a sensor as a folder's ``sensor.yaml``.

    Args:
        name: the sensor.
        bands: names of the bands.

    Returns:
        YAML that :meth:`~torchgeo_clay.sensors.Sensor.from_yaml` reads.
    """
    sensor = asdict(get_sensor(name).select(bands))
    rows = {band.pop('name'): {**band, 'aliases': list(band['aliases'])} for band in sensor['bands']}
    text: str = yaml.safe_dump({**sensor, 'rgb': list(sensor['rgb']), 'bands': rows}, sort_keys=False)
    return text


def arrange(source: Path, target: Path) -> None:
    """Copy the scenes.

    Args:
        source: folder of the collection.
        target: root of the sensors' folders, made if need be.

    Raises:
        FileNotFoundError: if a pattern finds nothing, naming it.
    """
    for folder, patterns in SCENES.items():
        (target / folder).mkdir(parents=True, exist_ok=True)
        for pattern in patterns:
            files = sorted(source.glob(pattern))
            if not files:
                raise FileNotFoundError(f'{source}: expected files like {pattern}, found none.')
            for file in files:
                shutil.copy2(file, target / folder)
                log.info('%s/%s', folder, file.name)
    description = sensor_description('sentinel-2-l2a', BANDS_60M)
    (target / 'sentinel-2-l2a-60m' / SENSOR_FILE).write_text(description, encoding='utf-8')


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('source', type=Path, help='folder of the collection')
    parser.add_argument('target', type=Path, help="root of the sensors' folders")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    arrange(arguments.source, arguments.target)


if __name__ == '__main__':
    main()
