# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Runs of TorchGeo's command on several processes, as torchrun starts them, and callbacks that tell on them.

As a script it imports TorchGeo once and forks every process of every run: importing takes longer than these runs do.
"""

import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

HERE = Path(__file__).parent
LIMIT_S = 240  # of a run: what hangs fails


class RankLosses(pl.Callback):
    """Writes a line per training step and rank, and one per validation of the first rank."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def write(self, trainer: pl.Trainer, name: str, line: Any) -> None:
        with open(self.folder / f'{name}{trainer.global_rank}.jsonl', 'a', encoding='utf-8') as file:
            file.write(json.dumps(line) + '\n')

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        line = trainer.global_step, batch['sensor'], batch['index'].tolist(), outputs['loss'].item()
        self.write(trainer, 'steps', line)

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.write(trainer, 'val', {k: float(v) for k, v in trainer.callback_metrics.items() if 'val_loss' in k})


class PoisonRank(pl.Callback):
    """Makes an image of one step of one rank NaN, as no check of the datamodule would let it be."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_rank == self.rank and trainer.global_step + 1 == self.step:
            batch['image'][0] = float('nan')


class KillRank(pl.Callback):
    """Kills one process, which can do nothing about it, within a step: after its gradients, before its update."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_after_backward(self, trainer, module):
        if trainer.global_rank == self.rank and trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class TerminateRank(pl.Callback):
    """Asks one process to stop, and no other, within a step."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_after_backward(self, trainer, module):
        if trainer.global_rank == self.rank and trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@dataclass
class Run:
    """A run of the command: its folder, number of processes, and arguments."""

    folder: str
    ranks: int
    arguments: list[str]
    of_rank: dict[str, list[str]] = field(default_factory=dict)  # more arguments of some
    command: str = 'fit'

    def told(self, rank: int) -> str:
        """Return the output of a rank."""
        return Path(self.folder, f'printed{rank}.txt').read_text(encoding='utf-8')

    def lines(self, name: str) -> list[Any]:
        """What the callback wrote; of steps (number, sensor, samples of all ranks, mean of their losses)."""
        files = [Path(self.folder, f'{name}{rank}.jsonl') for rank in range(self.ranks)]
        parts = [[json.loads(line) for line in f.read_text().splitlines()] for f in files if f.exists()]
        if name != 'steps':
            return parts[0]
        length = min(map(len, parts))  # of a rank that was killed one less
        steps = []
        for of_ranks in zip(*(part[:length] for part in parts), strict=True):
            assert len({(number, sensor) for number, sensor, *_ in of_ranks}) == 1
            loss = sum(loss for *_, loss in of_ranks) / len(of_ranks)
            steps.append([*of_ranks[0][:2], [i for part in of_ranks for i in part[2]], loss])
        return steps


def start(runs: list[Run]) -> list[list[int]]:
    """Do runs one after another in one process that forks; the exit codes of each run's ranks."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get('PYTHONPATH')])])
    environment = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    said = subprocess.run(
        [sys.executable, __file__], input=json.dumps([asdict(run) for run in runs]), env=environment, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    print(said.stderr)
    return json.loads(said.stdout.splitlines()[-1])


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def become_rank(run: Run, rank: int, port: int) -> None:
    """Be one process of a run, with the environment that torchrun gives it; does not return."""
    from torchgeo.main import main

    world = {
        'RANK': rank, 'LOCAL_RANK': rank, 'GROUP_RANK': 0, 'WORLD_SIZE': run.ranks, 'LOCAL_WORLD_SIZE': run.ranks,
        'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'TORCHELASTIC_RUN_ID': 'test',
    }  # fmt: skip
    if run.ranks > 1:
        os.environ.update({name: str(value) for name, value in world.items()})
    printed = os.open(f'{run.folder}/printed{rank}.txt', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.chdir(run.folder)
    strategy = 'ddp' if run.ranks > 1 else 'auto'
    options = [f'--trainer.devices={run.ranks}', f'--trainer.strategy={strategy}', '--trainer.accelerator=cpu']
    sys.argv = ['torchgeo', run.command, *run.arguments, *options, *run.of_rank.get(str(rank), [])]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001  # nothing of this process is to go on in its parent's code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pids: list[int]) -> list[int]:
    """Exit codes of processes, -9 for killed ones and for those that don't end."""
    codes: dict[int, int] = {}
    until = time.monotonic() + LIMIT_S
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                codes[pid] = -999
        time.sleep(0.05)
    return [codes[pid] for pid in pids]


def do(run: Run) -> list[int]:
    """Fork the processes of a run and wait for them."""
    Path(run.folder).mkdir(parents=True, exist_ok=True)
    port, pids = free_port(), []
    for rank in range(run.ranks):
        pid = os.fork()
        if pid == 0:
            become_rank(run, rank, port)
        pids.append(pid)
    return wait(pids)


if __name__ == '__main__':
    for name in ('rich.progress', 'torch.utils.tensorboard', 'torchgeo.main', 'torchgeo_clay.callbacks',
                 'torchgeo_clay.datamodules', 'torchgeo_clay.tasks'):  # fmt: skip
        importlib.import_module(name)  # here, for all processes; Lightning imports some of them late
    codes = [do(Run(**run)) for run in json.load(sys.stdin)]
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print('CPU seconds', *(round(use.ru_utime + use.ru_stime) for use in spent), file=sys.stderr)
    print(json.dumps(codes))
