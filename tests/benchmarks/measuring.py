# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""How things are measured: interleaved, beside the machine's own limit, in one run."""

import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

Way = Callable[[], object]

#: A way that takes longer than this, in seconds, is run once and not again.
PATIENCE = 60.0


@dataclass
class Row:
    """One way of doing a thing.

    Attributes:
        case: the thing.
        way: how it is done; the first of a case is what the others are compared with.
        items: of one run.
        seconds: median per run.
        runs: how many.
        ratio: how many times faster than the first way, by medians; None where they are not the same thing.
        tflop: per item, counted; None where nothing is multiplied.
        share: of the matmul peak measured in the same run; None likewise.
        peak_mb: the largest memory above that before the run.
    """

    case: str
    way: str
    items: int
    seconds: float
    runs: int
    ratio: float | None
    tflop: float | None = None
    share: float | None = None
    peak_mb: float | None = None

    def line(self) -> str:
        """The row of the table."""

        def cell(value: float | None, form: str) -> str:
            return '' if value is None else format(value, form)

        return (
            f'{self.case:<12} {self.way:<44} {self.seconds / self.items:>10.4g} {self.items / self.seconds:>9.4g} '
            f'{cell(self.ratio, "6.2f"):>6} {cell(self.tflop, "8.3f"):>8} {cell(self.share, "6.0%"):>6} '
            f'{cell(self.peak_mb, "8.0f"):>8} {self.runs:>4}'
        )

    @staticmethod
    def heading() -> str:
        """The table's head."""
        return (
            f'{"case":<12} {"way":<44} {"s/item":>10} {"item/s":>9} {"ratio":>6} {"TFLOP":>8} {"peak":>6} '
            f'{"MB":>8} {"runs":>4}'
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def wait(device: torch.device) -> None:
    """Until a device has done what it was asked."""
    if device.type == 'cuda':
        torch.cuda.synchronize()


def timed(way: Way, device: torch.device) -> float:
    """Seconds that a run takes."""
    wait(device)
    start = time.perf_counter()
    way()
    wait(device)
    return time.perf_counter() - start


def interleaved(ways: Mapping[str, Way], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of the runs of each way, which take turns: A B C A B C, so that a busy moment hits them alike.

    A first round warms up and is not counted, but for ways that take longer than :data:`PATIENCE`.
    """
    first = {name: timed(way, device) for name, way in ways.items()}
    found: dict[str, list[float]] = {name: [s] if s > PATIENCE else [] for name, s in first.items()}
    for _ in range(rounds):
        for name, way in ways.items():
            if first[name] <= PATIENCE:
                found[name].append(timed(way, device))
    return found


def peak_memory(way: Way, device: torch.device) -> float:
    """The most memory a run holds above that before it, in MB: of the device, or resident for the CPU."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with Peak() as peak:
        way()
    return peak.bytes / 1e6


class Peak:
    """The largest resident memory of this process inside a ``with`` block, above that at its start, in bytes."""

    def __enter__(self) -> 'Peak':
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is taken now
        self._process = psutil.Process()
        self._start = self.bytes = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, self._process.memory_info().rss) - self._start


def count_tflop(way: Way) -> float:
    """Multiplications and additions of a run, in 10¹²."""
    with FlopCounterMode(display=False) as counter:
        way()
    return counter.get_total_flops() / 1e12


def matmul_peak(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """TFLOP/s of the best of several products of two square matrices."""
    side = side or (8192 if device.type == 'cuda' else 2048 if dtype == torch.float32 else 512)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = min(timed(lambda: torch.mm(a, b), device) for _ in range(20 if device.type == 'cuda' else 8))
    return 2 * side**3 / best / 1e12


def compare(
    case: str,
    ways: Mapping[str, Way],
    items: int,
    rounds: int,
    device: torch.device,
    peaks: Mapping[str, float] | None = None,
    memory: bool = True,
) -> list[Row]:
    """Measure ways of doing the same thing.

    Args:
        case: the thing.
        ways: name → a run of it; the first is what the others are compared with.
        items: of one run.
        rounds: how often each is run.
        device: where.
        peaks: of a way the TFLOP/s that its dtype allows; None where it multiplies nothing.
        memory: whether to look at memory, in a run of its own that is not timed.
    """
    found = interleaved(ways, rounds, device)
    medians = {name: statistics.median(runs) for name, runs in found.items()}
    first = medians[next(iter(ways))]
    rows = []
    for name, way in ways.items():
        row = Row(case, name, items, medians[name], len(found[name]), first / medians[name])
        slow = medians[name] > PATIENCE
        if memory and not slow:
            row.peak_mb = peak_memory(way, device)
        if peaks is not None and not slow:
            total = count_tflop(way)
            row.tflop, row.share = total / items, total / medians[name] / peaks[name]
        rows.append(row)
        print(row.line(), flush=True)
    return rows
