# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Importing the package makes the models known to TorchGeo and timm, once."""

import importlib
import importlib.metadata
import sys
import warnings

import pytest
import timm
import torch
import torchgeo.models
from torch import nn
from torchgeo.models import api

import torchgeo_clay
from torchgeo_clay import models
from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.models import CheckpointError, Clay, ClayLarge8_Weights, ClayMAE, registry, save_encoder
from torchgeo_clay.sensors import get_sensor

SIZES = ('tiny', 'small', 'base', 'large')
ENCODERS = [f'clay_{size}_patch8' for size in SIZES]
AUTOENCODERS = [f'clay_mae_{size}_patch8' for size in SIZES]


def test_package() -> None:
    assert torchgeo_clay.__version__ == importlib.metadata.version('torchgeo-clay')
    for name in torchgeo_clay.__all__:
        assert hasattr(torchgeo_clay, name) or importlib.import_module(f'torchgeo_clay.{name}')


@pytest.mark.parametrize('name', ENCODERS + AUTOENCODERS)
def test_torchgeo_builds(name: str) -> None:
    assert name in torchgeo.models.list_models()
    with torch.device('meta'):
        model = torchgeo.models.get_model(name)
    assert type(model) is (Clay if name in ENCODERS else ClayMAE)


@pytest.mark.parametrize('name', ['clay_large_patch8', 'clay_mae_large_patch8'])
def test_torchgeo_weights(name: str) -> None:
    assert torchgeo.models.get_model_weights(name) is ClayLarge8_Weights
    assert torchgeo.models.get_model_weights(getattr(models, name)) is ClayLarge8_Weights
    assert torchgeo.models.get_weight('ClayLarge8_Weights.CLAY_V1_5') is ClayLarge8_Weights.CLAY_V1_5
    assert str(ClayLarge8_Weights.CLAY_V1_5) == 'ClayLarge8_Weights.CLAY_V1_5'


def test_torchgeo_arguments() -> None:
    model = torchgeo.models.get_model('clay_tiny_patch8', num_classes=3)
    assert model(torch.zeros(2, 2, 16, 16), [0.65, 0.842], 1.0).shape == (2, 3)
    with pytest.raises(TypeError, match='in_chans'):
        torchgeo.models.get_model('clay_tiny_patch8', in_chans=5)


@pytest.mark.parametrize('name', ENCODERS)
def test_timm_builds(name: str) -> None:
    assert name in timm.list_models()
    with torch.device('meta'):
        model = timm.create_model(name, in_chans=7, img_size=(128, 64), num_classes=5, dynamic_img_size=True)
        ours = getattr(models, name)(num_classes=5)
    assert type(model) is Clay
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    assert model.patch_embed.grid_size == (16, 8)


def test_timm_pretrained_names() -> None:
    assert timm.list_pretrained('clay*') == ['clay_large_patch8.v1_5']
    assert timm.is_model_pretrained('clay_large_patch8')
    cfg = timm.get_pretrained_cfg('clay_large_patch8')
    assert cfg.tag == 'v1_5'
    assert cfg.hf_hub_id == 'made-with-clay/Clay@2033cf5c59afbd8fef655008d0b0a9d6861951c8'
    assert cfg.hf_hub_filename == 'v1.5/clay-v1.5.ckpt'
    assert (cfg.num_classes, cfg.mean, cfg.std) == (0, (0, 0, 0), (1, 1, 1))


def test_timm_embeds_by_default() -> None:
    """No class head unless asked for, as timm's default of 1000 classes means nothing here."""
    model = timm.create_model('clay_tiny_patch8')
    assert isinstance(model.head, nn.Identity)
    assert model(torch.zeros(1, 2, 16, 16), [0.665, 0.56], 10.0).shape == (1, 192)
    assert timm.data.resolve_model_data_config(model)['mean'] == (0, 0, 0)


