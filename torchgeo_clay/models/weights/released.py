# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The released weights, pinned by commit, and how they are fetched and verified."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of requests, httpx or httpx2, by version
from torch import Tensor, nn
from torchvision.models._api import Weights, WeightsEnum

from torchgeo_clay.models.weights.files import CheckpointError
from torchgeo_clay.models.weights.names import read_encoder

__all__ = ('ClayLarge8_Weights', 'WeightsLike', 'resolve_weights')

_REPO, _FILE = 'made-with-clay/Clay', 'v1.5/clay-v1.5.ckpt'

#: Last known commit of the file.
_REVISION = '2033cf5c59afbd8fef655008d0b0a9d6861951c8'


class ClayLarge8_Weights(WeightsEnum):
    """Released weights of the large model.

    The file has 5.16 GB, as it holds decoder, teacher and optimizer state too; loading reads the parts it needs.
    The weights are licensed under Apache-2.0.
    """

    CLAY_V1_5 = Weights(
        url=hf_hub_url(_REPO, _FILE, revision=_REVISION),
        transforms=nn.Identity(),  # normalization follows the sensor of each image, see torchgeo_clay.sensors
        meta={
            'model': 'clay_large_patch8',
            'dataset': 'Clay v1.5 training data: Sentinel-2, Sentinel-1, Landsat 8/9, NAIP, LINZ, MODIS',
            'repo': 'https://github.com/Clay-foundation/model',
            'hf_repo': _REPO,
            'filename': _FILE,
            'revision': _REVISION,
            'license': 'Apache-2.0',
            'num_params': 311442944,
        },
    )

    def fetch(self, cache_dir: str | os.PathLike[str] | None = None) -> Path:
        """Fetch the file through the Hub's cache (``HF_HOME``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` are respected).

        Args:
            cache_dir: another cache than the Hub's own.

        Returns:
            The path of the file.

        Raises:
            CheckpointError: if the Hub cannot be reached, or the file received does not have the Hub's SHA-256.
        """
        where = {'repo_id': self.meta['hf_repo'], 'filename': self.meta['filename'], 'revision': self.meta['revision']}
        cache = None if cache_dir is None else Path(cache_dir)
        cached = try_to_load_from_cache(**where, cache_dir=cache)
        if isinstance(cached, str):
            return Path(cached)
        try:
            path = Path(hf_hub_download(**where, cache_dir=cache))
            expected = _hub_digest(path, where)
        except (OSError, RuntimeError, ValueError, HTTPError) as error:
            cause = '' if str(error.__cause__) in str(error) else f' ({error.__cause__})'
            raise CheckpointError(
                f'{self!r}: {where["filename"]} of {where["repo_id"]} could not be fetched: '
                f'{error}{cause} Offline? Fetch it where there is a network, and copy the Hub cache, or give weights= '
                'the path of the file.'
            ) from error
        _verify(path, expected, where)
        return path

    def get_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Fetch the encoder's weights under this package's names, as TorchGeo's tasks do.

        Args:
            *args: ignored (torchvision's are for downloads by URL).
            **kwargs: ignored.
        """
        return read_encoder(self.fetch())


#: ``weights`` everywhere in this package: True for the release's, a member of the enum or its name, the path of a
#: file, or None or False for random ones.
WeightsLike = ClayLarge8_Weights | bool | str | os.PathLike[str] | None


def _hub_digest(path: Path, where: dict[str, str]) -> str:
    """The SHA-256 that the Hub states for a file: the name of a large file in its cache, and the file's ETag."""
    digest = path.resolve().name
    if not re.fullmatch('[0-9a-f]{64}', digest):  # a cache without symbolic links, as on Windows
        digest = str(get_hf_file_metadata(hf_hub_url(**where)).etag)
    return digest


def _verify(path: Path, expected: str, where: dict[str, str]) -> None:
    """Compare a fetched file with the Hub's SHA-256, and remove it if they differ."""
    with open(path, 'rb') as file:
        got = hashlib.file_digest(file, 'sha256').hexdigest()
    if got != expected:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise CheckpointError(
            f'{where["filename"]} of {where["repo_id"]}: the Hub states SHA-256 {expected}, the file received '
            f'has {got}. It was removed from the cache; fetch it again.'
        )


def resolve_weights(weights: WeightsLike, model: str) -> Path | None:
    """Find the file that ``weights`` means, and fetch it if it is released.

    Args:
        weights: True for the release's, a member of the enum or its name (``CLAY_V1_5`` or
            ``ClayLarge8_Weights.CLAY_V1_5``), a path, or None or False for random ones.
        model: name of the encoder's builder.

    Returns:
        The file, or None for random weights.

    Raises:
        CheckpointError: for True or a member where none were released for this size, an unknown member, or weights
            that cannot be fetched.
    """
    if weights is None or weights is False:
        return None
    members = ClayLarge8_Weights.__members__
    released = {w.meta['model']: w for w in members.values()}
    if weights is True:
        if model not in released:
            raise CheckpointError(
                f'weights=True: there are no released weights of {model}. Released: {", ".join(released)}. For weights '
                'of your own pretraining give weights= the path of its checkpoint; for random ones, False.'
            )
        return released[model].fetch()
    if isinstance(weights, str):
        enum, _, name = weights.rpartition('.')
        if enum == ClayLarge8_Weights.__name__ and name not in members:
            raise CheckpointError(f'No weights {weights!r}. Released: {list(members.values())}.')
        weights = members[name] if enum in ('', ClayLarge8_Weights.__name__) and name in members else weights
    if not isinstance(weights, ClayLarge8_Weights):
        return Path(weights)
    if weights.meta['model'] != model:
        raise CheckpointError(
            f'{weights!r} are weights of {weights.meta["model"]}, not of {model}. Of Clay v1.5 only the large model is '
            'released; for other sizes give weights= a checkpoint of your own pretraining, or None.'
        )
    return weights.fetch()
