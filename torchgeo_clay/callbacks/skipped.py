# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""How a run over many scenes ends when some of them could not be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lightning.pytorch.utilities import rank_zero_info

from torchgeo_clay.datasets import SceneError

__all__ = ('LeftOut', 'ScenesLeftOut', 'report_left_out')

LeftOut = Literal['raise', 'warn']


class ScenesLeftOut(SceneError):
    """All that could be done is written, but some scenes could not be used; the message names them."""


def report_left_out(failed: Mapping[str, str], done: str, how: LeftOut) -> None:
    """Name the scenes that could not be used, if there are any.

    Args:
        failed: path → reason.
        done: what became of the others.
        how: whether it is an error.

    Raises:
        ScenesLeftOut: for ``how='raise'``.
    """
    if not failed:
        return
    lines = ''.join(f'\n  {path}: {reason}' for path, reason in failed.items())
    text = f'{len(failed)} files could not be used; {done}:{lines}'
    if how == 'raise':
        raise ScenesLeftOut(text)
    rank_zero_info(text)
