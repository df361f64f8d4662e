# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What the documentation names exists: modules, classes and functions, files, and the arguments of the command."""

import re
import shlex
from pathlib import Path
from pydoc import locate

import pytest

from torchgeo_clay.__main__ import _parser

#: Files of other projects that pages name.
ELSEWHERE = {'claymodel/api.py', 'claymodel/model.py'}


@pytest.fixture
def pages(repo_root: Path) -> dict[Path, str]:
    """Path of each page → its text."""
    written = [*repo_root.glob('*.md'), *(repo_root / 'docs').rglob('*.md')]
    paths = [path for path in written if not {'_build', 'generated'} & {*path.parts}]
    assert len(paths) > 25
    return {path: path.read_text(encoding='utf-8') for path in paths}


def test_names_can_be_imported(pages: dict[Path, str]) -> None:
    missing = []
    for path, text in pages.items():
        names = {name for name in re.findall(r'\btorchgeo_clay(?:\.\w+)+', text) if not name.endswith(('.md', '.py'))}
        for module, imported in re.findall(r'^\s*from (torchgeo_clay[\w.]*) import ([\w, ]+)', text, re.MULTILINE):
            names |= {f'{module}.{name.split(" as ")[0].strip()}' for name in imported.split(',')}
        missing += [(path.name, name) for name in sorted(names) if locate(name) is None]
    assert missing == []


def test_files_and_links_exist(pages: dict[Path, str], repo_root: Path) -> None:
    folders = [repo_root, repo_root / 'torchgeo_clay', repo_root / 'docs']
    missing = []
    for path, text in pages.items():
        named = {*re.findall(r'`((?:[\w-]+/)+[\w-]+\.(?:py|yaml|md))`', text)} - ELSEWHERE
        missing += [(path.name, name) for name in named if not any((folder / name).is_file() for folder in folders)]
        configs = {*re.findall(r'\bconfigs/[\w-]+\.yaml', text)}
        missing += [(path.name, name) for name in configs if not (repo_root / name).is_file()]
        linked = {*re.findall(r'\]\(([^)#: ]+)', text)}
        missing += [
            (path.name, link) for link in linked if not link.startswith('http') and not (path.parent / link).exists()
        ]
    assert missing == []


def test_commands_are_understood(pages: dict[Path, str]) -> None:
    parser, count = _parser(), 0
    for text in pages.values():
        whole = re.sub(r'\\\n\s*', ' ', text)
        for command in re.findall(r'^ +torchgeo-clay ([^#\n]+)', whole, re.MULTILINE):
            parser.parse_args(shlex.split(command))
            count += 1
    assert count > 5
