# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""How fast things are, as ratios and shares of a limit that are measured in the same run.

Run it as ``make bench``, or ``python tests/benchmarks/bench.py [--only CASE …] [--json PATH]``. What is compared takes
turns (A B A B); a figure is the median of several runs. "peak" is the share of the fastest matrix product of the same
dtype in the same run, "MB" the memory above that before a run. On a CPU the defaults are small enough for minutes;
where there is a GPU it is taken, in bfloat16, with the release's sizes. Nothing here decides whether a test passes.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from cases_data import embedding, loading
from cases_model import encoder, training
from measuring import Row

CASES = ('import', 'checkpoint', 'chips', 'encoder', 'training', 'embedding')


def machine(device: torch.device) -> str:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name() if device.type == 'cuda' else platform.processor() or platform.machine()
    threads = f'{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}'
    return f'{name}, {threads}, torch {torch.__version__}, Python {platform.python_version()}'


def importing(rounds: int) -> list[Row]:
    """What the plugin adds to the import of TorchGeo's command, in fresh interpreters that take turns."""
    code = {
        'import torchgeo.main': 'import torchgeo.main',
        'import torchgeo_clay after it': 'import torchgeo.main; t = time.perf_counter(); import torchgeo_clay',
    }
    seconds: dict[str, list[float]] = {name: [] for name in code}
    for _ in range(rounds):
        for name, line in code.items():
            script = f'import time; t = time.perf_counter(); {line}; print(time.perf_counter() - t)'
            output = subprocess.run([sys.executable, '-c', script], check=True, capture_output=True, text=True).stdout
            seconds[name].append(float(output.split()[-1]))
    rows = []
    for name, runs in seconds.items():
        rows.append(Row('import', name, 1, statistics.median(runs), len(runs), None))
        print(rows[-1].line(), flush=True)
    return rows


def loading_weights(folder: Path) -> list[Row]:
    """The large encoder out of a file of the release's size and layout, each time in a process of its own."""
    path = folder / 'checkpoint.json'
    script = Path(__file__).with_name('bench_checkpoint.py')
    subprocess.run([sys.executable, script, '--json', path, '--folder', folder], check=False, stdout=subprocess.DEVNULL)
    found = json.loads(path.read_text())['results']
    plain = found[-1]['seconds']
    rows = [
        Row('checkpoint', r['way'], 1, r['seconds'], r['runs'], plain / r['seconds'], peak_mb=r['peak_gb'] * 1e3)
        for r in (found[-1], *found[:-1])
    ]
    for row in rows:
        print(row.line(), flush=True)
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', nargs='+', choices=CASES, default=CASES, help='which cases')
    parser.add_argument('--json', type=Path, help='write the figures there too')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--size', default='large', help='of the encoder and in training')
    parser.add_argument('--pixels', type=int, help='sides of the images; 128 on a CPU, 256 on a GPU')
    parser.add_argument('--batch', type=int, help='4 on a CPU, 64 on a GPU; in training 1 and 32')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--bfloat16', action='store_true', help='on a CPU too, which may take long')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    os.environ['GDAL_CACHEMAX'] = '64'  # MB; chips are read again and again, which GDAL would keep decoded in memory
    device = torch.device(args.device)
    on_gpu = device.type == 'cuda'
    pixels = args.pixels or (256 if on_gpu else 128)
    print(f'{machine(device)}\nimages of {pixels} x {pixels} x 10\n\n{Row.heading()}', flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = {
            'import': lambda: importing(args.rounds),
            'checkpoint': lambda: loading_weights(folder),
            'chips': lambda: loading(folder / 'chips', args.rounds + 2),
            'encoder': lambda: encoder(
                args.size, args.batch or (64 if on_gpu else 4), pixels, args.rounds, device, args.bfloat16
            ),
            'training': lambda: training(args.size, args.batch or (32 if on_gpu else 1), pixels, args.rounds, device),
            'embedding': lambda: embedding(folder / 'embedding', 'large' if on_gpu else 'small', args.rounds, device),
        }
        for case in CASES:
            if case in args.only:
                rows += runs[case]()
    report = {'machine': machine(device), 'load': os.getloadavg()[0], 'pixels': pixels}
    report['rows'] = [row.as_dict() for row in rows]
    print('\n' + json.dumps(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
    main()
