# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Pairs of the released model and ours."""

from collections.abc import Callable
from types import ModuleType

import pytest
from pair import Pair


@pytest.fixture(scope='session')
def make_pair(reference: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Make pairs by size, each once."""
    pairs: dict[str, Pair] = {}

    def make(size: str) -> Pair:
        if size not in pairs:
            pairs[size] = Pair(reference, size, tmp_path_factory.mktemp('parity'))
        return pairs[size]

    return make
