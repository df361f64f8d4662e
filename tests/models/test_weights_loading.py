# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Weights go in whole, under the right names, or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from torchgeo_clay import models
from torchgeo_clay.models import CheckpointError, Clay, ClayDecoder, ClayMAE, load_encoder, save_encoder
from torchgeo_clay.models.weights import Archive, load_mae, released_name

SIZES = ('tiny', 'small', 'base', 'large')
COUNTS = {
    'tiny': (4_030_592, 1_677_152),
    'small': (10_957_568, 3_683_840),
    'base': (92_102_144, 15_769_088),
    'large': (311_442_944, 15_900_160),
}


def small_encoder(**kwargs: object) -> Clay:
    """An encoder of two blocks, as these tests do not depend on size."""
    return Clay(**{'embed_dim': 48, 'depth': 2, 'num_heads': 2, 'mlp_ratio': 2} | kwargs)


def small_mae(teacher_dim: int | None = 16, **kwargs: object) -> ClayMAE:
    decoder = ClayDecoder(encoder_dim=48, dim=32, depth=1, heads=2, dim_head=16, mlp_ratio=2)
    return ClayMAE(small_encoder(), decoder, teacher_dim=teacher_dim, **kwargs)


def released_layout(mae: ClayMAE) -> dict[str, Tensor]:
    """The state dict of the release for an autoencoder of ours."""
    state = {f'model.encoder.{released_name(k)}': v for k, v in mae.encoder.state_dict().items()}
    state |= {f'model.decoder.{released_name(k)}': v for k, v in mae.decoder.state_dict().items()}
    if mae.proj is not None:
        state |= {f'model.proj.{k}': v for k, v in mae.proj.state_dict().items()}
    return state


def released_file(path: Path, mae: ClayMAE, teacher: str = 'vit_large_patch14_reg4_dinov2.lvd142m') -> Path:
    torch.save({'state_dict': released_layout(mae), 'hyper_parameters': {'teacher': teacher}, 'epoch': 1}, path)
    return path


def shape_only(module: nn.Module) -> dict[str, Tensor]:
    """A state dict of the module's shapes that takes little room in a file."""
    return {k: torch.zeros(1).expand(v.shape) for k, v in module.state_dict().items()}


