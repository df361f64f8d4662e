# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Entry points of Clay's encoders for :func:`timm.create_model`, registered by ``registry.py``.

They have the names of the builders of this package and, unlike those, timm's arguments: ``pretrained``,
``features_only``, ``num_classes``, ... With ``features_only`` they are a :class:`torchgeo_clay.models.pyramid.Pyramid`;
``feature_cls='getter'`` gives the blocks' own maps, all of stride 8, instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, get_pretrained_cfg
from torch import nn

from torchgeo_clay.models import builders
from torchgeo_clay.models.clay import Clay
from torchgeo_clay.models.pyramid import Pyramid
from torchgeo_clay.models.weights.files import CheckpointError
from torchgeo_clay.models.weights.released import ClayLarge8_Weights

# a list, as timm's register_model appends to it
__all__ = ['clay_base_patch8', 'clay_large_patch8', 'clay_small_patch8', 'clay_tiny_patch8']


def _cfg(**kwargs: Any) -> dict[str, Any]:
    """What timm is told of a model: images of any size and bands, normalised per sensor, so not by timm."""
    return {
        'num_classes': 0,
        'input_size': (3, 256, 256),
        'mean': (0.0, 0.0, 0.0),
        'std': (1.0, 1.0, 1.0),
        'interpolation': 'bilinear',
        'crop_pct': 1.0,
        'first_conv': None,
        'classifier': 'head',
        'origin_url': 'https://github.com/Clay-foundation/model',
        **kwargs,
    }


_META = ClayLarge8_Weights.CLAY_V1_5.meta

#: By this name timm's register_model finds them in the entry points' module.
default_cfgs = generate_default_cfgs(
    {
        'clay_tiny_patch8': _cfg(),
        'clay_small_patch8': _cfg(),
        'clay_base_patch8': _cfg(),
        'clay_large_patch8.v1_5': _cfg(
            hf_hub_id=f'{_META["hf_repo"]}@{_META["revision"]}',
            hf_hub_filename=_META['filename'],
            license=_META['license'],
            custom_load=True,  # not a file that timm's own loader could read
        ),
    }
)


def _weights(
    name: str,
    pretrained: bool,
    cache_dir: str | os.PathLike[str] | None,
    *cfgs: Mapping[str, Any] | str | None,
) -> str | os.PathLike[str] | None:
    """The file that ``pretrained=True`` means: one named in timm's way (``pretrained_cfg_overlay``), or the release."""
    if not pretrained:
        return None
    for cfg in cfgs:
        if isinstance(cfg, Mapping) and cfg.get('file'):
            return str(cfg['file'])
    released: dict[str, ClayLarge8_Weights] = {w.meta['model']: w for w in ClayLarge8_Weights.__members__.values()}
    if name not in released:
        raise CheckpointError(
            f'pretrained=True: there are no released weights of {name}. Released: {list(released)}. '
            "For weights of your own pretraining give pretrained_cfg_overlay={'file': PATH} too, or use the builder of "
            'torchgeo_clay.models with weights=PATH.'
        )
    return released[name].fetch(cache_dir=cache_dir)


def _create(
    builder: Callable[..., Clay],
    pretrained: bool,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build an encoder in timm's way; its weights are read by our own reader as it is built, not by timm's after."""
    name = builder.__name__
    if isinstance(pretrained_cfg, str):
        get_pretrained_cfg(f'{name}.{pretrained_cfg}')  # raises for a tag that there is not, before anything is fetched
    weights = _weights(name, pretrained, cache_dir, pretrained_cfg_overlay, pretrained_cfg)
    feature_cfg: dict[str, Any] = {'feature_cls': Pyramid, 'out_indices': (0, 1, 2, 3)}
    if kwargs.get('features_only') and 'output_stride' in kwargs:  # DeepLab's way to ask for finer maps
        feature_cfg['output_stride'] = kwargs.pop('output_stride')
    return build_model_with_cfg(
        partial(builder, weights),
        name,
        pretrained=False,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        feature_cfg=feature_cfg,
        **kwargs,
    )


def clay_tiny_patch8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Clay's encoder, tiny, for timm; see :func:`torchgeo_clay.models.clay_tiny_patch8`.

    Args:
        pretrained: must be False, or come with a file, as this size was never released.
        **kwargs: of :func:`timm.create_model` and of the builder.

    Raises:
        CheckpointError: for ``pretrained=True`` without a file.
    """
    return _create(builders.clay_tiny_patch8, pretrained, **kwargs)


def clay_small_patch8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Clay's encoder, small, for timm; see :func:`torchgeo_clay.models.clay_small_patch8`.

    Args:
        pretrained: must be False, or come with a file, as this size was never released.
        **kwargs: of :func:`timm.create_model` and of the builder.

    Raises:
        CheckpointError: for ``pretrained=True`` without a file.
    """
    return _create(builders.clay_small_patch8, pretrained, **kwargs)


def clay_base_patch8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Clay's encoder, base, for timm; see :func:`torchgeo_clay.models.clay_base_patch8`.

    Args:
        pretrained: must be False, or come with a file, as this size was never released.
        **kwargs: of :func:`timm.create_model` and of the builder.

    Raises:
        CheckpointError: for ``pretrained=True`` without a file.
    """
    return _create(builders.clay_base_patch8, pretrained, **kwargs)


def clay_large_patch8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Clay's encoder, large, for timm; see :func:`torchgeo_clay.models.clay_large_patch8`.

    Args:
        pretrained: load :class:`ClayLarge8_Weights`.
        **kwargs: of :func:`timm.create_model` and of the builder.

    Raises:
        CheckpointError: for weights that can't be fetched or read.
    """
    return _create(builders.clay_large_patch8, pretrained, **kwargs)
