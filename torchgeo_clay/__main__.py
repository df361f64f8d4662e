# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Show what an installation brings along: ``python -m torchgeo_clay sensors`` and ``… configs``."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from torchgeo_clay.sensors import sensor_table


def configs_folder() -> Path:
    """The folder of the YAML files for ``torchgeo fit --config``.

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


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog='python -m torchgeo_clay', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('sensors', help='print the sensors, their bands, wavelengths (µm) and statistics')
    configs = commands.add_parser('configs', help='print where the YAML files for torchgeo fit --config are')
    configs.add_argument('name', nargs='?', help='print the path of this file alone, for use in a command')
    configs.add_argument('--copy', type=Path, metavar='DIR', help='copy the files into a folder, replacing none')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: the arguments; None for those of the process.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command == 'sensors':
        print(sensor_table())
        return
    folder = configs_folder()
    names = sorted(path.name for path in folder.glob('*.yaml'))
    if args.name and args.name not in names:
        parser.error(f'no config {args.name!r} in {folder}; there are {", ".join(names)}')
    chosen = [args.name] if args.name else names
    if args.copy:
        args.copy.mkdir(parents=True, exist_ok=True)
        if there := [name for name in chosen if (args.copy / name).exists()]:
            parser.error(f'{args.copy} already holds {", ".join(there)}; nothing was copied')
        for name in chosen:
            shutil.copyfile(folder / name, args.copy / name)
            print(args.copy / name)
    elif args.name:
        print(folder / args.name)
    else:
        print(folder, *(f'  {name}' for name in names), sep='\n')


if __name__ == '__main__':
    main()
