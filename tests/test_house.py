# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The house as CONTRIBUTING.md draws it: a room imports rooms of lower floors only, and no two modules each other."""

import ast
import graphlib
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import torchgeo_clay

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


def module_name(path: Path, package: Path) -> str:
    """Dotted name of a file."""
    return '.'.join(path.relative_to(package.parent).with_suffix('').parts).removesuffix('.__init__')


def imports(package: Path) -> dict[str, set[str]]:
    """The modules of the package that each module imports, also within functions."""
    paths = {module_name(path, package): path for path in package.rglob('*.py')}
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.ImportFrom):
                module = node.module or ''
                found |= {
                    f'{module}.{alias.name}' if f'{module}.{alias.name}' in paths else module for alias in node.names
                }
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        graph[name] = {module for module in found if module in paths and module != name}
    return graph


def room(module: str) -> str:
    """The part of the package that a module belongs to."""
    return module.split('.')[1] if '.' in module else ''


def test_imports_point_downwards(repo_root: Path) -> None:
    graph = imports(repo_root / 'torchgeo_clay')
    assert len(graph) > 80
    wrong = [
        f'{module} imports {other}'
        for module, others in graph.items()
        for other in others
        if room(module) in FLOOR and room(other) != room(module) and FLOOR.get(room(other), 99) >= FLOOR[room(module)]
    ]
    assert wrong == []


def test_every_room_has_a_floor(repo_root: Path) -> None:
    folders = {path.name for path in (repo_root / 'torchgeo_clay').iterdir() if (path / '__init__.py').exists()}
    assert folders <= FLOOR.keys()


def test_no_modules_import_each_other(repo_root: Path) -> None:
    """No circle of imports of any length."""
    list(graphlib.TopologicalSorter(imports(repo_root / 'torchgeo_clay')).static_order())


def test_public_names_are_attributes() -> None:
    """Each name in an ``__all__`` is there, also those that are imported only when they are used."""
    names = [m.name for m in pkgutil.walk_packages(torchgeo_clay.__path__, 'torchgeo_clay.') if m.ispkg]
    for name in ['torchgeo_clay', *names]:
        module = importlib.import_module(name)
        assert [n for n in getattr(module, '__all__', ()) if not hasattr(module, n)] == []


def test_rooms_are_attributes_after_an_import() -> None:
    """In a process of its own, as imports of other tests would make them attributes too."""
    program = 'import torchgeo_clay as t; print([n for n in t.__all__ if not hasattr(t, n)])'
    output = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == '[]'
