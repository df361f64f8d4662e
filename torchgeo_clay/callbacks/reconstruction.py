# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Pictures of an autoencoder's input and its reconstruction. Shapes: B samples, C bands, H × W pixels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange, repeat
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from torchgeo_clay.conditioning import Conditioning, batch_sensor
from torchgeo_clay.datamodules.common import check_at_least
from torchgeo_clay.models.clay import patchify, unpatchify
from torchgeo_clay.models.mae import ClayMAE, Masking
from torchgeo_clay.models.teacher import teacher_rgb
from torchgeo_clay.sensors import Sensor
from torchgeo_clay.tasks import ClayPretraining
from torchgeo_clay.tasks.figures import write_figure

__all__ = ('ReconstructionPlot', 'plot_reconstruction')


def _mask_pixels(mask: Tensor, height: int, width: int) -> Tensor:
    """Blow a mask of patches up to pixels: (B, L) → (B, 1, height, width) bool."""
    p = int((height * width / mask.shape[1]) ** 0.5)
    pixels = repeat(mask.bool(), 'b (h w) -> b (h p) (w q)', h=height // p, p=p, q=p)
    return rearrange(pixels, 'b h w -> b 1 h w')


def _stretch(images: list[Tensor]) -> list[NDArray[np.float64]]:
    """Scale (3, H, W) images to 0-1 by the 2nd and 98th percentile of the first.

    All channels are stretched together; separately, a forest would look as colorful as a town.
    """
    low, high = (torch.nanquantile(images[0], q) for q in (0.02, 0.98))
    scale = (high - low).clamp(min=1e-6)
    scaled = [((image - low) / scale).clamp(0, 1).nan_to_num(0.5) for image in images]
    return [rearrange(image, 'c h w -> h w c').double().numpy() for image in scaled]


def _is_radar(sensor: Sensor) -> bool:
    """Return True for two bands of backscatter, shown as VV, VH and their mean."""
    return sensor.scale == 'db' and len(sensor) == 2


def _to_rgb(image: Tensor, sensor: Sensor) -> Tensor:
    """Three bands of a normalized image for display: (B, C, H, W) → (B, 3, H, W).

    Colors are shown in the sensor's units, as normalization shifts each band differently; backscatter, whose
    bands differ by 6 dB, is shown normalized.
    """
    if sensor.rgb:
        mean, std = (torch.tensor(values)[:, None, None] for values in (sensor.mean, sensor.std))
        return teacher_rgb(image * std + mean, sensor)
    return teacher_rgb(image, sensor) if _is_radar(sensor) else repeat(image[:, :1], 'b 1 h w -> b 3 h w')


def plot_reconstruction(
    target: Tensor, reconstruction: Tensor, mask: Tensor, sensor: Sensor, gsd: Tensor, title: str | None = None
) -> Figure:
    """Plot original, masked and reconstructed images side by side.

    Args:
        target: (B, C, H, W) normalized, NaN where there is no data.
        reconstruction: (B, C, H, W) normalized; only its masked patches are shown, as no loss trains the others.
        mask: (B, L), 1 where a patch was masked.
        sensor: with these bands. Without rgb bands the first band is shown in gray.
        gsd: (B,) meters per pixel.
        title: first part of the title; None for the sensor's name.

    Returns:
        A figure with one row per sample: original, what the encoder saw, and that with the masked patches as predicted.
    """
    target, reconstruction, mask = (t.detach().float().cpu() for t in (target, reconstruction, mask))
    hidden = _mask_pixels(mask, *target.shape[-2:])
    error = (reconstruction - target).abs()[hidden.expand_as(target)].nanmean()
    columns = {
        'original': target,
        'seen by the encoder': torch.where(hidden, torch.nan, target),
        'masked patches predicted': torch.where(hidden, reconstruction, target),
    }
    shown = [_to_rgb(image, sensor) for image in columns.values()]
    figure = Figure(figsize=(3.2 * len(columns), 3.3 * len(target) + 0.3), layout='constrained')
    axes = figure.subplots(len(target), len(columns), squeeze=False)
    for i, row in enumerate(axes):
        for axis, heading, image in zip(row, columns, _stretch([t[i] for t in shown]), strict=True):
            axis.imshow(image)
            axis.set_xticks([])
            axis.set_yticks([])
            if i == 0:
                axis.set_title(heading)
        size = target.shape[-1] * float(gsd[i])
        row[0].set_ylabel(f'{size:,.0f} m' if size < 10_000 else f'{size / 1000:,.0f} km')
    bands = ', '.join(sensor.rgb) if sensor.rgb else 'VV, VH, mean' if _is_radar(sensor) else sensor.band_names[0]
    figure.suptitle(f'{title or sensor.name} · loss {error:.3f}\n{bands}; stretched by the original', fontsize='medium')
    return figure


class ReconstructionPlot(Callback):
    """Write original, masked and reconstructed images of each sensor, as PNG and to the logger.

    The images are the first of each sensor's validation, with the fixed masks they have there.
    """

    def __init__(
        self, every_n_epochs: int = 1, num_images: int = 3, dirpath: str | os.PathLike[str] | None = None
    ) -> None:
        """Initialize the callback.

        Args:
            every_n_epochs: how often; the last epoch is always plotted.
            num_images: images per sensor.
            dirpath: folder of the PNGs; None for ``reconstructions`` in the trainer's log folder.

        Raises:
            ValueError: for numbers below 1.
        """
        check_at_least(1, every_n_epochs=every_n_epochs, num_images=num_images)
        self.every_n_epochs, self.num_images, self.dirpath = every_n_epochs, num_images, dirpath
        self._done: set[str] = set()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget which sensors were plotted, and find the folder: a collective, which every rank must call."""
        self._done.clear()
        self._folder = Path(self.dirpath or Path(trainer.log_dir or trainer.default_root_dir) / 'reconstructions')

    def _due(self, trainer: Trainer) -> bool:
        """Return True if this validation is plotted."""
        if not trainer.is_global_zero or trainer.sanity_checking:
            return False
        if trainer.state.fn != 'fit':
            return True
        epoch = trainer.current_epoch + 1
        return epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Plot a sensor's first batch."""
        name = batch['sensor']
        if name in self._done or not self._due(trainer):
            return
        self._done.add(name)
        images = {k: v[: self.num_images] if isinstance(v, Tensor) else v for k, v in batch.items()}
        target, pixels, mask = _reconstruct(cast(ClayPretraining, pl_module).model, images)
        title = f'{name} · epoch {trainer.current_epoch + 1}' if trainer.state.fn == 'fit' else name
        figure = plot_reconstruction(target, pixels, mask, batch_sensor(batch), images['res'], title)
        path = self._folder / f'{name}-epoch{trainer.current_epoch:04d}.png'
        write_figure(trainer, figure, path, f'reconstruction/{name}')


def _reconstruct(model: ClayMAE, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return target with NaN for nodata, reconstruction, both (B, C, H, W) normalized, and mask (B, L).

    Batches of :class:`~torchgeo_clay.datamodules.SensorDataModule` have no mask noise; a fixed one is used.
    """
    image = batch['image']
    target, p = batch.get('target', image), model.encoder.patch_embed.patch_size[0]
    noise = batch.get('noise')
    if noise is None:
        patches = image.shape[-2] * image.shape[-1] // p**2
        noise = torch.rand(len(image), patches, generator=torch.Generator().manual_seed(0)).to(image)
    with torch.no_grad():
        pixels = model.reconstruct(image, **Conditioning.from_batch(batch).arguments, noise=noise)
    if model.norm_pix_loss:  # predicted in units of each patch
        true = patchify(target, p)
        scaled = patchify(pixels, p) * (true.var(-1, keepdim=True) + 1e-6).sqrt() + true.mean(-1, keepdim=True)
        pixels = unpatchify(scaled, image.shape[-2] // p, image.shape[-1] // p, p)
    if 'valid' in batch:
        target = torch.where(batch['valid'], target, torch.nan)
    return target, pixels, Masking.from_noise(noise, model.mask_ratio).mask
