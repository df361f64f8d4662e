# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The names that `import torchgeo_clay` gives."""

import subprocess
import sys

import pytest

import torchgeo_clay


def test_names_are_attributes_and_imported_when_used() -> None:
    script = """
import sys, torchgeo_clay
heavy = [name for name in ('inference', 'datamodules', 'tasks', 'callbacks') if f'torchgeo_clay.{name}' in sys.modules]
assert not heavy, heavy
assert set(torchgeo_clay.__all__) <= set(dir(torchgeo_clay))
for name in torchgeo_clay.__all__:
    getattr(torchgeo_clay, name)
"""
    subprocess.run([sys.executable, '-c', script], check=True)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match=r'no attribute .embeddings'):
        torchgeo_clay.embeddings  # noqa: B018