def test_timm_feature_getter() -> None:
    """The blocks' own maps, of one stride; the pyramid, which is the default, is in test_pyramid.py."""
    model = timm.create_model('clay_tiny_patch8', features_only=True, feature_cls='getter', out_indices=(1, 3, 5))
    whole = timm.create_model('clay_tiny_patch8')
    rest = {name: weight for name, weight in whole.state_dict().items() if name.startswith('norm.')}  # which is pruned
    whole.load_state_dict(model.model.state_dict() | rest)
    x = torch.randn(2, 4, 32, 16)
    naip = {'wavelengths': torch.tensor(get_sensor('naip').wavelengths), 'gsd': 1.0}
    with model.model.conditioned_on(Conditioning(**naip)):
        features = model(x)
    assert model.feature_info.channels() == [192, 192, 192]
    assert model.feature_info.reduction() == [8, 8, 8]
    expected = whole.forward_intermediates(x, indices=[1, 3, 5], intermediates_only=True, **naip)
    assert [f.shape for f in features] == [(2, 192, 4, 2)] * 3
    assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))


@pytest.mark.parametrize('name', ENCODERS[:3])
def test_timm_never_released(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf'no released weights of {name}.*clay_large_patch8'):
        timm.create_model(name, pretrained=True)


@pytest.mark.parametrize('name', ['clay_large_patch8.v9', 'clay_tiny_patch8.v1_5'])
def test_timm_unknown_tag(name: str) -> None:
    with pytest.raises(RuntimeError, match='Invalid pretrained tag'):
        timm.create_model(name, pretrained=True)


def test_timm_file(tmp_path: pytest.TempPathFactory) -> None:
    """timm's own way to name a local file goes through our reader."""
    source = models.clay_tiny_patch8()
    path = tmp_path / 'encoder.safetensors'
    save_encoder(source, path)
    overlay = {'file': str(path)}
    model = timm.create_model('clay_tiny_patch8', pretrained=True, pretrained_cfg_overlay=overlay, num_classes=2)
    assert torch.equal(model.blocks[5].mlp.fc2.weight, source.blocks[5].mlp.fc2.weight)
    assert not any(p.is_meta for p in model.parameters())
    features = timm.create_model(
        'clay_tiny_patch8', pretrained=True, pretrained_cfg_overlay=overlay, features_only=True
    )
    assert torch.equal(features.model.cls_token, source.cls_token)
    with pytest.raises(CheckpointError, match='clay_tiny_patch8'):
        timm.create_model('clay_small_patch8', pretrained=True, pretrained_cfg_overlay=overlay)


def test_registering_again_changes_nothing() -> None:
    before = (dict(api._model), dict(api._model_weights), timm.list_models('clay*', include_tags=True))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        registry.register()
        importlib.reload(torchgeo_clay)
        importlib.reload(registry)
    assert before == (dict(api._model), dict(api._model_weights), timm.list_models('clay*', include_tags=True))


def test_imported_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After ``sys.modules`` is purged, as in notebooks, new functions replace the old ones without a warning."""
    old = models.clay_tiny_patch8
    for name in [n for n in sys.modules if n.split('.')[0] == 'torchgeo_clay']:
        monkeypatch.delitem(sys.modules, name)
    try:
        new = importlib.import_module('torchgeo_clay')
        assert new is not torchgeo_clay
        assert api._model['clay_tiny_patch8'] is not old
        assert len(timm.list_models('clay*')) == len(SIZES)
        with torch.device('meta'):
            assert type(timm.create_model('clay_tiny_patch8')) is new.models.Clay
    finally:
        monkeypatch.undo()
        api._model_weights.pop(api._model['clay_large_patch8'])
        api._model_weights.pop(api._model['clay_mae_large_patch8'])
        registry.register()


def test_foreign_model_of_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm warns where another package had taken a name."""
    from timm.models import _registry

    monkeypatch.setitem(_registry._model_entrypoints, 'clay_tiny_patch8', lambda **_: nn.Identity())
    with pytest.warns(UserWarning, match='Overwriting clay_tiny_patch8'):
        registry.register()
    with torch.device('meta'):
        assert type(timm.create_model('clay_tiny_patch8')) is Clay