def equal(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def is_real(module: nn.Module) -> bool:
    """Whether every tensor of a module has finite values of its own."""
    tensors = [*module.parameters(), *module.buffers()]
    return all(t.device.type == 'cpu' and bool(t.isfinite().all()) for t in tensors)


@pytest.fixture
def released(tmp_path: Path) -> tuple[Path, ClayMAE]:
    mae = small_mae()
    return released_file(tmp_path / 'released.ckpt', mae), mae


# names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', SIZES)
def test_names_shapes_and_counts(size: str, reference: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor of the reference has one of ours, of the same shape, and the other way round."""
    monkeypatch.setattr(timm, 'create_model', lambda *_, **__: nn.Linear(1, 1).requires_grad_(False))
    monkeypatch.setattr(nn.Linear, 'num_features', 1024, raising=False)
    settings = {'mask_ratio': 0.75, 'patch_size': 8, 'norm_pix_loss': False, 'shuffle': True, 'metadata': {}}
    settings |= {'teacher': 'stub', 'dolls': [], 'doll_weights': []}
    with torch.device('meta'):
        theirs = getattr(reference, f'clay_mae_{size}')(**settings)
        ours = getattr(models, f'clay_mae_{size}_patch8')(teacher_dim=1024)
    for part in ('encoder', 'decoder'):
        state = getattr(ours, part).state_dict()
        names = {released_name(k): v.shape for k, v in state.items()}
        assert len(names) == len(state)
        assert names == {k: v.shape for k, v in getattr(theirs, part).state_dict().items()}
    assert ours.proj.state_dict().keys() == theirs.proj.state_dict().keys()
    counts = tuple(sum(p.numel() for p in part.parameters()) for part in (ours.encoder, ours.decoder))
    assert counts == COUNTS[size]


def test_large_has_265_tensors() -> None:
    with torch.device('meta'):
        assert len(models.clay_large_patch8().state_dict()) == 265


# what loads ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def reference_file(reference: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A tiny model of the reference, with a small teacher, saved as Lightning saves the release."""
    create = timm.create_model
    timm.create_model = lambda *_, **__: create('test_vit', num_classes=0)
    try:
        model = reference.clay_mae_tiny(
            mask_ratio=0.75,
            patch_size=8,
            norm_pix_loss=False,
            shuffle=True,
            metadata={},
            teacher='test_vit',
            dolls=[],
            doll_weights=[],
        )
    finally:
        timm.create_model = create
    optimizer = torch.optim.AdamW(model.proj.parameters())
    model.proj(torch.ones(1, 192)).sum().backward()
    optimizer.step()
    path = tmp_path_factory.mktemp('reference') / 'clay.ckpt'
    contents = {
        'epoch': 3,
        'pytorch-lightning_version': '2.5.0',
        'state_dict': {f'model.{k}': v for k, v in model.state_dict().items()},
        'optimizer_states': [optimizer.state_dict()],
        'hyper_parameters': {'teacher': 'test_vit', 'dolls': [16, 32], 'lr': 1e-5},
    }
    torch.save(contents, path)
    return path, model


def test_encoder_of_the_reference(reference_file: tuple[Path, nn.Module]) -> None:
    path, theirs = reference_file
    ours = models.clay_tiny_patch8(weights=path)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, theirs.encoder.state_dict()[released_name(key)]), key
    assert is_real(ours)
    assert ours(torch.randn(1, 2, 16, 16), [0.6, 0.5], 10.0).isfinite().all()


def test_autoencoder_of_the_reference(reference_file: tuple[Path, nn.Module]) -> None:
    """With its teacher and projection, which are in the file; nothing is fetched for them."""
    path, theirs = reference_file
    ours = models.clay_mae_tiny_patch8(weights=path, teacher='test_vit')
    for part in ('encoder', 'decoder'):
        for key, value in getattr(ours, part).state_dict().items():
            assert torch.equal(value, getattr(theirs, part).state_dict()[released_name(key)]), key
    assert equal(ours.proj, theirs.proj)
    assert equal(ours.teacher, theirs.teacher)
    assert is_real(ours)
    assert all(p.requires_grad for p in ours.encoder.parameters())
    assert not any(p.requires_grad for p in ours.teacher.parameters())


def test_autoencoder_without_the_files_teacher(reference_file: tuple[Path, nn.Module]) -> None:
    path, theirs = reference_file
    assert models.clay_mae_tiny_patch8(weights=path).proj is None
    cached = models.clay_mae_tiny_patch8(weights=path, teacher_dim=64)
    assert cached.teacher is None
    assert equal(cached.proj, theirs.proj)
    own = timm.create_model('test_vit', num_classes=0)
    before = own.cls_token.clone()
    given = models.clay_mae_tiny_patch8(weights=path, teacher=own)
    assert torch.equal(given.teacher.cls_token, before)  # a module that is given keeps its weights


def test_another_teacher_than_the_files(reference_file: tuple[Path, nn.Module]) -> None:
    with pytest.raises(CheckpointError, match='teacher'):
        models.clay_mae_tiny_patch8(weights=reference_file[0], teacher='test_vit2')


def test_own_pretraining(tmp_path: Path) -> None:
    """What a Lightning task of ours writes: our names, under `model.`."""
    mae = small_mae()
    path = tmp_path / 'last.ckpt'
    torch.save({'state_dict': {f'model.{k}': v for k, v in mae.state_dict().items()}, 'loops': {}}, path)
    assert equal(load_encoder(small_encoder(), path), mae.encoder)
    assert equal(load_mae(small_mae(), path), mae)


def test_plain_state_dicts(tmp_path: Path) -> None:
    mae = small_mae()
    torch.save(mae.state_dict(), tmp_path / 'mae.pt')
    torch.save(mae.encoder.state_dict(), tmp_path / 'encoder.pt')
    assert equal(load_mae(small_mae(), tmp_path / 'mae.pt'), mae)
    assert equal(load_encoder(small_encoder(), tmp_path / 'encoder.pt'), mae.encoder)


def test_task_with_a_head(tmp_path: Path) -> None:
    """A classifier's checkpoint gives its encoder without its head."""
    classifier = small_encoder(num_classes=7)
    state = {f'model.{k}': v for k, v in classifier.state_dict().items()} | {'criterion.weight': torch.ones(7)}
    torch.save({'state_dict': state}, tmp_path / 'task.ckpt')
    target = small_encoder(num_classes=3)
    head = target.head.weight.clone()
    load_encoder(target, tmp_path / 'task.ckpt')
    assert torch.equal(target.blocks[1].norm2.weight, classifier.blocks[1].norm2.weight)
    assert torch.equal(target.cls_token, classifier.cls_token)
    assert torch.equal(target.head.weight, head)


def test_safetensors_both_ways(tmp_path: Path, reference: ModuleType) -> None:
    """Ours reads it back, and the reference takes its tensors strictly."""
    encoder = models.clay_tiny_patch8()
    path = tmp_path / 'encoder.safetensors'
    save_encoder(encoder, path)
    assert equal(models.clay_tiny_patch8(weights=path), encoder)
    assert equal(models.clay_tiny_patch8(weights=str(path)), encoder)
    theirs = reference.Encoder(0.0, 8, False, dim=192, depth=6, heads=4, dim_head=48, mlp_ratio=2)
    archive = Archive(path)
    theirs.load_state_dict(archive.read(archive.shapes), strict=True)


def test_safetensors_leaves_the_head(tmp_path: Path) -> None:
    classifier = small_encoder(num_classes=7, global_pool='map')
    save_encoder(classifier, tmp_path / 'encoder.safetensors')
    assert not [k for k in Archive(tmp_path / 'encoder.safetensors').shapes if 'head' in k or 'attn_pool' in k]
    with pytest.raises(ValueError, match=r'\.safetensors'):
        save_encoder(classifier, tmp_path / 'encoder.pt')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_of_the_model(tmp_path: Path, dtype: torch.dtype) -> None:
    """A half precision checkpoint becomes a float32 model, unless the model has another dtype."""
    mae = small_mae().to(dtype)
    path = released_file(tmp_path / 'half.ckpt', mae)
    with torch.device('meta'):
        empty = small_encoder()
    for target in (small_encoder(), empty):
        loaded = load_encoder(target, path)
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        assert torch.equal(loaded.cls_token, mae.encoder.cls_token.float())
    assert {p.dtype for p in load_encoder(small_encoder().to(dtype), path).parameters()} == {dtype}


@pytest.mark.parametrize('pool', ['token', 'avg', 'map'])
def test_new_head(tmp_path: Path, pool: str) -> None:
    """A head that the file does not hold is initialized."""
    mae = models.clay_mae_tiny_patch8()
    path = released_file(tmp_path / 'released.ckpt', mae)
    torch.manual_seed(0)
    model = models.clay_tiny_patch8(weights=path, num_classes=3, global_pool=pool, drop_path_rate=0.1)
    assert is_real(model)
    assert model.head.weight.std() > 0
    assert torch.equal(model.blocks[5].attn.qkv.weight, mae.encoder.blocks[5].attn.qkv.weight)
    model.eval()
    logits = model(torch.randn(2, 2, 16, 16), [0.65, 0.842], 1.0)
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()


def test_kept_head(released: tuple[Path, ClayMAE]) -> None:
    path, mae = released
    model = small_encoder(num_classes=3, global_pool='map')
    before = {k: v.clone() for k, v in model.state_dict().items() if k.startswith(('head', 'attn_pool'))}
    assert len(before) > 2
    load_encoder(model, path)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert torch.equal(model.cls_token, mae.encoder.cls_token)


# what is refused -----------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Tensor]], object]
_QKV = 'transformer.layers.1.0.to_qkv.weight'
CHANGES: dict[str, tuple[Change, str]] = {
    'missing': (lambda s: s.pop(f'model.encoder.{_QKV}'), rf"1 tensors are missing \['model\.encoder\.{_QKV}"),
    'unexpected': (
        lambda s: s.update({'model.encoder.extra': torch.ones(1)}),
        r"1 unexpected \['model\.encoder\.extra",
    ),
    'renamed': (
        lambda s: s.update({'model.encoder.cls': s.pop('model.encoder.cls_token')}),
        r'1 tensors are missing .*1 unexpected',
    ),
    'shape': (
        lambda s: s.update({f'model.encoder.{_QKV}': torch.ones(144, 47)}),
        rf'{_QKV} is \(144, 47\), the model expects \(144, 48\).* 48 wide and 2 deep',
    ),
    'transposed': (
        lambda s: s.update({f'model.encoder.{_QKV}': s[f'model.encoder.{_QKV}'].T}),
        r'is \(48, 144\), the model expects \(144, 48\)',
    ),
    'two encoders': (
        lambda s: s.update({k.replace('model.', 'ema.'): v for k, v in s.items() if 'encoder.' in k}),
        'holds 2 encoders',
    ),
    'no encoder': (
        lambda s: [s.pop(k) for k in list(s) if 'model.encoder.' in k],
        'holds no Clay encoder',
    ),
}


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('kind', ['encoder', 'autoencoder'])
def test_encoder_that_does_not_fit(tmp_path: Path, change: str, kind: str) -> None:
    """A clear error, and an unchanged model."""
    state = released_layout(small_mae())
    edit, match = CHANGES[change]
    edit(state)
    torch.save({'state_dict': state}, tmp_path / 'file.ckpt')
    model, load = (small_encoder(), load_encoder) if kind == 'encoder' else (small_mae(), load_mae)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=match):
        load(model, tmp_path / 'file.ckpt')
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ('edit', 'match'),
    [
        (lambda s: s.pop('model.decoder.mask_patch'), r"missing \['model\.decoder\.mask_patch"),
        (lambda s: s.update({'model.decoder.extra': torch.ones(1)}), r'unexpected'),
        (lambda s: s.update({'model.decoder.mask_patch': torch.ones(33)}), r'mask_patch is \(33,\)'),
        (lambda s: s.pop('model.proj.weight'), r"missing \['model\.proj\.weight"),
        (lambda s: s.update({'model.proj.weight': torch.ones(8, 48)}), r'proj\.weight is \(8, 48\)'),
        (lambda s: s.update({'model.stranger': torch.ones(1)}), r"unexpected tensors \['model\.stranger"),
        (lambda s: [s.pop(k) for k in list(s) if 'decoder' in k], 'only an encoder'),
    ],
)
def test_autoencoder_that_does_not_fit(tmp_path: Path, edit: Change, match: str) -> None:
    """Not even its encoder, which would fit, is loaded."""
    state = released_layout(small_mae())
    edit(state)
    torch.save({'state_dict': state}, tmp_path / 'file.ckpt')
    model = small_mae()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=match):
        load_mae(model, tmp_path / 'file.ckpt')
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ('value', 'dtype', 'match'),
    [
        (float('nan'), torch.float32, r'norm\.weight holds 1 values that are not finite'),
        (float('-inf'), torch.float16, r'norm\.weight holds 1 values that are not finite'),
        (1e300, torch.float64, r'norm\.weight holds 1 values that are not finite'),
        (1, torch.int32, r'norm\.weight is torch\.int32, the model expects torch\.float32'),
        (1, torch.complex64, r'norm\.weight is torch\.complex64'),
    ],
)
@pytest.mark.parametrize('suffix', ['.ckpt', '.safetensors'])
def test_values_that_are_no_weights(tmp_path: Path, value: float, dtype: torch.dtype, match: str, suffix: str) -> None:
    """Each output would be NaN, or other numbers than those of the model that was saved."""
    model = small_encoder()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state['norm.weight'] = state['norm.weight'].to(dtype)
    state['norm.weight'][3] = value
    path = tmp_path / f'weights{suffix}'
    if suffix == '.ckpt':
        torch.save({'state_dict': state}, path)
    else:
        safetensors.torch.save_file(state, path)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=match):
        load_encoder(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_encoder_alone_into_the_autoencoder(tmp_path: Path) -> None:
    save_encoder(small_encoder(), tmp_path / 'encoder.safetensors')
    with pytest.raises(CheckpointError, match=r'encoder alone.*clay_…_patch8\(weights=…\)'):
        load_mae(small_mae(), tmp_path / 'encoder.safetensors')


def test_code_in_a_released_layout(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f'mkdir {tmp_path}/run',)

    torch.save({'state_dict': released_layout(small_mae()), 'callbacks': Code()}, tmp_path / 'file.ckpt')
    with pytest.raises(CheckpointError, match='code'):
        load_encoder(small_encoder(), tmp_path / 'file.ckpt')
    assert not (tmp_path / 'run').exists()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match='No weights file at'):
        models.clay_tiny_patch8(weights=tmp_path / 'nowhere.ckpt')
    with pytest.raises(CheckpointError, match='No weights file at'):
        models.clay_mae_tiny_patch8(weights=str(tmp_path / 'nowhere.ckpt'), teacher='test_vit')


