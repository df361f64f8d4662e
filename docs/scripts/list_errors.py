# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""List every error and warning that a user of the package can meet, read off its source: nothing is imported.

    python docs/scripts/list_errors.py          # as Markdown, which docs/errors.md shows

It lists each ``raise`` of :data:`BUILT_IN` exceptions and of their subclasses, each ``warn``, each
error of the command line, and each remark on a scanned file. What is filled in at the time is shown as ‹name›.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / 'torchgeo_clay'

#: Built-in exceptions for a mistake of the user, or a fault of the machine.
BUILT_IN = {
    'ValueError',
    'TypeError',
    'OSError',
    'FileNotFoundError',
    'IndexError',
    'FloatingPointError',
    'RuntimeError',
    'ChildProcessError',
}

#: Calls that warn, and the command line's own way to end with a message.
CALLS = {'warn': 'warning', 'rank_zero_warn': 'warning', 'error': 'command line'}

#: Functions besides ``…_problem`` that return a sentence about a file, for the user to check.
REMARKS = {'product_remark', 'undeclared_fill', '_far_gsd', '_order'}

#: Parts of the package, from the bottom up, and what the page calls them.
PARTS = {
    'sensors': 'Sensors',
    'conditioning': 'The batch contract',
    'models': 'Models and weights',
    'datasets': 'Files and datasets',
    'datamodules': 'Datamodules',
    'inference': 'Embeddings and maps of scenes',
    'writers': 'Written files',
    'simulator': 'Simulated scenes',
    'evaluation': 'Evaluation',
    'tasks': 'Tasks',
    'callbacks': 'Callbacks',
    '__main__': 'The command line',
}


@dataclass(frozen=True, order=True)
class Listed:
    """A message that a user can meet.

    Attributes:
        module: where it is raised, such as ``torchgeo_clay.sensors.sensor``.
        line: of the source.
        kind: name of the exception, ``warning`` or ``command line``.
        function: which says it, such as ``Sensor.select``.
        message: its text, with ‹name› where something is filled in.
    """

    module: str
    line: int
    kind: str
    function: str
    message: str

    @property
    def part(self) -> str:
        """The part of the package: a key of :data:`PARTS`."""
        return self.module.split('.')[1]

    @property
    def handed_on(self) -> bool:
        """Whether all of it is filled in: another message, which is listed where it is made."""
        return not re.search(r'\w', re.sub(r'‹[^‹›]*›', '', self.message))


def user_errors(trees: Iterable[ast.Module]) -> set[str]:
    """Names of the exceptions for users: the built-in ones and those that the package derives from them."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {node.name: {ast.unparse(base) for base in node.bases} for node in classes}
    known = set(BUILT_IN)
    while found := {name for name, of in bases.items() if of & known} - known:
        known |= found
    return known


def template(node: ast.expr, local: dict[str, ast.expr], depth: int = 0) -> str:
    """The text of a message, with ‹name› for what is filled in later.

    Args:
        node: the expression that is the message.
        local: name → what the function assigns to it last.
        depth: how many names were looked up on the way.
    """
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return ''.join(template(v.value if isinstance(v, ast.FormattedValue) else v, local, depth) for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left, local, depth) + template(node.right, local, depth)
    if parts := joined(node):
        return ' '.join(template(part, local, depth) for part in parts)
    if isinstance(node, ast.IfExp) and is_text(node.body) and is_text(node.orelse):
        either = [template(n, local, depth).strip() for n in (node.body, node.orelse)]
        return '‹' + ' / '.join(text or 'nothing' for text in either) + '›'
    if isinstance(node, ast.Name) and depth < 2 and is_text(value := local.get(node.id)):
        return template(value, local, depth + 1)
    return f'‹{short_name(node)}›'


def is_text(node: ast.expr | None) -> bool:
    """Whether an expression is a text, by its form."""
    if isinstance(node, ast.IfExp):
        return is_text(node.body) and is_text(node.orelse)
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add) and is_text(node.left)
    if parts := joined(node):
        return is_text(parts[0])
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def joined(node: ast.expr | None) -> list[ast.expr]:
    """What a text is joined of, as ``'\\n'.join(['…', *lines])`` is; nothing for other expressions."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Constant(), attr='join'), args=[ast.List(elts=elements)]):
            return [e.value if isinstance(e, ast.Starred) else e for e in elements]
    return []


