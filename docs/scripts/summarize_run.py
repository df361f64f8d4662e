# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Per-sensor losses of a run of ClayPretraining as a Markdown table, and its last pictures side by side.

    python docs/scripts/summarize_run.py output/pretrain-folders/version_0 --picture run.png

Losses are read from TensorBoard's event files, pictures from what ReconstructionPlot wrote.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
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


def loss_table(curves: Curves) -> str:
    """Tabulate the reconstruction losses of each sensor.

    Args:
        curves: of a run with ``num_sanity_val_steps: -1``, whose first losses of validation are from before training.

    Returns:
        Markdown with a row per sensor: training in the first and last epoch; validation untrained, at its lowest, last.
    """
    train, val = 'train_reconstruction_loss/', 'val_reconstruction_loss/'
    rows = ['| folder | train, first epoch | train, last | val, untrained | val, lowest | val, last |']
    rows.append('|---|---|---|---|---|---|')
    for name in sorted(tag.removeprefix(train) for tag in curves if tag.startswith(train)):
        trained, validated = curves[train + name], curves.get(val + name)
        values = [trained[0], trained[-1], *([validated[0], min(validated), validated[-1]] if validated else [])]
        cells = [f'{value:.3f}' for value in values] + ['–'] * (5 - len(values))
        rows.append(f'| `{name}` | ' + ' | '.join(cells) + ' |')
    return '\n'.join(rows)


def montage(folder: Path, target: Path, columns: int = 2, width: int = 640) -> None:
    """Put the last picture of each sensor into one, in columns of which the shortest is filled first.

    Args:
        folder: ``reconstructions`` of the run.
        target: PNG to write, of 256 colors.
        columns: pictures side by side.
        width: of each, pixels.
    """
    last = {path.stem.rpartition('-epoch')[0]: path for path in sorted(folder.glob('*.png'))}
    heights = [0] * columns
    places: list[tuple[Image.Image, int, int]] = []
    for path in last.values():
        with Image.open(path) as picture:
            scaled = picture.convert('RGB').resize((width, round(picture.height * width / picture.width)))
        column = heights.index(min(heights))
        places.append((scaled, column * width, heights[column]))
        heights[column] += scaled.height
    whole = Image.new('RGB', (columns * width, max(heights)), 'white')
    for scaled, left, top in places:
        whole.paste(scaled, (left, top))
    whole.quantize(256).save(target, optimize=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('run', type=Path, help="the run's version folder")
    parser.add_argument('--picture', type=Path, help='PNG to write')
    arguments = parser.parse_args()
    print(loss_table(read_curves(arguments.run)))
    if arguments.picture:
        montage(arguments.run / 'reconstructions', arguments.picture)


if __name__ == '__main__':
    main()