def test_not_clay(tmp_path: Path) -> None:
    torch.save(timm.create_model('test_vit').state_dict(), tmp_path / 'vit.pth')
    with pytest.raises(CheckpointError, match='holds no Clay encoder'):
        models.clay_tiny_patch8(weights=tmp_path / 'vit.pth')


@pytest.mark.parametrize(('size', 'width', 'depth'), [('tiny', 192, 6), ('small', 384, 6), ('base', 768, 12)])
def test_another_size_is_named(tmp_path: Path, size: str, width: int, depth: int) -> None:
    with torch.device('meta'):
        other = getattr(models, f'clay_{size}_patch8')()
    torch.save({'state_dict': {f'model.encoder.{k}': v for k, v in shape_only(other).items()}}, tmp_path / 'own.ckpt')
    with pytest.raises(CheckpointError, match=rf'{width} wide and {depth} deep, which is clay_{size}_patch8\.'):
        models.clay_large_patch8(weights=tmp_path / 'own.ckpt')


# the v1 model --------------------------------------------------------------------------------------------------------


def test_v1_into_large_is_named(tmp_path: Path) -> None:
    with torch.device('meta'):
        base = models.clay_mae_base_patch8()
    state = {f'model.encoder.{released_name(k)}': v for k, v in shape_only(base.encoder).items()}
    torch.save({'state_dict': state}, tmp_path / 'v1.ckpt')
    with pytest.raises(CheckpointError, match=r'768 wide and 12 deep, which is clay_base_patch8, or the v1 model'):
        models.clay_large_patch8(weights=tmp_path / 'v1.ckpt')


