# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""A device that refuses float64, as Apple's do: the meta device under a mode that raises at the first such tensor."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import NonGeoDataset

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.datamodules import ClayPretrainDataModule, SceneDataModule, SensorDataModule
from torchgeo_clay.datamodules.common import split_batch
from torchgeo_clay.inference.output import transferred
from torchgeo_clay.tasks import ClayClassification, ClayEmbedding, ClayPretraining

META = torch.device('meta')


class Refusal(TorchDispatchMode):
    """Raises for every float64 tensor of the device, as Apple's does."""

    def __torch_dispatch__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, result)):
            if isinstance(x, Tensor) and x.device.type == 'meta' and x.dtype == torch.float64:
                raise TypeError(f'Cannot convert a tensor to float64 on this device: {func}')
        return result


def test_the_device_refuses() -> None:
    time = torch.zeros(2, dtype=torch.float64)
    with Refusal(), pytest.raises(TypeError, match='float64'):
        time.to(META)


class Chips(NonGeoDataset):
    bands = ('R', 'G', 'B', 'NIR')

    def __init__(self, split: str = 'train', dates: int | None = None) -> None:
        self.shape = (4, 32, 32) if dates is None else (dates, 4, 32, 32)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {'image': torch.randint(1, 255, self.shape).float(), 'label': torch.tensor(index)}


class Moved(nn.Module):
    """A crop, and the matrix by which it moved the image."""

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        image, filled = batch['image'], batch['mask_filled']
        self.transform_matrix = torch.zeros_like(image[:, :1, :3, :3]).squeeze(1) + image[:, 0, :3, :3]
        return {**batch, 'image': image[..., 8:, 8:] * 1, 'mask_filled': filled[..., 8:, 8:]}


KNOWN = {'lat': 50.0, 'lon': 14.0, 'time': 1.6e9}


def wrapped(dates: int | None = None) -> SensorDataModule:
    inner = NonGeoDataModule(Chips, 2, dates=dates)
    inner.train_aug = Moved() if dates is None else nn.Identity()
    known: dict[str, Any] = KNOWN if dates is None else KNOWN | {'time': [1.6e9] * dates}
    data = SensorDataModule(inner, 'naip', gsd=1.0, metadata=lambda *_: known)
    flags = {'validating': False, 'testing': False, 'predicting': False, 'sanity_checking': False}
    data.trainer = SimpleNamespace(precision='32-true', training=True, **flags)
    data.setup('fit')
    return data


def one_batch(data: LightningDataModule, stage: str = 'train') -> dict[str, Any]:
    return next(iter(getattr(data, f'{stage}_dataloader')()))


@pytest.mark.parametrize('dates', [None, 3])
def test_any_datamodule(dates: int | None) -> None:
    data = wrapped(dates)
    host = one_batch(data)
    assert host['time'].dtype == host['lat'].dtype == torch.float64
    task = ClayClassification('clay_tiny_patch8', num_classes=2, temporal='mean' if dates else None).to(META)
    with Refusal():
        batch = transferred(data, host, META)
        with task.clay.conditioned_on(task.conditioning(batch)):
            task.criterion(task(batch['image']), batch['label']).backward()
    assert batch['time'].device.type == 'cpu'
    assert batch['lat'].device == batch['time_code'].device == META
    assert 'time_code' not in data._current.original(host)


def test_the_code_is_that_of_the_host() -> None:
    """What the model gets is the same to the last bit for a date, and to float32 for a place."""
    data = wrapped()
    host = one_batch(data)
    expected = Conditioning.from_batch(host)
    sent, kept = split_batch(host, META)
    found = Conditioning.from_batch({**sent, **kept})
    assert sent['lat'].dtype == torch.float32
    assert torch.equal(found.time, expected.time)
    assert torch.allclose(found.latlon, expected.latlon, atol=2e-7)
    assert split_batch(host, torch.device('cpu'))[0] == host


def test_pretraining(root: Path) -> None:
    data = ClayPretrainDataModule(root, batch_size=2, patch_size=32, num_workers=0)
    data.setup('fit')
    task = ClayPretraining('clay_mae_tiny_patch8').to(META)
    with Refusal():
        batch = transferred(data, one_batch(data), META)
        loss = task.reconstruction(batch).loss
        loss.backward()
    assert loss.device == META


def test_whole_scenes(root: Path) -> None:
    data = SceneDataModule(root / 'naip', chip=32, batch_size=2, num_workers=0)
    data.setup('predict')
    task = ClayEmbedding('clay_tiny_patch8', weights=False).eval()
    host = one_batch(data, 'predict')
    with torch.inference_mode():
        task(transferred(data, host, torch.device('cpu')))  # folds the encoder for the sensor, once
        for folded in task._folded.values():
            folded.to(META)
        with Refusal():
            assert task(transferred(data, host, META)).device == META
