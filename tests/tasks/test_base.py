# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What is trained, at which rate, with which adapters; where weights come from and go to."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.optim import param_groups_layer_decay
from tiny_batches import KNOWN, TINY, TinyDataModule, image, labelled, masked, told, trainer

from torchgeo_clay.conditioning import Conditioning
from torchgeo_clay.models import (
    CheckpointError,
    Clay,
    clay_mae_small_patch8,
    clay_mae_tiny_patch8,
    clay_tiny_patch8,
    load_encoder,
)
from torchgeo_clay.models.freezing import merge_lora
from torchgeo_clay.tasks import (
    ClayChangeDetection,
    ClayClassification,
    ClayPixelwiseRegression,
    ClayRegression,
    ClaySemanticSegmentation,
)
from torchgeo_clay.tasks.optim import finetuning

CONDITIONING = Conditioning(KNOWN['wavelength'], 10.0)
CLASSIFY = {'model': TINY, 'num_classes': 3}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def classification(**options: Any) -> ClayClassification:
    return ClayClassification(**CLASSIFY | options)


def segmentation(**options: Any) -> ClaySemanticSegmentation:
    return ClaySemanticSegmentation(**{'model': 'segformer', 'backbone': TINY, 'num_classes': 3} | options)


def trained(task: Any) -> set[str]:
    """Names of the encoder's weights that are trained."""
    return {k for k, p in task.clay.named_parameters() if p.requires_grad}


# what is trained ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('make', 'data'),
    [(classification, TinyDataModule(labelled)), (segmentation, TinyDataModule(masked()))],
    ids=['classification', 'segmentation'],
)
def test_a_frozen_encoder(make: Callable[..., Any], data: TinyDataModule) -> None:
    """Neither gradients nor dropout nor any change; what is new after it learns."""
    task = make(freeze_backbone=True, drop_path_rate=0.5, lr=0.1)
    head = {'head.weight', 'head.bias'} if make is classification else set()
    assert trained(task) == head
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    seen = []
    task.clay.blocks[-1].register_forward_hook(
        lambda module, args, out: seen.append((module.training, out.requires_grad))
    )
    run = trainer(num_sanity_val_steps=0)
    run.fit(task, data)
    assert seen == [(False, False)] * 4  # two batches of training, two of validation
    after = task.model.state_dict()
    changed = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert changed
    assert not [k for k in changed if 'blocks' in k.partition('decoder')[0] or 'patch_embed' in k or 'cls_token' in k]
    if make is classification:
        assert changed == head
    else:  # the pyramid is new, so it learns, unlike in TorchGeo's task
        assert any('levels' in k for k in changed)
        assert any(k.startswith('decoder') for k in changed)
    assert all(p.grad is None for k, p in task.clay.named_parameters() if k not in head)
    task.train()
    assert not any(m.training for m in task.clay.blocks.modules())
    assert task.clay.head.training
    assert not task.clay.pos_drop.training


def test_the_last_blocks_and_the_norm() -> None:
    task = classification(trainable_blocks=2)
    prefixes = ('blocks.4.', 'blocks.5.', 'norm.', 'head.')
    assert trained(task) == {k for k, _ in task.clay.named_parameters() if k.startswith(prefixes)}
    task.train()
    assert [b.training for b in task.clay.blocks] == [False] * 4 + [True] * 2
    assert task.clay.norm.training
    # no map is made of the norm's output, so with a decoder it would never have a gradient
    assert trained(segmentation(trainable_blocks=6)) == {
        k for k, _ in task.clay.named_parameters() if k.startswith('blocks.')
    }


@pytest.mark.parametrize('pooling', ['class', 'mean'])
def test_pooling(pooling: str) -> None:
    task = classification(pooling=pooling, freeze_backbone=True).eval()
    assert {k.split('.')[0] for k in trained(task)} == {'head'}
    x = image(2, 3, 16, 24)
    with told(task, CONDITIONING), torch.no_grad():
        tokens = task.clay.forward_features(x)
        pooled = tokens[:, 0] if pooling == 'class' else tokens[:, 1:].mean(1)
        torch.testing.assert_close(task(x), task.clay.head(pooled))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'freeze_backbone': True, 'trainable_blocks': 1}, 'freeze_backbone and trainable_blocks contradict'),
        ({'freeze_backbone': True, 'lora': 4}, 'freeze_backbone and lora contradict'),
        ({'trainable_blocks': 2, 'lora': 4}, 'trainable_blocks and lora contradict'),
        ({'freeze_backbone': True, 'layer_decay': 0.5}, 'layer_decay: .*freeze_backbone=True'),
        ({'layer_decay': 2.0}, 'layer_decay: expected a factor above 0 and up to 1'),
        ({'trainable_blocks': 0}, 'trainable_blocks: expected 1 or more, got 0'),
        ({'trainable_blocks': 7}, 'trainable_blocks: expected 1 to 6, the blocks of this encoder, got 7'),
        ({'lora': -1}, 'lora: expected a rank of 1 or more, got -1'),
        ({'lora': {'rank': 4}}, r'lora: expected a rank, or arguments of peft\.LoraConfig'),
        ({'pooling': 'max'}, "pooling: expected 'class' or 'mean', got 'max'"),
        ({'in_channels': 4}, 'in_channels: expected none, got 4: .*Leave it out'),
        ({'patience': 3}, 'patience: expected none, got 3: .*warmup'),
        ({'model': 'clay_mae_tiny_patch8'}, "model: expected one of clay_tiny_patch8, .*got 'clay_mae_tiny_patch8'"),
        ({'weights': 'nowhere.ckpt'}, r'No weights file at nowhere\.ckpt'),
        ({'weights': True}, r'no released weights of clay_tiny_patch8.*clay_large_patch8'),
        ({'weights': 'CLAY_V1_5'}, 'no released weights of clay_tiny_patch8'),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification(**options)