@pytest.mark.parametrize('load', [load_encoder, load_mae])
@pytest.mark.parametrize('by', ['teacher', 'hyper_parameters'])
def test_v1_is_refused_where_it_fits(tmp_path: Path, by: str, load: Callable[..., object]) -> None:
    """The base model has the v1 model's size: its SAM teacher tells them apart."""
    state = released_layout(small_mae())
    if by == 'teacher':
        state['model.teacher.blocks.0.attn.rel_pos_h'] = torch.ones(1)
    teacher = 'samvit_base_patch16.sa1b' if by == 'hyper_parameters' else 'unknown'
    torch.save({'state_dict': state, 'hyper_parameters': {'teacher': teacher}}, tmp_path / 'v1.ckpt')
    with pytest.raises(CheckpointError, match=r'is a v1 model of Clay \(made-with-clay/Clay-legacy\)'):
        load(small_encoder() if load is load_encoder else small_mae(), tmp_path / 'v1.ckpt')


def test_teacher_in_the_file_outweighs_its_name(tmp_path: Path) -> None:
    """The release's code has SAM as a default: a name left over from there does not make a v1 model."""
    mae = small_mae()
    state = released_layout(mae) | {'model.teacher.blocks.0.attn.qkv.weight': torch.ones(1)}
    torch.save({'state_dict': state, 'hyper_parameters': {'teacher': 'samvit_base_patch16'}}, tmp_path / 'file.ckpt')
    assert equal(load_encoder(small_encoder(), tmp_path / 'file.ckpt'), mae.encoder)


def test_teacher_with_computed_buffers(tmp_path: Path) -> None:
    """A teacher with buffers that no file holds cannot come from the file."""
    mae = small_mae()
    state = released_layout(mae) | {f'model.teacher.{k}': v for k, v in nn.Linear(2, 16).state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'file.ckpt')
    with torch.device('meta'):
        teacher = nn.Linear(2, 16)
        teacher.register_buffer('frequencies', torch.ones(3), persistent=False)
        teacher.num_features = 16
        decoder = ClayDecoder(encoder_dim=48, dim=32, depth=1, heads=2, dim_head=16, mlp_ratio=2)
        target = ClayMAE(small_encoder(), decoder, teacher)
    with pytest.raises(CheckpointError, match=r"\['frequencies'\].*give teacher= the module"):
        load_mae(target, tmp_path / 'file.ckpt')