def short_name(node: ast.expr) -> str:
    """What to call an expression that is filled in: its last name, or what has the shape or the type."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return short_name(node.value) if node.attr in ('shape', 'dtype', 'ndim', '__name__') else node.attr
    if isinstance(node, ast.Subscript):
        return short_name(node.value)
    if isinstance(node, ast.Call):
        if getattr(node.func, 'id', '') == 'suggest':
            return 'the nearest name'
        if isinstance(node.func, ast.Attribute) and short_name(node.func.value) not in ('os', '…'):
            return short_name(node.func.value)
        return short_name(node.args[0]) if node.args else short_name(node.func)
    names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
    return names[0] if names else '…'


class Finder(ast.NodeVisitor):
    """Collects the messages of one module."""

    def __init__(self, module: str, errors: set[str], functions: dict[str, ast.FunctionDef]) -> None:
        self.module, self.errors, self.functions = module, errors, functions
        self.found: list[Listed] = []
        self.names: list[str] = []
        self.local: dict[str, ast.expr] = {}

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.names.append(node.name)
        self.generic_visit(node)
        self.names.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self.local = self.local, {**self.local, **assigned(node)}
        self.names.append(node.name)
        self.generic_visit(node)
        self.names.pop()
        self.local = outer

    def visit_Raise(self, node: ast.Raise) -> None:
        if isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name) and node.exc.func.id in self.errors:
            texts = [a for a in node.exc.args if is_text(a)] or node.exc.args[-1:]
            self.add(node, node.exc.func.id, texts[0])
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, 'id', '')
        if name in CALLS and node.args:
            self.add(node, CALLS[name], node.args[0])
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        name = self.names[-1] if self.names else ''
        if (name.endswith('_problem') or name in REMARKS) and is_text(node.value) and getattr(node.value, 'value', 1):
            self.add(node, 'warning', node.value)
        self.generic_visit(node)

    def add(self, node: ast.stmt | ast.expr, kind: str, text: ast.expr) -> None:
        texts, local = [text], self.local
        if isinstance(text, ast.Call) and (maker := self.functions.get(getattr(text.func, 'id', ''))):
            texts = [n.value for n in ast.walk(maker) if isinstance(n, ast.Return) and is_text(n.value)] or texts
            local = assigned(maker)
        where = '.'.join(self.names)
        self.found += [Listed(self.module, node.lineno, kind, where, template(t, local)) for t in texts]


def assigned(function: ast.FunctionDef) -> dict[str, ast.expr]:
    """Name → what a function assigns to it last."""
    pairs = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            pairs[node.targets[0].id] = node.value
    return pairs


def list_errors(package: Path = PACKAGE) -> list[Listed]:
    """Every message of the package, sorted by module and line.

    Args:
        package: folder of the package.
    """
    trees = {path: ast.parse(path.read_text(encoding='utf-8')) for path in sorted(package.rglob('*.py'))}
    errors = user_errors(trees.values())
    functions = {n.name: n for tree in trees.values() for n in tree.body if isinstance(n, ast.FunctionDef)}
    found: list[Listed] = []
    for path, tree in trees.items():
        parts = path.relative_to(package.parent).with_suffix('').parts
        finder = Finder('.'.join(p for p in parts if p != '__init__'), errors, functions)
        finder.visit(tree)
        found += finder.found
    return sorted(found)


def escape(text: str) -> str:
    """A text as Markdown that shows it as it is."""
    return re.sub(r'([\\`*_{}\[\]<>#|$~])', r'\\\1', ' '.join(text.split()))


def markdown(listed: Iterable[Listed]) -> Iterator[str]:
    """The lines of the page: a section per part, a table per section."""
    order = list(PARTS)
    shown = [e for e in listed if not e.handed_on]
    by_part = sorted(shown, key=lambda e: (order.index(e.part) if e.part in order else len(order), e))
    for part, messages in groupby(by_part, key=lambda e: e.part):
        yield from (f'## {PARTS.get(part, part)}', '', '| message | kind | from |', '|---|---|---|')
        for e in messages:
            where = f'{e.module.removeprefix("torchgeo_clay.")}.{e.function}'
            yield f'| {escape(e.message)} | {e.kind} | `{where}` |'
        yield ''


if __name__ == '__main__':
    print('\n'.join(markdown(list_errors())))