def test_mistakes_with_a_decoder() -> None:
    with pytest.raises(ValueError, match=r"decoder: expected one of unet, deeplabv3\+.* got 'fcn'"):
        segmentation(model='fcn')
    with pytest.raises(ValueError, match=r"got 'dpt'"):
        ClayChangeDetection('dpt', TINY)
    with pytest.raises(ValueError, match=r'num_outputs: .* 1 output per pixel, got 2'):
        ClayPixelwiseRegression(backbone=TINY, num_outputs=2)


# rates ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('make', [classification, segmentation])
def test_rates_fall_from_layer_to_layer(make: Callable[..., Any]) -> None:
    task = make(layer_decay=0.5, lr=1.0, warmup=0.5)
    names = {p: k for k, p in task.model.named_parameters()}
    groups = finetuning(task.model, 1.0, 0.05, 0.5).param_groups
    rate = {names[p]: g['lr'] for g in groups for p in g['params']}
    decay = {names[p]: g['weight_decay'] for g in groups for p in g['params']}
    assert set(rate) == {k for k, p in task.model.named_parameters() if p.requires_grad}
    (prefix,) = {k.removesuffix('cls_token') for k in rate if k.endswith('cls_token')}
    for name, value in rate.items():
        here = name.removeprefix(prefix) if name.startswith(prefix) else ''
        if here.startswith(('cls_token', 'patch_embed')):
            expected = 0.5**7
        elif here.startswith(('blocks', 'norm')):
            expected = 0.5 ** (6 - (int(here.split('.')[1]) if here.startswith('blocks') else 5))
        else:
            expected = 1.0
        assert value == expected, name
        token = name.endswith(('cls_token', 'weight_tokens', 'bias_token'))
        assert decay[name] == (0 if token or task.model.get_parameter(name).ndim == 1 else 0.05), name
    if make is classification:  # timm's own groups, with its own names of tokens
        theirs = param_groups_layer_decay(task.model, 0.05, task.model.no_weight_decay(), layer_decay=0.5)
        assert rate == {names[p]: g['lr_scale'] for g in theirs for p in g['params']}
    # and the schedule goes over each group's own rate
    run = trainer()
    run.fit(task, TinyDataModule(labelled if make is classification else masked()))
    assert run.optimizers[0].param_groups[0]['initial_lr'] == pytest.approx(groups[0]['lr'])
    ratios = {round(g['lr'] / g['initial_lr'], 6) for g in run.optimizers[0].param_groups}
    assert ratios == {0.0}  # 2 steps: the end of the cosine


def test_one_rate() -> None:
    task = classification(pooling='mean')
    optimizer = finetuning(task.model, 0.1, 0.05)
    names = {p: k for k, p in task.model.named_parameters()}
    free = {names[p] for g in optimizer.param_groups if g['weight_decay'] == 0 for p in g['params']}
    assert {g['lr'] for g in optimizer.param_groups} == {0.1}
    assert {k for k in free if task.model.get_parameter(k).ndim > 1} == {
        'cls_token', 'patch_embed.kernels.weight_tokens', 'patch_embed.kernels.bias_token',
    }  # fmt: skip


@pytest.mark.filterwarnings('ignore:`max_epochs` was not set')
def test_a_cosine_needs_an_end() -> None:
    with pytest.raises(ValueError, match='give the trainer max_epochs or max_steps'):
        trainer(max_epochs=-1).fit(classification(), TinyDataModule(labelled))


# adapters -------------------------------------------------------------------------------------------------------------


