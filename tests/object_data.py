# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A few images with objects, in the format of each of TorchGeo's datasets for detection."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin

SIZE = 48
#: Two boxes (x1, y1, x2, y2), pixels.
BOXES = ((4, 6, 20, 18), (24, 20, 44, 40))


def picture(seed: int) -> np.ndarray:
    """An image (H, W, 3) of 8 bits with two bright boxes."""
    pixels = np.random.default_rng(seed).integers(60, 120, (SIZE, SIZE, 3)).astype(np.uint8)
    for left, top, right, bottom in BOXES:
        pixels[top:bottom, left:right] += 100
    return pixels


def write_vhr10(root: Path) -> dict[str, Any]:
    """Five images with boxes and masks; return the arguments of the dataset."""
    folder = root / 'NWPU VHR-10 dataset'
    (folder / 'positive image set').mkdir(parents=True)
    (root / 'NWPU VHR-10 dataset.zip').touch()
    images, annotations = [], []
    for i in range(5):
        Image.fromarray(picture(i)).save(folder / 'positive image set' / f'{i:03}.jpg')
        images.append({'id': i, 'file_name': f'{i:03}.jpg', 'height': SIZE, 'width': SIZE})
        for category, (x1, y1, x2, y2) in enumerate(BOXES, start=1):
            outline = [x1, y1, x2, y1, x2, y2, x1, y2]
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append({'image_id': i, 'category_id': category, 'bbox': box, 'segmentation': [outline]})
    (folder / 'annotations.json').write_text(json.dumps({'images': images, 'annotations': annotations}))
    return {'root': str(root), 'checksum': False}


def write_nasa_marine_debris(root: Path) -> dict[str, Any]:
    """Five georeferenced images, of which the even ones have no object."""
    for name in ('source', 'labels'):
        (root / name).mkdir(parents=True)
    where = {'crs': 'EPSG:4326', 'transform': from_origin(-87, 16, 3e-5, 3e-5)}
    profile = {'driver': 'GTiff', 'height': SIZE, 'width': SIZE, 'count': 3, 'dtype': 'uint8', **where}
    for i in range(5):
        with rasterio.open(root / 'source' / f'2018010{i + 1}_153418_0f3e_{i}.tif', 'w', **profile) as file:
            file.write(picture(i).transpose(2, 0, 1))
        boxes = [[*box, 1] for box in BOXES] if i % 2 else np.zeros((0, 5))
        np.save(root / 'labels' / f'2018010{i + 1}_153418_0f3e_{i}.npy', np.array(boxes, dtype=float))
    return {'root': str(root)}


def write_fair1m(root: Path) -> dict[str, Any]:
    """Images of the three splits, with oriented boxes."""
    text = '<annotation><source><filename>{}.tif</filename></source><objects>{}</objects></annotation>'
    item = '<object><possibleresult><name>{}</name></possibleresult><points>{}</points></object>'
    folders = ('train/part1', 'train/part2', 'validation', *('test',))
    for folder in folders:
        (root / folder / 'images').mkdir(parents=True)
        (root / folder / 'labelXml').mkdir()
        for i in range(2):
            Image.fromarray(picture(i)).save(root / folder / 'images' / f'{i}.tif')
            objects = ''
            for name, (x1, y1, x2, y2) in zip(('Passenger Ship', 'Bridge'), BOXES, strict=True):
                x, y = (x1 + x2) / 2, (y1 + y2) / 2  # a rhombus inside the box
                outline = ((x, y1), (x2, y), (x, y2), (x1, y), (x, y1))
                objects += item.format(name, ''.join(f'<point>{a},{b}</point>' for a, b in outline))
            (root / folder / 'labelXml' / f'{i}.xml').write_text(text.format(i, objects))
    return {'root': str(root), 'checksum': False}


def write_reforestree(root: Path) -> dict[str, Any]:
    """Five tiles, of which the last has no tree."""
    (root / 'mapping').mkdir(parents=True)
    lines = ['img_path,xmin,ymin,xmax,ymax,group,AGB']
    for i in range(1, 6):
        (root / 'tiles' / f'Site{i}').mkdir(parents=True)
        name = f'Site{i}_RGB_0_0_0_4000_4000.png'
        Image.fromarray(picture(i)).save(root / 'tiles' / f'Site{i}' / name)
        trees = zip(BOXES, ('banana', 'other'), strict=True) if i < 5 else ()
        lines += [f'{name},{",".join(map(str, box))},{group},6.75' for box, group in trees]
    (root / 'mapping' / 'final_dataset.csv').write_text('\n'.join(lines))
    return {'root': str(root), 'checksum': False}
