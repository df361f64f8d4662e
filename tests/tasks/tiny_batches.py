# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Tiny batches in memory, in TorchGeo's keys, for the tests of Clay's fine-tuning tasks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.datamodules import BaseDataModule

from torchgeo_clay.models.clay import find_clay

TINY = 'clay_tiny_patch8'

KNOWN = {
    'wavelength': torch.tensor([0.665, 0.56, 0.493]),
    'res': torch.tensor(10.0),
    'lat': torch.tensor(50.0, dtype=torch.float64),
    'lon': torch.tensor(14.0, dtype=torch.float64),
    'time': torch.tensor(1.6e9, dtype=torch.float64),
}
#: Of two dates, half a year apart.
DATES = KNOWN | {'time': torch.tensor([1.6e9, 1.616e9], dtype=torch.float64)}


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mask(size: tuple[int, int], classes: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(0, classes, size, generator=torch.Generator().manual_seed(seed))


class TinyDataModule(BaseDataModule):
    """Four samples of noise with targets, two a batch."""

    def __init__(
        self, target: Callable[[int], dict[str, Tensor]], shape: tuple[int, ...] = (3, 32, 32), **metadata: Any
    ) -> None:
        super().__init__(dataset_class=list, batch_size=2)
        metadata = metadata or (DATES if len(shape) == 4 else KNOWN)
        self.samples = [{'image': image(*shape, seed=i), **target(i), **metadata} for i in range(4)]

    def _loader(self) -> DataLoader:
        return DataLoader(self.samples, batch_size=2)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader

    # batches as they are: there is nothing to augment or normalize
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch

    def batch(self) -> dict[str, Any]:
        return next(iter(self._loader()))


def labelled(i: int) -> dict[str, Tensor]:
    return {'label': torch.tensor(i % 3)}


def masked(size: tuple[int, int] = (32, 32), classes: int = 3) -> Callable[[int], dict[str, Tensor]]:
    return lambda i: {'mask': mask(size, classes, i)}


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    defaults = {
        'accelerator': 'cpu', 'max_epochs': 1, 'logger': False, 'enable_checkpointing': False,
        'enable_progress_bar': False, 'enable_model_summary': False, 'callbacks': list(callbacks),
    }  # fmt: skip
    return Trainer(**defaults | options)


def loss_of(task: LightningModule, batch: dict[str, Any]) -> Tensor:
    """The training loss, outside of a run."""
    task.log = lambda *args, **kwargs: None  # which wants a trainer
    return task.training_step(batch, 0)


@contextmanager
def told(task: LightningModule, conditioning: Any) -> Iterator[None]:
    (clay,) = find_clay(task)
    with clay.conditioned_on(conditioning):
        yield
