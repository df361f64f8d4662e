# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What a map shows, and its files, written row by row. Shapes: K channels of a model's answer, H × W pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from torchgeo_clay.datasets import Scene
from torchgeo_clay.writers.cog import CogStream, Color, Layout

__all__ = ('MapStream', 'MapStyle', 'probabilities_path')

#: Stands for no data in a map of classes.
NODATA_CLASS = 255


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

    def activation(self, answer: Tensor) -> Tensor:
        """Turn logits (B, K, H, W) into probabilities, which may be averaged; values stay as they are."""
        if self.kind == 'values':
            return answer
        return answer.sigmoid() if answer.shape[1] == 1 else answer.softmax(1)

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


def probabilities_path(out: Path) -> Path:
    """Return the path of the probabilities of a map."""
    return out.with_name(f'{out.stem}_probabilities{out.suffix}')


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
            self._outputs = [
                (self._stack.enter_context(CogStream(path, layout)), np.array(layout.nodata, layout.dtype), convert)
                for path, layout, convert in _outputs(self.scene, self.out, self.style, len(values), self.tags)
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


def _outputs(
    scene: Scene, out: Path, style: MapStyle, channels: int, tags: dict[str, str]
) -> list[tuple[Path, Layout, Convert]]:
    """Return path and layout of each raster to write, and how blended channels (K, H, W) become its pixels."""
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
        base, dtype='uint8', count=1, nodata=NODATA_CLASS, names=['class'], classes=style.classes, colors=style.colors
    )
    outputs: list[tuple[Path, Layout, Convert]] = [(out, classes, likeliest)]
    if style.probabilities:
        names = style.classes if channels > 1 else style.classes[1:]
        outputs.append((probabilities_path(out), replace(base, names=names), lambda values: values))
    return outputs
