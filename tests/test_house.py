# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The floors of the house, as CONTRIBUTING.md draws it: a module imports from its own floor and those below."""

import ast
from pathlib import Path

FLOORS = (
    {'sensors'},
    {'conditioning'},
    {'simulator', 'writers'},
    {'models'},
    {'datasets'},
    {'datamodules'},
    {'evaluation'},
    {'tasks'},
    {'inference'},
    {'plugins'},
    {'callbacks'},
)
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}


def imported(path: Path) -> set[str]:
    """Parts of the package that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [node.module or ''] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {m.split('.')[1] for m in modules if m.startswith('torchgeo_clay.')}
    return found


def test_imports_point_downwards(repo_root: Path) -> None:
    package = repo_root / 'torchgeo_clay'
    files = [path for path in package.rglob('*.py') if path.parent != package or path.stem in FLOOR]
    assert len(files) > 100
    parts = {path: path.relative_to(package).parts[0].removesuffix('.py') for path in files}
    wrong = [
        f'{path.relative_to(package)} imports {other}'
        for path, part in parts.items()
        for other in imported(path)
        if FLOOR[other] > FLOOR[part]
    ]
    assert wrong == []
