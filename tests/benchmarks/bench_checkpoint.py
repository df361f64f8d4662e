# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Peak memory and time of loading the large encoder from a made-up file of the release's layout and size.

``bench.py`` runs it; alone it is ``python tests/benchmarks/bench_checkpoint.py [--json PATH] [--folder DIR]``. It
writes 5.16 GB (encoder, decoder, projection, DINOv2 teacher, and AdamW's two moments of all that is trained) into a
temporary folder and deletes them. Each way of loading runs in a process of its own; "peak" is the largest resident
memory of that process minus what it had after its imports. The requirement: the encoder alone, under 1.9 GB.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measuring import Peak

LIMIT_GB = 1.9
TEACHER = 'vit_large_patch14_reg4_dinov2.lvd142m'


def write(path: Path) -> None:
    """Write the file; its tensors are pages nobody has touched, so that this takes a fraction of its size in memory."""
    import timm
    import torch

    from torchgeo_clay import models
    from torchgeo_clay.models.weights import released_name

    with torch.device('meta'):
        mae = models.clay_mae_large_patch8(teacher_dim=1024)
        teacher = timm.create_model(TEACHER, num_classes=0)
    trained = {f'model.encoder.{released_name(k)}': v.shape for k, v in mae.encoder.state_dict().items()}
    trained |= {f'model.decoder.{released_name(k)}': v.shape for k, v in mae.decoder.state_dict().items()}
    trained |= {f'model.proj.{k}': v.shape for k, v in mae.proj.state_dict().items()}
    frozen = {f'model.teacher.{k}': v.shape for k, v in teacher.state_dict().items()}

    def tensors(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
        return {name: torch.empty(shape) for name, shape in shapes.items()}

    moments = [{'step': torch.tensor(1.0), **tensors({'exp_avg': s, 'exp_avg_sq': s})} for s in trained.values()]
    groups = [
        {'lr': 1e-5, 'betas': (0.9, 0.95), 'eps': 1e-8, 'weight_decay': 0.05, 'params': list(range(len(trained)))}
    ]
    contents = {
        'epoch': 76,
        'pytorch-lightning_version': '2.5.0',
        'state_dict': tensors(trained | frozen),
        'optimizer_states': [{'state': dict(enumerate(moments)), 'param_groups': groups}],
        'hyper_parameters': {'model_size': 'large', 'teacher': TEACHER, 'lr': 1e-5},
    }
    torch.save(contents, path)


def ours(path: Path) -> tuple[Callable[[], object], str]:
    """The package's reader."""
    from torchgeo_clay.models import clay_large_patch8

    return lambda: clay_large_patch8(weights=path), 'clay_large_patch8(weights=PATH)'


def ours_whole(path: Path) -> tuple[Callable[[], object], str]:
    """The package's reader, of the whole autoencoder with its teacher."""
    from torchgeo_clay.models import clay_mae_large_patch8

    return lambda: clay_mae_large_patch8(
        weights=path, teacher=TEACHER
    ), 'clay_mae_large_patch8(weights=PATH, teacher=…)'


def plain(path: Path) -> tuple[Callable[[], object], str]:
    """What one does without it: the whole file through torch.load into an encoder that is in memory already."""
    import torch

    from torchgeo_clay.models import clay_large_patch8
    from torchgeo_clay.models.weights import released_name

    def load() -> object:
        model = clay_large_patch8()
        state = torch.load(path, map_location='cpu', weights_only=True)['state_dict']
        model.load_state_dict({k: state[f'model.encoder.{released_name(k)}'] for k in model.state_dict()})
        return model

    return load, 'torch.load, then load_state_dict'


WAYS = {'ours': ours, 'ours_whole': ours_whole, 'plain': plain}


def measure(way: str, path: Path) -> dict[str, object]:
    """Load in this process, and say what it took."""
    load, label = WAYS[way](path)
    start = time.perf_counter()
    with Peak() as peak:
        model = load()
    seconds = time.perf_counter() - start
    count = sum(p.numel() for p in model.parameters())
    return {'way': label, 'peak_gb': peak.bytes / 1e9, 'seconds': seconds, 'parameters': count}


def in_processes(path: Path, rounds: int) -> list[dict[str, object]]:
    """Measure the ways in turn, each time in a process of its own; medians, and the largest peak."""
    environment = os.environ | {'OMP_NUM_THREADS': '1'}
    found: dict[str, list[dict[str, object]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            command = [sys.executable, __file__, '--measure', way, '--file', str(path)]
            output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            found[way].append(json.loads(output.splitlines()[-1]))
    return [
        {
            **runs[0],
            'seconds': statistics.median(r['seconds'] for r in runs),
            'peak_gb': max(r['peak_gb'] for r in runs),
            'runs': rounds,
        }
        for runs in found.values()
    ]


def main() -> int:
    """Write the file, measure, print; 1 if the encoder takes more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--json', type=Path, help='write the figures there too')
    parser.add_argument('--folder', type=Path, default=Path(tempfile.gettempdir()), help='where 5.2 GB have room')
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--measure', choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument('--write', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--file', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.file)))
        return 0
    if args.write:
        write(args.file)
        return 0
    if (free := shutil.disk_usage(args.folder).free) < 6e9:
        parser.error(f'{args.folder} has {free / 1e9:.1f} GB free, 6 are needed; name another with --folder')
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / 'made-up.ckpt'
        subprocess.run([sys.executable, __file__, '--write', '--file', str(path)], check=True)
        size = path.stat().st_size
        results = in_processes(path, args.rounds)
    print(f'file: {size / 1e9:.2f} GB\n')
    print(f'{"way":<52} {"peak GB":>8} {"seconds":>8}  parameters')
    for row in results:
        print(f'{row["way"]:<52} {row["peak_gb"]:>8.2f} {row["seconds"]:>8.1f}  {row["parameters"]:,}')
    report = {'file_gb': size / 1e9, 'limit_gb': LIMIT_GB, 'results': results}
    print('\n' + json.dumps(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + '\n')
    return int(results[0]['peak_gb'] > LIMIT_GB)


if __name__ == '__main__':
    sys.exit(main())
