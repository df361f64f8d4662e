# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Timings by pytest-benchmark, of what is done often: ``pytest tests/benchmarks --benchmark-enable``.

In ``make test`` each is run once, untimed, and so are the parts of ``make bench`` that are small.
"""

import sys
from pathlib import Path

import pytest
import torch
from cases_data import embedding, loading
from cases_model import encoder
from measuring import Row
from pytest_benchmark.fixture import BenchmarkFixture

from torchgeo_clay.conditioning import encode_latlon, encode_time
from torchgeo_clay.models import clay_mae_tiny_patch8, clay_tiny_patch8
from torchgeo_clay.models.clay import WaveKernels, position_code
from torchgeo_clay.sensors import get_sensor

CPU = torch.device('cpu')
SENSOR = get_sensor('sentinel-2-l2a')


def test_codes_of_time_and_place(benchmark: BenchmarkFixture) -> None:
    seconds, lat, lon = torch.rand(3, 1024, dtype=torch.float64) * 80
    code = benchmark(lambda: torch.cat([encode_time(seconds * 1e7), encode_latlon(lat, lon)], dim=1))
    assert code.shape == (1024, 8)


def test_code_of_positions(benchmark: BenchmarkFixture) -> None:
    code = benchmark(position_code, 32, 32, torch.full((4,), 10.0), None, None, 4, 1024)
    assert code.shape == (4, 1024, 1024)


def test_kernels_from_wavelengths(benchmark: BenchmarkFixture) -> None:
    kernels, _ = benchmark(WaveKernels(1024, 8, bias=True), torch.tensor(SENSOR.wavelengths))
    assert kernels.shape == (10, 64 * 1024)


def test_folding(benchmark: BenchmarkFixture) -> None:
    folded = benchmark(clay_tiny_patch8().eval().fold, 'sentinel-2-l2a')
    assert folded.patch_embed.proj.weight.shape == (192, 10, 8, 8)


def test_a_training_step(benchmark: BenchmarkFixture) -> None:
    model, x = clay_mae_tiny_patch8(), torch.randn(4, 10, 64, 64)

    def step() -> float:
        model.zero_grad()
        loss = model(x, SENSOR.wavelengths, 10.0).loss
        loss.backward()
        return loss.item()

    assert benchmark(step) > 0


@pytest.mark.slow
def test_the_script_measures_reading_and_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('cases_data.SIDE', 512)
    rows = loading(tmp_path / 'chips', 1) + embedding(tmp_path / 'embedding', 'tiny', 1, CPU)
    assert {row.case for row in rows} == {'chips', 'batches', 'embedding'}
    assert all(row.seconds > 0 and row.runs == 1 for row in rows)
    assert all(row.way in row.line() for row in rows)
    assert len({len(row.line()) for row in rows} | {len(Row.heading())}) == 1


@pytest.mark.slow
@pytest.mark.usefixtures('reference')  # imported by it, so that nothing it does at import stays
def test_the_script_measures_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'path', [*sys.path])
    ways = {row.way: row for row in encoder('tiny', 1, 32, 1, CPU, low=True)}
    assert ways['folded, float32'].tflop <= ways['Clay, float32'].tflop
    assert ways['reference, float32'].tflop == pytest.approx(ways['Clay, float32'].tflop, rel=0.1)
