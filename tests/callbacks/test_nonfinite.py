# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Steps that are not finite: skipped or the end, with weights unharmed and files named."""

import logging
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.overrides import TorchFunctionMode

from torchgeo_clay.callbacks import NonFiniteLoss
from torchgeo_clay.datamodules import ClayPretrainDataModule


class Spoilt(pl.LightningModule):
    """Learns one number; loss or gradients of some of its batches are not finite."""

    def __init__(self, loss_at: tuple[int, ...] = (), gradients_at: tuple[int, ...] = (), fused: bool = True) -> None:
        super().__init__()
        self.loss_at, self.gradients_at, self.fused = loss_at, gradients_at, fused
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.seen: list[dict[str, Any]] = []
        self.after: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx):
        self.seen.append({'sensor': batch['sensor'], 'paths': batch['paths'], 'index': batch['index'].tolist()})
        loss = ((self.weight - batch['image'].mean()) ** 2).mean()
        if batch_idx in self.gradients_at:
            zero = (self.weight - self.weight.detach()).sum()
            loss = loss + (zero * zero).sqrt()  # whose value is 0, and whose slope is 0 · ∞
        return loss * float('inf') if batch_idx in self.loss_at else loss

    def validation_step(self, batch, batch_idx):
        pass

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.after.append(self.weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, fused=self.fused)


def fit(module: Spoilt, callback: NonFiniteLoss | None, scenes: dict[str, Any], **options: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator='cpu', callbacks=callback, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, **{'max_epochs': 1, 'limit_train_batches': 6, **options},
    )  # fmt: skip
    trainer.fit(module, datamodule=ClayPretrainDataModule(**scenes))
    return trainer


@pytest.mark.parametrize('kind', ['loss_at', 'gradients_at'])
def test_a_bad_step_is_skipped_and_its_files_are_named(tiny_scenes, caplog, kind):
    module, callback = Spoilt(**{kind: (2,)}), NonFiniteLoss('skip')
    with caplog.at_level(logging.WARNING):
        trainer = fit(module, callback, tiny_scenes, gradient_clip_val=1.0)
    assert trainer.global_step == 6
    assert torch.equal(module.after[2], module.after[1])
    assert not torch.equal(module.after[3], module.after[2])
    assert all(weight.isfinite().all() for weight in module.after)
    assert callback.skipped == 1
    moments = trainer.optimizers[0].state[module.weight]
    assert moments['step'] == 5
    assert all(value.isfinite().all() for value in moments.values())
    assert not hasattr(trainer.optimizers[0], 'found_inf')
    (line,) = [record.message for record in caplog.records if 'Skipped step' in record.message]
    bad = module.seen[2]
    what = 'loss' if kind == 'loss_at' else 'gradients of this or another rank'
    assert line.startswith(f'Skipped step 2, rank 0: {what} not finite: {bad["sensor"]}, loss ')
    assert f'samples {bad["index"]} of {", ".join(sorted(set(bad["paths"])))} (1 of at most 10)' in line
    assert set(bad['paths']) <= {r.path for r in trainer.datamodule._parts['train'][bad['sensor']].regions}


def test_without_the_callback_the_weights_would_be_gone(tiny_scenes):
    module = Spoilt(loss_at=(2,))
    fit(module, None, tiny_scenes)
    assert not module.after[-1].isfinite().any()


def test_it_stops_the_run(tiny_scenes):
    module = Spoilt(loss_at=(1, 3))
    with pytest.raises(FloatingPointError, match=r"step 1, rank 0: loss not finite: .*\.tif\n.*action: 'skip'"):
        fit(module, NonFiniteLoss(), tiny_scenes)
    assert len(module.seen) == 2
    assert torch.equal(module.weight.detach(), module.after[0])


def test_too_many_bad_steps_stop_the_run(tiny_scenes):
    module = Spoilt(loss_at=(0, 2, 4))
    with pytest.raises(FloatingPointError, match=r'3 steps had .*, more than most=2;.*\n  step 4'):
        fit(module, NonFiniteLoss('skip', most=2), tiny_scenes)


def test_of_several_batches_of_a_step_the_bad_one_is_named(tiny_scenes, caplog):
    module, callback = Spoilt(loss_at=(3,)), NonFiniteLoss('skip')
    with caplog.at_level(logging.WARNING):
        fit(module, callback, tiny_scenes, accumulate_grad_batches=2)
    (line,) = [record.message for record in caplog.records if 'Skipped step' in record.message]
    assert line.startswith('Skipped step 1')
    assert f'samples {module.seen[3]["index"]} of' in line
    assert line.count('loss inf') == 1
    assert torch.equal(module.after[3], module.after[2])
    assert not torch.equal(module.after[5], module.after[3])


class Waits(TorchFunctionMode):
    """Counts what makes the host wait for a device."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        waiting = ('item', 'tolist', 'cpu', 'numpy', '__bool__', '__float__', '__int__', 'nonzero', 'equal', 'allclose')
        self.count += getattr(func, '__name__', '') in waiting
        return func(*args, **(kwargs or {}))


def test_the_host_waits_for_a_gpu_only_now_and_then():
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight], fused=True)
    trainer = SimpleNamespace(global_step=0, world_size=1, global_rank=0, is_global_zero=True)
    module, callback = SimpleNamespace(device=torch.device('cuda')), NonFiniteLoss('skip', every_n_steps=5)
    waited = []
    for step in range(10):
        trainer.global_step = step
        weight.grad = torch.full((4,), float('nan') if step == 2 else 1.0)
        batch = {'sensor': 'naip', 'index': torch.tensor([step]), 'paths': ['a.tif']}
        with Waits() as waits:
            callback.on_train_batch_start(trainer, module, batch, step)
            callback.on_before_backward(trainer, module, torch.ones(()))
            callback.on_before_optimizer_step(trainer, module, optimizer)
            callback.on_train_batch_end(trainer, module, None, batch, step)
        waited.append(waits.count)
        assert optimizer.found_inf.item() == (step == 2)
    assert callback.skipped == 1
    assert [number for number, count in enumerate(waited) if count] == [4, 9]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'action': 'ignore'}, "action: expected 'stop' or 'skip', got 'ignore'"),
        ({'most': -1}, 'most: expected 0 or more, got -1'),
        ({'every_n_steps': 0}, 'every_n_steps: expected 1 or more, got 0'),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        NonFiniteLoss(**options)


def test_an_optimizer_that_can_not_skip(tiny_scenes):
    with pytest.raises(ValueError, match=r'AdamW\(fused=True\), got AdamW without fused=True'):
        fit(Spoilt(fused=False), NonFiniteLoss(), tiny_scenes)


def test_float16_which_skips_itself():
    trainer = SimpleNamespace(precision='16-mixed', optimizers=[])
    with pytest.raises(ValueError, match="'16-mixed', whose gradient scaler skips"):
        NonFiniteLoss().on_train_start(trainer, SimpleNamespace())
