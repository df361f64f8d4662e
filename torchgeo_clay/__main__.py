# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Embed and map scenes with Clay v1.5."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from docstring_parser import parse
from jsonargparse import ArgumentParser

from torchgeo_clay.datamodules.common import counted
from torchgeo_clay.datamodules.sigterm import SIGTERM
from torchgeo_clay.inference import embed, map_scenes
from torchgeo_clay.inference.output import ANSWER
from torchgeo_clay.sensors import sensor_table

__all__ = ('configs', 'main', 'sensors')


def sensors() -> str:
    """Print the sensors, their bands, wavelengths (µm) and statistics."""
    return sensor_table()


def configs(name: str | None = None, copy: Path | None = None) -> str:
    """Print where the YAML files for ``torchgeo fit|predict --config`` are.

    Args:
        name: of one file; None for all.
        copy: a folder to copy them to.

    Raises:
        ValueError: for an unknown name, or files that would be replaced.
    """
    folder = configs_folder()
    names = sorted(path.name for path in folder.glob('*.yaml'))
    if name and name not in names:
        raise ValueError(f'no config {name!r} in {folder}; there are {", ".join(names)}')
    chosen = [name] if name else names
    if copy is None:
        return str(folder / name) if name else '\n  '.join([str(folder), *names])
    if there := [name for name in chosen if (copy / name).exists()]:
        raise ValueError(f'{copy} already holds {", ".join(there)}; nothing was copied')
    copy.mkdir(parents=True, exist_ok=True)
    return '\n'.join(str(shutil.copyfile(folder / name, copy / name)) for name in chosen)


def configs_folder() -> Path:
    """Return the folder of the YAML files for ``torchgeo fit --config``.

    Returns:
        ``configs/`` inside the installed package, else at the top of the checkout.

    Raises:
        FileNotFoundError: if neither is there.
    """
    package = Path(__file__).resolve().parent
    candidates = (package / 'configs', package.parent / 'configs')
    for folder in candidates:
        if any(folder.glob('*.yaml')):
            return folder
    raise FileNotFoundError(f'No configs in {candidates[0]} or {candidates[1]}: install the package again.')


#: Name of a command → its function, and the arguments that are positional, with their number.
_COMMANDS: dict[str, tuple[Callable[..., Any], dict[str, str | None]]] = {
    'embed': (embed, {'paths': '+'}),
    'map': (map_scenes, {'model_or_checkpoint': None, 'paths': '+'}),
    'configs': (configs, {'name': '?'}),
    'sensors': (sensors, {}),
}


def _parser() -> ArgumentParser:
    """Make the command line from the functions' signatures and docstrings."""
    parser = ArgumentParser(prog='torchgeo-clay', description=__doc__)
    commands = parser.add_subcommands()
    for command, (function, positional) in _COMMANDS.items():
        docstring = parse(function.__doc__ or '')
        texts = {param.arg_name: param.description for param in docstring.params}
        sub = ArgumentParser(description=docstring.short_description)
        for name, number in positional.items():
            options: dict[str, Any] = {} if number is None else {'nargs': number}
            sub.add_argument(name, type=str, help=texts[name], **options)
        sub.add_function_arguments(function, as_group=False, skip={*positional, 'bands'})
        if command in ('embed', 'map'):
            text = 'bands of the sensor, by name, separated by commas; all if left out'
            sub.add_argument('--bands', type=str | list[str] | None, help=text)
            sub.set_defaults(on_skipped='raise')
        commands.add_subcommand(command, sub, help=docstring.short_description)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: the arguments; None for those of the process.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    options = parser.instantiate(arguments)[arguments.subcommand].as_dict()
    options.pop('config', None)
    if isinstance(bands := options.get('bands'), str):
        options['bands'] = [name.strip() for name in bands.strip('[]').split(',')]
    if arguments.subcommand == 'embed' and options['out'] is None:
        parser.error('embed: expected --out TABLE.parquet, got none')
    try:
        with SIGTERM.listening(ANSWER) if arguments.subcommand in ('embed', 'map') else nullcontext():
            found = _COMMANDS[arguments.subcommand][0](**options)
    except (ValueError, OSError) as error:
        parser.exit(1, f'error: {error}\n')
    if isinstance(found, list):
        found = '\n'.join(map(str, found))
    text = found if isinstance(found, str) else f'{options["out"]}: {counted(len(found), "row")}'
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader has seen enough, as in torchgeo-clay sensors | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again when it exits


if __name__ == '__main__':
    main()
