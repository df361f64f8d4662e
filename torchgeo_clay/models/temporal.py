# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Series of images: the encoder sees each date alone, with its own time; then the dates of a sample are aggregated.

Shapes: B samples, T dates, N real dates of all samples, C bands, H × W pixels, D width of tokens or maps, K outputs.
Padding follows a sample's real dates; it is not encoded and has no part in the aggregation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchgeo.models import LTAE

from torchgeo_clay.conditioning import select_dates
from torchgeo_clay.models.clay import Clay, pad_image
from torchgeo_clay.models.decoders import DenseClay
from torchgeo_clay.models.pyramid import Pyramid
from torchgeo_clay.models.weights import WeightsLike

__all__ = ('Aggregation', 'DateAttention', 'DenseSeries', 'ImageSeries', 'Temporal', 'aggregate_dates')

#: ``mean`` or ``max`` over the dates, whose order does not matter, or TorchGeo's attention over them, which is trained.
Temporal = Literal['mean', 'max', 'ltae']


def aggregate_dates(x: Tensor, real: Tensor, reduction: Literal['mean', 'max']) -> Tensor:
    """Take the mean or the maximum of the real dates: (B, T, …) and (B, T) bool → (B, …)."""
    real = real.reshape(*real.shape, *[1] * (x.ndim - 2))
    if reduction == 'max':
        return x.masked_fill(~real, -torch.inf).amax(1)
    return x.masked_fill(~real, 0).sum(1) / real.sum(1)


class DateAttention(LTAE):
    """TorchGeo's Lightweight Temporal Attention Encoder with padding masked, for any number of dates.

    Its input projection is left out, as the layer norm behind it takes one number of dates alone.
    """

    def __init__(self, width: int) -> None:
        """Initialize a new DateAttention instance.

        Args:
            width: D, of the input and the output, a multiple of 16.
        """
        super().__init__(width, n_neurons=(width, width), d_model=None)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Attend to the real dates: (B, T, D) and, unless all are real, (B, T) bool → (B, D)."""
        if real is None:
            real = x.new_ones(x.shape[:2], dtype=torch.bool)
        x = self.pos_encoder(self.inlayernorm(x))
        attended, _ = self.attention(x, x, x, key_padding_mask=~real, need_weights=False)
        for norm in self.mlp:
            if isinstance(norm, nn.BatchNorm1d):  # of a batch of one, as at the end of an epoch, there is no variance
                norm.train(self.training and len(x) > 1)
        return self.outlayernorm(self.dropout(self.mlp(aggregate_dates(attended, real, 'mean'))))


class Aggregation(nn.Module):
    """Aggregate the tokens or maps of a sample's dates."""

    def __init__(self, temporal: Temporal, width: int) -> None:
        """Initialize a new Aggregation instance.

        Args:
            temporal: ``mean``, ``max`` or ``ltae``.
            width: D.

        Raises:
            ValueError: for another ``temporal``.
        """
        super().__init__()
        if temporal not in get_args(Temporal):
            raise ValueError(f'temporal: expected one of {", ".join(get_args(Temporal))}, got {temporal!r}.')
        self.reduction: Literal['mean', 'max'] = 'max' if temporal == 'max' else 'mean'
        self.attention = DateAttention(width) if temporal == 'ltae' else None

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """Aggregate (N, D) or (N, D, h, w), a sample's dates side by side, to (B, D) or (B, D, h, w).

        Args:
            x: tokens or maps of the real dates.
            lengths: number of real dates of each of the B samples.
        """
        series = pad_sequence(x.split(list(lengths)), batch_first=True)
        real = torch.arange(series.shape[1]) < torch.tensor(lengths)[:, None]
        real = real.to(x.device, non_blocking=True)
        if self.attention is None:
            return aggregate_dates(series, real, self.reduction)
        cells = series.flatten(3) if series.ndim > 3 else series.unsqueeze(3)
        attended = self.attention(
            rearrange(cells, 'b t d l -> (b l) t d'), real.repeat_interleave(cells.shape[3], dim=0)
        )
        return rearrange(attended, '(b l) d -> b d l', b=len(lengths)).reshape(len(lengths), *x.shape[1:])


def _real_images(clay: Clay, x: Tensor) -> tuple[Tensor, Sequence[int]]:
    """The real images of a series, (N, C, H, W), and how many each sample has, which the scope says; else all."""
    scope = clay.patch_embed.conditioning
    lengths = [x.shape[1]] * x.shape[0] if scope is None or scope.lengths is None else scope.lengths
    return select_dates(x, lengths), lengths


class ImageSeries(nn.Module):
    """A classifier of series: what the encoder's head gets of an image, aggregated over the dates, and the head."""

    def __init__(self, encoder: Clay, temporal: Temporal) -> None:
        """Initialize a new ImageSeries instance for an encoder with its head; ``temporal`` as :class:`Aggregation`."""
        super().__init__()
        self.encoder = encoder
        self.aggregation = Aggregation(temporal, encoder.embed_dim)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers of the encoder, as timm's method of that name; the rest is the last layer."""
        return {
            'stem': r'^encoder\.(?:cls_token|patch_embed)',
            'blocks': [(r'^encoder\.blocks\.(\d+)', None), (r'^encoder\.norm', (99999,))],
        }

    def forward(self, x: Tensor) -> Tensor:
        """Classify series: (B, T, C, H, W) normalized, of any size from one patch on → (B, K)."""
        images, lengths = _real_images(self.encoder, x)
        tokens = self.encoder.forward_features(pad_image(images))
        return self.encoder.head(self.aggregation(self.encoder.forward_head(tokens, pre_logits=True), lengths))


class DenseSeries(DenseClay):
    """Clay, a series' feature maps, each aggregated over the dates, a decoder and a head."""

    def __init__(
        self,
        model: str,
        decoder: str = 'unet',
        outputs: int = 1,
        weights: WeightsLike = None,
        *,
        temporal: Temporal,
        **vit_kwargs: Any,
    ) -> None:
        """Initialize a new DenseSeries instance; ``temporal`` as :class:`Aggregation`, others as :class:`DenseClay`."""
        super().__init__(model, decoder, outputs, weights, **vit_kwargs)
        pyramid = self.encoder.model
        maps = isinstance(pyramid, Pyramid)
        widths = pyramid.feature_info.channels() if maps else [self.clay.embed_dim] * len(self.strides)
        self.aggregations = nn.ModuleList(Aggregation(temporal, width) for width in widths)
        for level, aggregation in zip(pyramid.levels.values() if maps else (), self.aggregations, strict=maps):
            if not any(p.requires_grad for p in level.parameters()):  # a map that the decoder does not use
                aggregation.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Predict every pixel from a series: (B, T, C, H, W) normalized → (B, K, H, W)."""
        images, lengths = _real_images(self.clay, x)
        maps, tokens = self.maps(images)
        if tokens is not None:
            pairs = zip(self.aggregations, tokens, strict=True)
            tokens = [aggregation(token[:, 0], lengths)[:, None] for aggregation, token in pairs]
        maps = [aggregation(m, lengths) for aggregation, m in zip(self.aggregations, maps, strict=True)]
        return self.decode(maps, tokens, (x.shape[-2], x.shape[-1]))
