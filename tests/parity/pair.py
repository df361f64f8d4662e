# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""The released model with random weights, and ours with the same weights loaded through the checkpoint reader."""

from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from torchgeo_clay.models import Clay, ClayMAE
from torchgeo_clay.models import builders as autoencoders
from torchgeo_clay.models import builders as encoders
from torchgeo_clay.sensors import SENSORS, Sensor


class TinyTeacher(nn.Module):
    """Stands for DINOv2: any frozen function of an RGB image that sees all its pixels will do."""

    num_features = 32

    def __init__(self) -> None:
        """Initialize the teacher."""
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 14, stride=14)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 518, 518) → (B, 32)."""
        return self.conv(x).square().mean((2, 3))


class Attributes(dict):
    """A dictionary whose items are attributes too, as the reference wants its metadata."""

    __getattr__ = dict.__getitem__


def reference_metadata() -> Attributes:
    """The sensors as the reference's metadata file has them."""
    return Attributes(
        {
            name: Attributes(
                bands=Attributes(wavelength={b.name: b.wavelength for b in sensor.bands}),
                gsd=sensor.gsd,
                rgb_indices=list(sensor.rgb_indices),
            )
            for name, sensor in SENSORS.items()
        }
    )


def their_autoencoder(reference: ModuleType, size: str, teacher: nn.Module) -> nn.Module:
    """The released autoencoder with random weights, around a teacher that it would download."""
    with mock.patch('timm.create_model', return_value=teacher):
        model: nn.Module = getattr(reference, f'clay_mae_{size}')(
            mask_ratio=0.75,
            patch_size=8,
            norm_pix_loss=False,
            shuffle=True,
            metadata=reference_metadata(),
            teacher='given',
            dolls=[],
            doll_weights=[],
        )
    return model


class Pair:
    """The reference and ours, with equal weights."""

    def __init__(self, reference: ModuleType, size: str, folder: Path) -> None:
        """Make the reference with random weights, save it as the release is saved, and read that with our builders."""
        self.size = size
        torch.manual_seed(0)
        self.theirs = their_autoencoder(reference, size, TinyTeacher()).eval()
        state = {f'model.{k}': v for k, v in self.theirs.state_dict().items()}
        self.path = folder / f'{size}.ckpt'
        torch.save({'epoch': 0, 'state_dict': state, 'hyper_parameters': {'model_size': size}}, self.path)

    def encoder(self, **kwargs: Any) -> Clay:
        """Our encoder."""
        return getattr(encoders, f'clay_{self.size}_patch8')(self.path, **kwargs).eval()

    def autoencoder(self, **kwargs: Any) -> ClayMAE:
        """Our autoencoder, with the reference's teacher."""
        return getattr(autoencoders, f'clay_mae_{self.size}_patch8')(
            self.path, teacher=self.theirs.teacher, representation_weight=0.1, **kwargs
        ).eval()

    def their_tokens(self, x: Tensor, sensor: Sensor, time: Tensor, latlon: Tensor) -> Tensor:
        """The reference encoder's tokens, unmasked and in order."""
        encoder = self.theirs.encoder
        encoder.mask_ratio, encoder.shuffle = 0.0, False
        cube = {
            'pixels': x,
            'time': time,
            'latlon': latlon,
            'gsd': torch.tensor(sensor.gsd),
            'waves': torch.tensor(sensor.wavelengths),
        }
        with torch.no_grad():
            tokens: Tensor = encoder(cube)[0]
        encoder.mask_ratio, encoder.shuffle = 0.75, True
        return tokens

    def their_losses(
        self, x: Tensor, sensor: Sensor, time: Tensor, latlon: Tensor, noise: Tensor
    ) -> tuple[Tensor, ...]:
        """The reference's losses: total, reconstruction, representation. No band is dropped."""
        with mock.patch('torch.randn', return_value=noise), mock.patch('random.random', return_value=0.9):
            losses: tuple[Tensor, ...] = self.theirs(
                {'pixels': x, 'time': time, 'latlon': latlon, 'platform': [sensor.name]}
            )
        return losses


def draw(sensor: Sensor, pixels: int, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random images (B, C, H, W), time and place codes (B, 4), and noise (B, L)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, len(sensor), pixels, pixels, generator=generator)
    time, latlon = torch.randn(2, batch, 4, generator=generator).clamp(-1, 1)
    return x, time, latlon, torch.randn(batch, (pixels // 8) ** 2, generator=generator)
