# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay in TorchGeo's and timm's registries, so that their commands, tasks and functions find it by name.

timm's entry points have the names of the builders of this package and, unlike those, timm's arguments: ``pretrained``,
``features_only``, ``num_classes``, ... With ``features_only`` they are a :class:`torchgeo_clay.models.pyramid.Pyramid`;
``feature_cls='getter'`` gives the blocks' own maps, all of stride 8, instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    is_model,
    model_entrypoint,
    register_model,
)
from torch import nn
from torchgeo.models import api

from torchgeo_clay.models import builders
from torchgeo_clay.models.clay import Clay
from torchgeo_clay.models.pyramid import Pyramid
from torchgeo_clay.models.weights import ClayLarge8_Weights, resolve_weights

# a list, as timm's register_model appends to it
__all__ = ['clay_base_patch8', 'clay_large_patch8', 'clay_small_patch8', 'clay_tiny_patch8', 'register']


#: timm's description of a model; images are normalized per sensor, not by timm.
_CFG: dict[str, Any] = {
    'num_classes': 0,
    'input_size': (3, 256, 256),
    'mean': (0.0, 0.0, 0.0),
    'std': (1.0, 1.0, 1.0),
    'interpolation': 'bilinear',
    'crop_pct': 1.0,
    'first_conv': None,
    'classifier': 'head',
    'origin_url': 'https://github.com/Clay-foundation/model',
}
_META = ClayLarge8_Weights.CLAY_V1_5.meta
_RELEASED = {
    'hf_hub_id': f'{_META["hf_repo"]}@{_META["revision"]}',
    'hf_hub_filename': _META['filename'],
    'license': _META['license'],
    'custom_load': True,  # timm's own loader cannot read the file
}

#: timm's register_model looks for this name in the entry points' module.
default_cfgs = generate_default_cfgs(
    {**dict.fromkeys(builders.ENCODERS[:3], _CFG), 'clay_large_patch8.v1_5': _CFG | _RELEASED}
)


def _create(
    builder: Callable[..., Clay],
    pretrained: bool,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build an encoder for timm, whose weights are read by our own reader when it is built, not by timm's after."""
    name = builder.__name__
    if isinstance(pretrained_cfg, str):
        get_pretrained_cfg(f'{name}.{pretrained_cfg}')  # raises for an unknown tag before anything is fetched
    cfgs = [cfg for cfg in (pretrained_cfg_overlay, pretrained_cfg) if isinstance(cfg, Mapping) and cfg.get('file')]
    weights = resolve_weights((cfgs[0]['file'] if cfgs else True) if pretrained else None, name, cache_dir)
    feature_cfg: dict[str, Any] = {'feature_cls': Pyramid, 'out_indices': (0, 1, 2, 3)}
    if kwargs.get('features_only') and 'output_stride' in kwargs:  # set by DeepLab
        feature_cfg['output_stride'] = kwargs.pop('output_stride')

    def build(in_chans: int, dynamic_img_size: bool = True, **model_kwargs: Any) -> Clay:
        """Build without two arguments that timm and smp always pass: any number of channels, and True."""
        refused = {} if dynamic_img_size else {'dynamic_img_size': False}
        return builder(weights, **refused, **model_kwargs)

    return build_model_with_cfg(
        build,
        name,
        pretrained=False,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        feature_cfg=feature_cfg,
        **kwargs,
    )


def clay_tiny_patch8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build Clay's tiny encoder for timm, which was never released. Arguments as :func:`clay_large_patch8`."""
    return _create(builders.clay_tiny_patch8, pretrained, **kwargs)


def clay_small_patch8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build Clay's small encoder for timm, which was never released. Arguments as :func:`clay_large_patch8`."""
    return _create(builders.clay_small_patch8, pretrained, **kwargs)


def clay_base_patch8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build Clay's base encoder for timm, which was never released. Arguments as :func:`clay_large_patch8`."""
    return _create(builders.clay_base_patch8, pretrained, **kwargs)


def clay_large_patch8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build Clay's large encoder for timm; see :func:`torchgeo_clay.models.clay_large_patch8`.

    Args:
        pretrained: load the file of ``pretrained_cfg_overlay``, else :class:`ClayLarge8_Weights`.
        **kwargs: of :func:`timm.create_model` and of the builder. ``in_chans``, which callers such as
            segmentation_models_pytorch always pass, has no effect: Clay takes any number of channels.

    Raises:
        CheckpointError: for weights that cannot be fetched or read.
        TypeError: for arguments that :class:`Clay` refuses.
    """
    return _create(builders.clay_large_patch8, pretrained, **kwargs)


def register() -> None:
    """Register the builders in ``torchgeo.models`` and the encoders in timm; a second call changes nothing.

    TorchGeo's tables are private; no other function of this package touches them. In timm another package's model of
    the same name is replaced with timm's warning.
    """
    for encoder in builders.ENCODERS:
        for name in (encoder, encoder.replace('clay', 'clay_mae')):
            api._model[name] = getattr(builders, name)
    for builder in (builders.clay_large_patch8, builders.clay_mae_large_patch8):
        # by function and by name, as get_model_weights takes either
        api._model_weights[builder] = api._model_weights[builder.__name__] = ClayLarge8_Weights
    for entry_point in (clay_tiny_patch8, clay_small_patch8, clay_base_patch8, clay_large_patch8):
        known = model_entrypoint(entry_point.__name__) if is_model(entry_point.__name__) else None
        if known is entry_point:
            continue
        with warnings.catch_warnings():
            if known is not None and known.__module__ == entry_point.__module__:  # this package, imported again
                warnings.simplefilter('ignore')
            register_model(entry_point)
