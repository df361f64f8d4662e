# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Nothing in a step waits for the device: no value is looked at, nothing is copied from the host, shapes are fixed.

The meta device stands for an accelerator: looking at a value there fails, and its tensors show what mixes with the
host's.
"""

from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import NonGeoDataset

from torchgeo_clay.datamodules import SensorDataModule
from torchgeo_clay.sensors import SENSORS
from torchgeo_clay.tasks import ClayEmbedding, ClayPretraining

SENSOR_NAMES = ('sentinel-2-l2a', 'sentinel-1-rtc', 'modis')


class Apart(TorchDispatchMode):
    """Fails where the host's tensors or lists meet the device's, and where values are looked at."""

    def __torch_dispatch__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        looks = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)
        assert func.overloadpacket not in looks, func
        result = func(*args, **(kwargs or {}))
        literal = func.overloadpacket is torch.ops.aten.lift_fresh and result.device.type == 'meta'
        assert not literal, 'a tensor for the device is made of numbers on the host'
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        assert len({t.device.type for t in tensors if t.ndim}) <= 1, f'{func} is given tensors of host and device'
        return result


class Teacher(nn.Module):
    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 14, 14)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((2, 3))


def batch_of(name: str, size: int = 32, dtype: torch.dtype = torch.int16) -> dict[str, Any]:
    """Two samples as the datamodule hands them to the device."""
    sensor, tokens = SENSORS[name], (size // 8) ** 2
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 3000, (2, len(sensor), size, size), generator=generator).to(dtype)
    return {
        'image': image,
        'valid': torch.rand(2, 1, size, size, generator=generator) > 0.1,
        'band_mask': torch.ones(2, len(sensor), dtype=torch.bool),
        'noise': torch.rand(2, tokens, generator=generator),
        'wavelength': torch.tensor([sensor.wavelengths] * 2),
        'res': torch.full((2,), 10.0),
        'lat': torch.tensor([50.0, torch.nan], dtype=torch.float64),
        'lon': torch.tensor([14.0, torch.nan], dtype=torch.float64),
        'time': torch.tensor([1.6e9, torch.nan], dtype=torch.float64),
        'sensor': name,
    }


def to(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


@pytest.fixture(scope='module')
def pretraining() -> ClayPretraining:
    torch.manual_seed(0)
    task = ClayPretraining('clay_mae_tiny_patch8')
    task.model = type(task.model)(task.model.encoder, task.model.decoder, Teacher())
    return task


def normalization(batch: dict[str, Any]) -> dict[str, Any]:
    """Normalize a batch as ClayPretrainDataModule does."""
    target = SENSORS[batch['sensor']].normalize(batch['image'], batch['valid'])
    return {**batch, 'target': target, 'image': target * batch['band_mask'][:, :, None, None]}


@pytest.mark.parametrize('name', SENSOR_NAMES)
def test_a_pretraining_step_waits_for_nothing(pretraining: ClayPretraining, name: str) -> None:
    task = deepcopy(pretraining).to('meta')
    batch = to(batch_of(name), 'meta')
    normalization(batch)  # statistics are copied to the device when a sensor is first seen
    with Apart():
        loss = task.reconstruction(normalization(batch)).loss
        loss.backward()
    assert loss.device.type == 'meta'


@pytest.mark.gpu
@pytest.mark.parametrize('name', SENSOR_NAMES)
def test_a_pretraining_step_waits_for_nothing_on_a_gpu(pretraining: ClayPretraining, name: str) -> None:
    task = deepcopy(pretraining).to('cuda')
    batch = to(batch_of(name), 'cuda')

    def step() -> None:
        with torch.autocast('cuda', torch.bfloat16):
            task.reconstruction(normalization(batch)).loss.backward()

    step()  # statistics, and the libraries' own first calls
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('pooling', ['class', 'mean', 'patches'])
def test_embedding_a_batch_waits_for_nothing(pooling: str) -> None:
    task = ClayEmbedding('clay_tiny_patch8', weights=False, pooling=pooling).eval()
    host = {**batch_of('naip'), 'image': torch.rand(2, 4, 32, 32)}
    with torch.inference_mode():
        task(host)  # folds the encoder for the sensor, once
        task._folded['naip'].to('meta')
        batch = to(host, 'meta')
        with Apart():
            assert task(batch).device.type == 'meta'


class Chips(NonGeoDataset):
    bands = ('R', 'G', 'B', 'NIR')

    def __init__(self, split: str = 'train') -> None:
        self.split = split

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {'image': torch.randint(1, 255, (4, 32, 32)).float(), 'label': torch.tensor(index)}


class Moved(nn.Module):
    """Stands for kornia's crop, whose own code waits: the image moved, and the matrix by which."""

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        image, filled = batch['image'], batch['mask_filled']
        self.transform_matrix = torch.zeros_like(image[:, :1, :3, :3]).squeeze(1) + image[:, 0, :3, :3]
        return {**batch, 'image': image[..., 8:, 8:] * 1, 'mask_filled': filled[..., 8:, 8:]}


def test_a_batch_of_any_datamodule_waits_for_nothing() -> None:
    """Selection, place and resolution after a crop, fill and normalization."""
    wrapped = NonGeoDataModule(Chips, 2)
    wrapped.train_aug = Moved()
    data = SensorDataModule(wrapped, 'naip', gsd=1.0)
    flags = {'validating': False, 'testing': False, 'predicting': False, 'sanity_checking': False}
    data.trainer = SimpleNamespace(precision='32-true', training=True, **flags)
    data.setup('fit')
    batch = to(next(iter(data.train_dataloader())), 'meta')
    data.on_after_batch_transfer(batch, 0)  # statistics are copied to the device when a sensor is first seen
    with Apart():
        ready = data.on_after_batch_transfer(batch, 0)
    assert {ready[key].device.type for key in ('image', 'lat', 'lon', 'res')} == {'meta'}
    assert ready['image'].shape == (2, 4, 24, 24)


def test_what_waits_is_found() -> None:
    image = torch.rand(2, 4, 8, 8, device='meta')
    for wait in (
        lambda: image[:, [0, 1]],
        lambda: torch.tensor([1.0], device='meta'),
        lambda: image * torch.ones(4, 1, 1),
        lambda: image.sum().item(),
        lambda: image[image > 0],
        lambda: image.cpu(),
    ):
        with Apart(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
            wait()


@pytest.mark.parametrize('precision', [torch.float32, torch.bfloat16])
def test_a_pretraining_step_compiles_whole(pretraining: ClayPretraining, precision: torch.dtype) -> None:
    task = deepcopy(pretraining)

    def step(batch: dict[str, Any]) -> Tensor:
        with torch.autocast('cpu', torch.bfloat16, enabled=precision == torch.bfloat16):
            return task.reconstruction(normalization(batch)).loss

    batches = [batch_of(name) for name in ('naip', 'sentinel-1-rtc')]
    expected = [step(batch).item() for batch in batches]
    compiled = torch.compile(step, backend='aot_eager', fullgraph=True)
    for batch, loss in zip(batches, expected, strict=True):
        found = compiled(batch)
        found.backward()
        assert found.item() == pytest.approx(loss, rel=1e-6 if precision == torch.float32 else 2e-2)


def test_embedding_a_batch_compiles_whole() -> None:
    task = ClayEmbedding('clay_tiny_patch8', weights=False).eval()
    batch = {**batch_of('naip'), 'image': torch.rand(2, 4, 32, 32)}
    with torch.inference_mode():
        expected = task(batch)
        compiled = torch.compile(task.forward, backend='aot_eager', fullgraph=True)
        assert torch.equal(compiled(batch), expected)
