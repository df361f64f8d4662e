# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Draw what each decoder makes of one image, to see that none leaves a checkerboard.

    python docs/scripts/plot_checkerboard.py docs/images/checkerboard.png

Above, a constant image, less the local mean, which takes away what the far border of the image does and leaves
lattices; below, noise. The last column is segmentation_models_pytorch's own dpt, with its transposed convolution. All
models are random.
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.models.clay import find_clay
from torchgeo_clay.models.decoders import DECODERS, DenseClay

MODEL, SIZE, CROP = 'clay_tiny_patch8', 192, slice(64, 128)


def output(model: nn.Module, x: Tensor) -> Tensor:
    """A model's output (1, 1, H, W); the position code is the same everywhere."""
    (clay,) = find_clay(model)
    conditioning = Conditioning(torch.tensor([0.665, 0.56, 0.493]), gsd=1e-6)
    with torch.no_grad(), clay.conditioned_on(conditioning):
        out: Tensor = model.eval()(x)
    return out


def columns(model: nn.Module, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The middle of the outputs for a constant image, less its 9 × 9 mean, and for noise, in spreads of the latter."""
    constant, varied = output(model, torch.ones_like(noise)), output(model, noise)
    lattice = constant - F.avg_pool2d(constant, 9, 1, padding=4)
    middle = varied[0, 0, CROP, CROP]
    return lattice[0, 0, CROP, CROP] / varied.std(), (middle - middle.mean()) / middle.std()


def main(path: str) -> None:
    """Draw the figure.

    Args:
        path: of the picture.
    """
    models: dict[str, nn.Module] = {}
    for name in (*DECODERS, "smp's dpt"):
        torch.manual_seed(0)
        models[name] = (
            DenseClay(MODEL, name) if name in DECODERS else smp.create_model('dpt', f'tu-{MODEL}', encoder_weights=None)
        )
    noise = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    figure, axes = plt.subplots(2, len(models), figsize=(2 * len(models), 4.4), layout='constrained')
    for (name, model), column in zip(models.items(), axes.T, strict=True):
        for axis, out, span in zip(column, columns(model, noise), (0.1, 3), strict=True):
            axis.imshow(out, vmin=-span, vmax=span, cmap='RdBu')
            axis.set(xticks=[], yticks=[])
        column[0].set_title(name)
    axes[0, 0].set_ylabel('constant, ± 0.1 σ')
    axes[1, 0].set_ylabel('noise, ± 3 σ')
    figure.savefig(path, dpi=110)


if __name__ == '__main__':
    main(sys.argv[1])
