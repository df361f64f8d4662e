# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Draw maps of synthetic scenes beside the truth, and say what share of the pixels is right.

python docs/scripts/draw_maps.py output/maps data/synthetic naip docs/images/maps.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import rasterio
from matplotlib.figure import Figure


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('maps', type=Path)
    parser.add_argument('root', type=Path, help='of the synthetic scenes')
    parser.add_argument('sensor')
    parser.add_argument('picture', type=Path)
    arguments = parser.parse_args()
    files = sorted((arguments.root / 'images' / arguments.sensor).glob('*.tif'))
    figure = Figure(figsize=(6, 6), layout='constrained')
    grid = figure.subplots(3, 3)
    right = []
    for i, file in enumerate(files):
        with (
            rasterio.open(arguments.maps / file.name) as found,
            rasterio.open(arguments.root / 'labels' / arguments.sensor / file.name) as truth,
        ):
            right.append(float((found.read(1) == truth.read(1)).mean()))
            table = np.array([found.colormap(1)[k] for k in range(256)], np.uint8)
            shown = table[found.read(1)], table[truth.read(1)]
        if i < 3:
            with rasterio.open(file) as image:
                pixels = image.read((1, 2, 3)).transpose(1, 2, 0)
            for axes, what, title in zip(grid[i], (pixels, *shown), ('scene', 'map', 'truth'), strict=True):
                axes.imshow(what)
                axes.set_axis_off()
                axes.set_title(title if i == 0 else '', fontsize=9)
    figure.savefig(arguments.picture, dpi=60)
    print(f'right: {np.mean(right):.1%} of {len(files)} scenes, {min(right):.1%} to {max(right):.1%}')


if __name__ == '__main__':
    main()