def test_lora_trains_adapters_of_the_attention_and_merges() -> None:
    task = classification(lora=4, lr=0.1)
    adapters = {
        f'blocks.{i}.attn.{layer}.lora_{ab}.default.weight'
        for i in range(6)
        for layer in ('qkv', 'proj')
        for ab in 'AB'
    }
    assert trained(task) == adapters | {'head.weight', 'head.bias'}
    assert task.clay.blocks[0].attn.qkv.lora_A['default'].weight.shape == (4, 192)
    assert task.clay.blocks[0].attn.qkv.scaling['default'] == 2
    x = image(2, 3, 16, 16)
    plain = clay_tiny_patch8(num_classes=3)
    plain.load_state_dict(merge_lora(task.clay).state_dict())
    with torch.no_grad(), told(task, CONDITIONING), plain.conditioned_on(CONDITIONING):
        assert torch.equal(task(x), plain(x))  # adapters begin as nothing
    trainer().fit(task, TinyDataModule(labelled))
    merged = merge_lora(task.clay)
    assert type(merged) is Clay
    assert merged.state_dict().keys() == plain.state_dict().keys()
    # peft's own way to merge
    theirs = peft.PeftModel(clay_tiny_patch8(num_classes=3), task.clay.peft_config['default'])
    theirs.base_model.model.load_state_dict(task.clay.state_dict())
    theirs = theirs.merge_and_unload()
    for key, value in merged.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[key], rtol=0, atol=0)
    task.eval(), merged.eval()
    with torch.no_grad(), told(task, CONDITIONING), merged.conditioned_on(CONDITIONING):
        torch.testing.assert_close(task(x), merged(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(task(x), plain.eval()(x, KNOWN['wavelength'], 10.0))
    assert 'blocks.0.attn.qkv.lora_A.default.weight' in task.clay.state_dict()  # the task goes on as it was


def test_lora_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(ValueError, match=r"pip install 'torchgeo-clay\[lora\]'"):
        classification(lora=4)
    assert merge_lora(clay_tiny_patch8()).num_classes == 0


# files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a pretraining leaves, of the tiny model."""
    path = tmp_path_factory.mktemp('pretrained') / 'last.ckpt'
    torch.manual_seed(1)
    state = {f'model.{k}': v for k, v in clay_mae_tiny_patch8().state_dict().items()}
    torch.save({'state_dict': state, 'hyper_parameters': {'model': 'clay_mae_tiny_patch8'}}, path)
    return path


@pytest.mark.parametrize(
    'make',
    [
        classification,
        segmentation,
        lambda **options: segmentation(model='dpt', **options),
        lambda **options: ClayRegression(TINY, lora=2, **options),
        lambda **options: ClayChangeDetection('segformer', TINY, **options),
    ],
)
def test_a_pretraining_is_loaded_and_what_was_trained_exported(
    make: Callable[..., Any], pretrained: Path, tmp_path: Path
) -> None:
    task = make(weights=str(pretrained))
    expected = load_encoder(clay_tiny_patch8(), pretrained).state_dict()
    task.export(tmp_path / 'encoder.safetensors')
    written = clay_tiny_patch8(weights=tmp_path / 'encoder.safetensors').state_dict()
    assert written.keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in written.items())
    with torch.no_grad():
        task.clay.cls_token += 1
    task.export(tmp_path / 'encoder.safetensors')
    again = classification(weights=str(tmp_path / 'encoder.safetensors'))
    assert torch.equal(again.clay.cls_token, expected['cls_token'] + 1)


def test_a_pretraining_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / 'small.ckpt'
    torch.save({'state_dict': {f'model.{k}': v for k, v in clay_mae_small_patch8().state_dict().items()}}, path)
    for make in (classification, segmentation):
        with pytest.raises(CheckpointError, match='384 wide and 6 deep, which is clay_small_patch8'):
            make(weights=str(path))


@pytest.mark.parametrize(
    ('make', 'data'),
    [
        (lambda **o: classification(lora=2, pooling='mean', **o), TinyDataModule(labelled)),
        (segmentation, TinyDataModule(masked((20, 28)), (3, 20, 28))),
    ],
    ids=['lora', 'segmentation'],
)
def test_a_checkpoint_brings_the_task_back_whole(
    make: Callable[..., Any], data: TinyDataModule, pretrained: Path, tmp_path: Path
) -> None:
    weights = tmp_path / 'gone.ckpt'
    weights.write_bytes(pretrained.read_bytes())
    task = make(weights=str(weights), lr=0.01)
    run = trainer(ModelCheckpoint(tmp_path / 'run', 'best'), enable_checkpointing=True, default_root_dir=tmp_path)
    run.fit(task, data)
    weights.unlink()
    back = type(task).load_from_checkpoint(tmp_path / 'run/best.ckpt')
    assert back.hparams == task.hparams
    state = task.state_dict()
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in back.state_dict().items())
    results = [trainer().test(t, data, verbose=False)[0] for t in (task, back)]
    assert results[0] == results[1]
    if task.hparams['lora']:
        with pytest.raises(CheckpointError, match=r'LoRA adapters.*export\(\)'):
            classification(weights=str(tmp_path / 'run/best.ckpt'))
    else:  # another task may begin with its encoder
        other = classification(weights=str(tmp_path / 'run/best.ckpt'))
        assert torch.equal(other.clay.blocks[5].mlp.fc1.weight, task.clay.blocks[5].mlp.fc1.weight)
    with pytest.raises(CheckpointError, match=r'another number of classes or outputs'):
        type(task).load_from_checkpoint(tmp_path / 'run/best.ckpt', num_classes=5)
