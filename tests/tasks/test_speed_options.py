# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What makes tasks fast changes nothing that they compute: compiling, weights cast once; and what makes them slow."""

import functools
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.datamodules import ClayPretrainDataModule
from torchgeo_clay.datamodules.common import check_precision
from torchgeo_clay.sensors import get_sensor
from torchgeo_clay.tasks import ClayEmbedding, ClayPretraining
from torchgeo_clay.tasks.optim import cosine, finetuning, published


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace as torch.compile does, and run what was traced without building it, which takes minutes."""
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend='aot_eager'))


def batch(name: str = 'naip') -> dict[str, Any]:
    sensor = get_sensor(name)
    generator = torch.Generator().manual_seed(0)
    return {
        'image': torch.randn(2, len(sensor), 32, 32, generator=generator),
        'valid': torch.ones(2, 1, 32, 32, dtype=torch.bool),
        'wavelength': torch.tensor([sensor.wavelengths] * 2),
        'res': torch.ones(2),
        'sensor': name,
    }


def train(tiny_scenes: dict[str, Any], **options: Any) -> dict[str, float]:
    torch.manual_seed(0)
    task = ClayPretraining('clay_mae_tiny_patch8', **options)
    trainer = pl.Trainer(
        accelerator='cpu', logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=1, limit_train_batches=3, limit_val_batches=3,
    )  # fmt: skip
    trainer.fit(task, datamodule=ClayPretrainDataModule(**tiny_scenes))
    assert (task.model._compiled_call_impl is not None) == options.get('compile', False)
    return {k: v.item() for k, v in trainer.callback_metrics.items()}


def test_compiled_training_gives_the_same_losses(tiny_scenes: dict[str, Any]) -> None:
    eager, compiled = train(tiny_scenes), train(tiny_scenes, compile=True)
    assert compiled == pytest.approx(eager, rel=1e-5)


@torch.inference_mode()
def test_compiled_embeddings_are_equal() -> None:
    task = ClayEmbedding('clay_tiny_patch8', weights=False, compile=True).eval()
    expected = task.model(batch()['image'], **Conditioning.from_batch(batch()).arguments)
    torch.testing.assert_close(task(batch()), expected)
    assert task._folded['naip']._compiled_call_impl is not None


@torch.inference_mode()
def test_embedding_under_autocast_casts_weights_once() -> None:
    task = ClayEmbedding('clay_tiny_patch8', weights=False).eval()
    plain = task(batch())
    task._folded.clear()
    with torch.autocast('cpu', torch.bfloat16):
        expected = task.model.fold('naip')(batch()['image'], batch()['res']).float()
        assert torch.equal(task(batch()), expected)
        task(batch('linz'))
    naip, linz = task._folded['naip'], task._folded['linz']
    assert naip.blocks is linz.blocks
    assert naip.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert task.model.blocks[0].mlp.fc1.weight.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(plain, expected).min() >= 0.999


def test_every_optimizer_is_fused() -> None:
    model = ClayPretraining('clay_mae_tiny_patch8').model
    for optimizer in (published(model)[0], cosine(model, 10, 1e-4)[0], finetuning(model, 1e-4)):
        assert all(group['fused'] for group in optimizer.param_groups)


@pytest.mark.parametrize(('precision', 'capability'), [('32-true', 'AVX2'), ('bf16-mixed', 'AVX512')])
def test_no_warning_where_it_is_fast(precision: str, capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    check_precision(trainer(precision))


def test_emulated_bfloat16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX2')
    with pytest.warns(UserWarning, match="bfloat16.*emulates it.*Use '32-true' here"):
        check_precision(trainer('bf16-mixed'))
    check_precision(trainer('bf16-mixed', 'cuda'))


def trainer(precision: str, device: str = 'cpu') -> Any:
    return SimpleNamespace(precision=precision, strategy=SimpleNamespace(root_device=torch.device(device)))
