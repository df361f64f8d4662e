# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""From scenes to embeddings by Python, by the command line and by `torchgeo predict`: one pipeline."""

from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import torch

import torchgeo_clay
from torchgeo_clay.__main__ import main
from torchgeo_clay.inference import SkippedScenesError
from torchgeo_clay.models import clay_tiny_patch8, save_encoder
from torchgeo_clay.writers import OutputError

WriteScene = Callable[..., Path]


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    save_encoder(clay_tiny_patch8(), tmp_path / 'tiny.safetensors')
    return str(tmp_path / 'tiny.safetensors')


def test_three_doors_give_the_same_rows(
    write_scene: WriteScene,
    weights: str,
    tmp_path: Path,
    torchgeo_command: Callable[..., None],
    repo_root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scenes = [write_scene(f'in/{name}.tif', 40, 70, seed=i) for i, name in enumerate('ab')]
    options = {'model': 'clay_tiny_patch8', 'chip': 32, 'stride': 24}
    table = torchgeo_clay.embed(tmp_path / 'in', weights, **options)
    assert isinstance(table, gpd.GeoDataFrame)
    assert set(table) == {'embedding', 'geometry', 'datetime', 'gsd', 'sensor', 'source', 'valid', 'row', 'col'}
    assert (len(table), table.crs.to_epsg(), len(table['embedding'][0])) == (2 * 2 * 3, 4326, 192)
    torchgeo_command(
        'predict', f'--config={repo_root}/configs/clay_embed.yaml', f'--model.weights={weights}',
        '--model.model=clay_tiny_patch8', f'--data.paths={tmp_path}/in', '--data.chip=32', '--data.stride=24',
        '--trainer.accelerator=cpu', '--trainer.enable_progress_bar=false',
        f'--trainer.default_root_dir={tmp_path}', f'--trainer.callbacks.out={tmp_path}/predict.parquet',
    )  # fmt: skip
    arguments = ['--model=clay_tiny_patch8', '--chip=32', '--stride=24', f'--weights={weights}']
    main(['embed', *map(str, scenes), *arguments, f'--out={tmp_path}/command.parquet'])
    assert 'command.parquet: 12 rows' in capsys.readouterr().out
    for door in ('predict', 'command'):
        found = gpd.read_parquet(tmp_path / f'{door}.parquet')
        assert found.drop(columns='embedding').equals(table.drop(columns='embedding'))
        np.testing.assert_array_equal(np.stack(found['embedding']), np.stack(table['embedding']))


def test_with_out_a_run_continues_and_another_is_refused(write_scene: WriteScene, weights: str, tmp_path: Path) -> None:
    scene, out = write_scene(), tmp_path / 'out/e.parquet'
    options = {'model': 'clay_tiny_patch8', 'out': out}
    first = torchgeo_clay.embed(scene, weights, chip=32, **options)
    stamp = out.stat().st_mtime_ns
    assert torchgeo_clay.embed(scene, weights, chip=32, **options).equals(first)
    assert out.stat().st_mtime_ns == stamp
    with pytest.raises(OutputError, match='chip is 32 there, 16 here'):
        torchgeo_clay.embed(scene, weights, chip=16, **options)
    assert len(torchgeo_clay.embed(scene, weights, chip=16, overwrite=True, **options)) > len(first)
    with pytest.raises(ValueError, match=r'ends in \.parquet'):
        torchgeo_clay.embed(scene, weights, model='clay_tiny_patch8', out=tmp_path / 'e.csv')


def test_a_row_per_patch(write_scene: WriteScene, weights: str) -> None:
    patches = torchgeo_clay.embed(write_scene(), weights, model='clay_tiny_patch8', chip=32, pooling='patches')
    assert sorted(zip(patches['row'], patches['col'], strict=True)) == [
        (row, col) for row in range(0, 70, 8) for col in range(0, 90, 8)
    ]


def test_a_scene_without_data_is_named(
    write_scene: WriteScene, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scene('in/a.tif')
    write_scene('in/blank.tif', pixels=np.zeros((4, 40, 40), np.uint8))
    lines: list[str] = []
    monkeypatch.setattr('torchgeo_clay.inference.embedding.rank_zero_info', lines.append)
    table = torchgeo_clay.embed(tmp_path / 'in', weights, model='clay_tiny_patch8', chip=32)
    assert {Path(source).name for source in table['source']} == {'a.tif'}
    assert '1 scene without a row' in lines[0]
    assert 'blank.tif' in lines[0]
    assert '9 rows' in lines[1]
    assert 'embeddings.parquet' not in lines[1]  # a temporary file


def test_a_scene_whose_embeddings_are_not_finite_is_left_out(
    write_scene: WriteScene, weights: str, tmp_path: Path
) -> None:
    """One pixel that is no measurement, which a scan of samples need not see."""
    write_scene('in/a.tif')
    pixels = np.random.default_rng(1).integers(1, 255, (4, 70, 90)).astype(np.float32)
    pixels[2, 33, 77] = 1e25
    write_scene('in/b.tif', pixels=pixels)
    out = tmp_path / 'e.parquet'
    options = {'model': 'clay_tiny_patch8', 'chip': 32, 'sensor': 'naip'}
    with pytest.warns(UserWarning, match=r'(?s)1 file could not be used.*b\.tif: .* up to \S+e\+23 standard'):
        table = torchgeo_clay.embed(tmp_path / 'in', weights, out=out, **options)
    assert {Path(source).name for source in table['source']} == {'a.tif'}
    assert np.isfinite(np.stack(table['embedding'])).all()
    with pytest.warns(UserWarning, match=r'b\.tif'):  # of a finished table, too
        assert torchgeo_clay.embed(tmp_path / 'in', weights, out=out, **options).equals(table)


def test_options_of_the_scenes(write_scene: WriteScene, weights: str) -> None:
    options = {'model': 'clay_tiny_patch8', 'chip': 32}
    plain = torchgeo_clay.embed(write_scene(), weights, **options)
    given = torchgeo_clay.embed(write_scene(), weights, gsd=2.0, time='2021-07-01T12:00:00Z', batch_size=3, **options)
    assert (set(plain['gsd']), set(given['gsd'])) == ({1.0}, {2.0})
    assert set(given['datetime'].astype(str)) == {'2021-07-01 12:00:00+00:00'}
    with pytest.raises(TypeError, match='no argument gds'):
        torchgeo_clay.embed('scene.tif', weights, gds=1, **options)


def test_files_that_are_no_scene(
    write_scene: WriteScene, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene('in/a.tif')
    (tmp_path / 'in/broken.tif').write_bytes(b'II*\x00no')
    options = {'model': 'clay_tiny_patch8', 'chip': 32}
    with pytest.warns(UserWarning, match=r'(?s)1 file could not be used.*broken\.tif'):
        table = torchgeo_clay.embed(tmp_path / 'in', weights, **options)
    assert len(table) == 9
    with pytest.raises(SkippedScenesError, match=r'broken\.tif'):
        torchgeo_clay.embed(tmp_path / 'in', weights, on_skipped='raise', **options)
    command = ['embed', f'{tmp_path}/in', '--model=clay_tiny_patch8', '--chip=32', f'--weights={weights}']
    with pytest.raises(SystemExit) as ended:
        main([*command, f'--out={tmp_path}/e.parquet'])
    assert ended.value.code == 1
    assert 'broken.tif' in capsys.readouterr().err
    assert len(gpd.read_parquet(tmp_path / 'e.parquet')) == 9
    with pytest.raises(ValueError, match=r'(?s)found none to use.*broken\.tif'):
        torchgeo_clay.embed(tmp_path / 'in/broken.tif', weights, **options)


def test_mistakes(write_scene: WriteScene, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match='weights: false'):
        torchgeo_clay.embed('scene.tif', None)
    with pytest.raises(SystemExit):
        main(['embed', 'scene.tif'])
    assert 'expected --out TABLE.parquet' in capsys.readouterr().err
    empty = write_scene(pixels=np.zeros((4, 40, 40), np.uint8))
    with pytest.raises(ValueError, match='no pixel holds data'):
        torchgeo_clay.embed(empty, False, model='clay_tiny_patch8', chip=32)
