# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Per-sensor losses of a run of ClayPretraining as a Markdown table, and its last pictures side by side.

    python docs/scripts/summarise_run.py output/real/version_0 --untrained output/untrained/version_0 --picture run.png

Losses are read from TensorBoard's event files, pictures from what ReconstructionPlot wrote.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curves = dict[str, list[float]]


def read_curves(folder: Path) -> Curves:
    """Read all scalars of a run.

    Args:
        folder: of the event files.

    Returns:
        Name → values in the order of the steps.
    """
    events = EventAccumulator(str(folder), size_guidance={'scalars': 0})
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()['scalars']}


def loss_table(curves: Curves, untrained: Curves) -> str:
    """Tabulate the reconstruction losses of each sensor.

    Args:
        curves: of the run.
        untrained: of ``torchgeo validate`` with the same arguments; may be empty.

    Returns:
        Markdown with a row per sensor: training in the first and last epoch; validation untrained, first and last.
    """
    train, val = 'train_reconstruction_loss/', 'val_reconstruction_loss/'
    rows = ['| sensor | train, first epoch | train, last | val, untrained | val, first epoch | val, last |']
    rows.append('|---|---|---|---|---|---|')
    for name in sorted(tag.removeprefix(train) for tag in curves if tag.startswith(train)):
        values = [curves[train + name][i] for i in (0, -1)]
        values += untrained.get(val + name, [np.nan])[:1]
        values += [curves.get(val + name, [np.nan])[i] for i in (0, -1)]
        rows.append(f'| {name} | ' + ' | '.join('–' if np.isnan(v) else f'{v:.3f}' for v in values) + ' |')
    return '\n'.join(rows)


def montage(folder: Path, target: Path, columns: int = 2) -> None:
    """Put the last picture of each sensor into one.

    Args:
        folder: ``reconstructions`` of the run.
        target: PNG to write.
        columns: pictures side by side.
    """
    last = {path.stem.rpartition('-epoch')[0]: path for path in sorted(folder.glob('*.png'))}
    pictures = [imread(path) for path in last.values()]
    rows = -(-len(pictures) // columns)
    height, width, _ = np.max([picture.shape for picture in pictures], axis=0)
    figure = Figure(figsize=(6 * columns, 6 * rows * height / width), layout='constrained')
    for axis, picture in zip(figure.subplots(rows, columns, squeeze=False).flat, pictures, strict=False):
        axis.imshow(picture)
    for axis in figure.axes:
        axis.axis('off')
    figure.savefig(target, dpi=90, pil_kwargs={'optimize': True})


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('run', type=Path, help="the run's version folder")
    parser.add_argument('--untrained', type=Path, help='version folder of torchgeo validate with the same arguments')
    parser.add_argument('--picture', type=Path, help='PNG to write')
    arguments = parser.parse_args()
    print(loss_table(read_curves(arguments.run), read_curves(arguments.untrained) if arguments.untrained else {}))
    if arguments.picture:
        montage(arguments.run / 'reconstructions', arguments.picture)


if __name__ == '__main__':
    main()
