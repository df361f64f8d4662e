# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""List the arguments of every task, datamodule and callback, read off signatures and docstrings; and the YAML files.

python docs/scripts/list_options.py        # as Markdown, which docs/configuration.md shows
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate

from torchgeo_clay import callbacks, datamodules, tasks
from torchgeo_clay.callbacks.scene_writers import SceneWriter, TaskWriter
from torchgeo_clay.tasks.base import ClayTask, ImageTask

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'

#: What is listed: heading → the module whose public names they are.
GROUPS = {'Tasks': tasks, 'Datamodules': datamodules, 'Callbacks': callbacks}

#: What tasks and writers inherit, listed once, before them.
SHARED = {tasks: (ClayTask, ImageTask), callbacks: (SceneWriter, TaskWriter)}

_ARGUMENT = re.compile(r'^(\**\w+): (.*)')

#: "see :class:`…`", with or without "as for the next two".
_ELSEWHERE = re.compile(r'^see :class:`~?(torchgeo_clay[\w.]+)`(?:, as for [\w ]+)?\.$')


def documented(docstring: str) -> dict[str, str]:
    """Name → text of the arguments that a Google docstring describes.

    Args:
        docstring: of a function.
    """
    section = re.search(r'^Args:\n(.*?)(?=^\S|\Z)', inspect.cleandoc(docstring), re.MULTILINE | re.DOTALL)
    lines = inspect.cleandoc('\n' + section[1]).splitlines() if section else []
    found: dict[str, str] = {}
    for line in lines:
        if match := _ARGUMENT.match(line):
            name = match[1].lstrip('*')
            found[name] = match[2]
        elif line.strip():
            found[name] += ' ' + line.strip()
    return found


def linked(match: re.Match[str]) -> str:
    """A role in MyST's form, its target being where the object is defined, which is where its page is."""
    role, target = match[1], match[2].lstrip('~')
    found = locate(target)
    name = getattr(found, '__qualname__', target.rpartition('.')[2])
    where = f'{found.__module__}.{name}' if hasattr(found, '__qualname__') else target
    return f'{{py:{role}}}`{name} <{where}>`'


def cell(text: str) -> str:
    """A docstring's reStructuredText as a Markdown cell: roles in MyST's form, no bare bar."""
    text = re.sub(r':(\w+):`([^`]+)`', linked, ' '.join(text.split()))
    return text.replace('``', '`').replace('|', '\\|')


def code(text: str) -> str:
    """A cell of code."""
    return '`' + text.replace('|', '\\|') + '`'


def described(cls: type, name: str) -> str:
    """What an argument is; follows references to another class.

    Args:
        cls: the class.
        name: of the argument.

    Raises:
        ValueError: for an argument without a description.
    """
    texts = documented(cls.__doc__ or '') | documented(cls.__init__.__doc__ or '')
    if name not in texts:
        raise ValueError(f'{cls.__name__}: the docstring of __init__ does not describe {name!r}.')
    text = texts[name]
    if text == 'see there.':  # where the argument before it was seen
        text = next(t for t in list(texts.values())[list(texts).index(name) :: -1] if _ELSEWHERE.match(t))
    other = locate(match[1]) if (match := _ELSEWHERE.match(text)) else None
    return described(other, name) if inspect.isclass(other) else text


def arguments(cls: type) -> Iterator[str]:
    """The rows of a class's table: argument, type, default, meaning.

    Args:
        cls: the class.
    """
    for parameter in inspect.signature(cls).parameters.values():
        name, what = parameter.name, cell(described(cls, parameter.name))
        default = 'required' if parameter.default is parameter.empty else code(repr(parameter.default))
        if parameter.kind is parameter.VAR_KEYWORD:
            name, default = f'**{name}', ''
        kind = '' if parameter.annotation is parameter.empty else code(str(parameter.annotation))
        yield f'| {code(name)} | {kind} | {default} | {what} |'


def is_listed(member: object) -> bool:
    """Whether a public name is a class that a YAML's class_path can name, and no exception."""
    return inspect.isclass(member) and not issubclass(member, BaseException)


def options() -> Iterator[str]:
    """The lines of the reference: a section per group, a table per class."""
    for heading, module in GROUPS.items():
        yield from (f'## {heading}', '')
        listed = [member for name in module.__all__ if is_listed(member := getattr(module, name))]
        for member in [*SHARED.get(module, ()), *listed]:
            name, where = member.__name__, f'{member.__module__}.{member.__name__}'
            public = f'{module.__name__}.{name}' if member in listed else where
            summary = cell((member.__doc__ or '').split('\n\n')[0])
            yield from (f'### {name}', '', f'{{py:class}}`{public} <{where}>`: {summary}')
            yield from ('', '| argument | type | default | what it is |', '|---|---|---|---|', *arguments(member), '')


def configs(folder: Path = CONFIGS) -> Iterator[str]:
    """The lines of a table of the YAML files, each with the first sentence of its comment.

    Args:
        folder: of the files.
    """
    yield from ('| file | what it is for |', '|---|---|')
    for path in sorted(folder.glob('*.yaml')):
        paragraph = re.match(r'(?:# .*\n)*', path.read_text(encoding='utf-8'))[0]
        comment = ' '.join(paragraph.replace('#', ' ').split())
        yield f'| `{path.name}` | {cell(re.split(r"(?<=[.]) |: *$", comment)[0].rstrip(":."))} |'


if __name__ == '__main__':
    print('\n'.join((*configs(), '', *options())))
