# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The processes of a DataLoader: they leave SIGTERM to the one they belong to, and are missed when they die."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from lightning.fabric.utilities.seed import pl_worker_init_function

from torchgeo_clay.datamodules.sigterm import EXIT_CODE

__all__ = ('WORKER_DIED', 'ignore_sigterm', 'is_dead_worker', 'seeded')

#: What is said when one dies; what to do then depends on what it loaded for.
WORKER_DIED = (
    'A process that loads data died. Most often the machine ran out of memory: lower num_workers or batch_size; where '
    'shared memory is small, as in containers, give more (--shm-size).'
)


def is_dead_worker(error: BaseException, *, waiting: bool = False) -> bool:
    """Return True for what PyTorch raises when a worker dies.

    Args:
        error: raised wherever the program is, as it comes from a signal handler.
        waiting: whether the program waited for a worker's batch, so that a broken pipe is the worker's.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith('DataLoader worker (pid')
    is_pipe = isinstance(error, ConnectionError | EOFError | FileNotFoundError)
    return waiting and is_pipe and 'in DataLoader worker process' not in str(error)  # a live worker's message names it


def ignore_sigterm(worker: int = 0) -> None:
    """For DataLoaders, as ``worker_init_fn``: ignore the signal, unless it comes from the process that loads.

    SLURM, and ``kill`` of a process group, send it to workers, too; without them the step could not be ended.

    Args:
        worker: its number.
    """
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    """Exit at a SIGTERM from a process; multiprocessing waits for that when the program ends."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(EXIT_CODE)


def seeded(worker: int, given: Callable[[int], None] | None = None) -> None:
    """:func:`ignore_sigterm` for a DataLoader that Lightning knows, which adds its seeds to loaders without a function.

    Args:
        worker: its number.
        given: the loader's own function, in place of the seeds.
    """
    ignore_sigterm()
    if given is not None:
        given(worker)
    elif int(os.environ.get('PL_SEED_WORKERS', 0)):
        pl_worker_init_function(worker)
