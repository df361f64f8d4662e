# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Embeddings read back from GeoParquet. Shapes: N rows, D width."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from shapely import MultiPolygon, Point
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry
from torchgeo.datasets import ClayEmbeddings as TorchGeoClayEmbeddings

from torchgeo_clay.datasets.upstream import Path, Sample

__all__ = ('ClayEmbeddings', 'embedding_matrix')


class ClayEmbeddings(TorchGeoClayEmbeddings):
    """TorchGeo's dataset of Clay's embeddings, also for unknown dates and places and quantized embeddings.

    Samples hold ``embedding`` (D,) float32, ``x`` and ``y``, longitude and latitude of the footprint's center, and
    ``t``, seconds UTC; NaN for unknown.

    Attributes:
        data: the table, a GeoDataFrame.
    """

    def __init__(self, root: Path = 'data', transforms: Callable[[Sample], Sample] | None = None) -> None:
        """Initialize a new ClayEmbeddings instance.

        Args:
            root: a GeoParquet file, or a folder of them.
            transforms: called on each sample.

        Raises:
            DatasetNotFoundError: if there is none.
        """
        super().__init__(root, transforms)

    @property
    def embeddings(self) -> npt.NDArray[np.float32]:
        """All embeddings: (N, D) float32."""
        return embedding_matrix(self.data)

    def __getitem__(self, index: int) -> Sample:
        """Return a row.

        Args:
            index: of the row.

        Returns:
            The sample, as the class describes it.
        """
        row = self.data.iloc[index]
        embedding = torch.tensor(np.asarray(row['embedding'])).float()
        center, time = _center(row['geometry']), row.get('datetime')
        sample: Sample = {
            'embedding': embedding * float(row['scale']) if 'scale' in row else embedding,
            'x': torch.tensor(math.nan if center.is_empty else center.x, dtype=torch.float64),
            'y': torch.tensor(math.nan if center.is_empty else center.y, dtype=torch.float64),
            't': torch.tensor(math.nan if pd.isna(time) else pd.Timestamp(time).timestamp(), dtype=torch.float64),
        }
        return sample if self.transforms is None else self.transforms(sample)


def embedding_matrix(table: pd.DataFrame) -> npt.NDArray[np.float32]:
    """Return the embeddings of a table, (N, D) float32.

    Args:
        table: with ``embedding``, and ``scale`` where that is quantized.
    """
    values = np.stack(list(table['embedding'])).astype(np.float32)
    return values * table['scale'].to_numpy(np.float32)[:, None] if 'scale' in table else values


def _center(footprint: BaseGeometry) -> Point:
    """Return a footprint's center; for one cut at the antimeridian (RFC 7946), near ±180°, not at 0°."""
    if not isinstance(footprint, MultiPolygon):
        return footprint.centroid
    east = MultiPolygon([translate(part, 360 if part.centroid.x < 0 else 0) for part in footprint.geoms])
    center = east.centroid
    return Point((center.x + 180) % 360 - 180, center.y)
