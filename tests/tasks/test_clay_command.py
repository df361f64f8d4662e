# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""`torchgeo fit`, then `validate`, `test` and `predict` with the checkpoint that it left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_batches import TINY, TinyDataModule, labelled, mask, masked, trainer

from torchgeo_clay.tasks import ClayClassification


class Scenes(TinyDataModule):
    """A datamodule that a YAML can name."""

    def __init__(self, of: str = 'masks') -> None:
        if of == 'labels':
            super().__init__(labelled, (3, 16, 16))
        elif of == 'changes':
            super().__init__(lambda i: {'mask': mask((1, 16, 16), 2, i)}, (2, 3, 16, 16))
        else:
            super().__init__(masked((20, 12)), (3, 20, 12))


def config(folder: Path, task: str, of: str, **options: Any) -> str:
    path = folder / 'task.yaml'  # config.yaml is what the command writes there
    contents = {
        'model': {'class_path': f'torchgeo_clay.tasks.{task}', 'init_args': options},
        'data': {'class_path': f'{Scenes.__module__}.Scenes', 'init_args': {'of': of}},
        'trainer': {
            'accelerator': 'cpu', 'max_epochs': 1, 'default_root_dir': str(folder), 'enable_progress_bar': False,
            'enable_model_summary': False, 'logger': False,
            'callbacks': [{
                'class_path': 'lightning.pytorch.callbacks.ModelCheckpoint',
                'init_args': {'dirpath': str(folder / 'run'), 'filename': 'best'},
            }],
        },
    }  # fmt: skip
    path.write_text(yaml.safe_dump(contents))
    return str(path)


@pytest.mark.parametrize(
    ('task', 'of', 'options'),
    [
        ('ClayClassification', 'labels', {'model': TINY, 'num_classes': 3, 'lora': {'r': 2}, 'pooling': 'mean'}),
        (
            'ClaySemanticSegmentation',
            'masks',
            {'model': 'segformer', 'backbone': TINY, 'num_classes': 3, 'trainable_blocks': 1},
        ),
        ('ClayChangeDetection', 'changes', {'model': 'segformer', 'backbone': TINY, 'layer_decay': 0.8}),
    ],
)
def test_the_command(
    torchgeo_command: Callable[..., None], tmp_path: Path, task: str, of: str, options: dict[str, Any]
) -> None:
    path = config(tmp_path, task, of, **options)
    torchgeo_command('fit', '--config', path)
    checkpoint = tmp_path / 'run/best.ckpt'
    saved = torch.load(checkpoint, weights_only=True)
    assert saved['hyper_parameters']['model'] == options['model']
    for stage in ('validate', 'test', 'predict') if of == 'labels' else ('test', 'predict'):
        torchgeo_command(stage, '--config', path, '--ckpt_path', checkpoint)


def test_the_command_takes_a_checkpoint_of_a_script(torchgeo_command: Callable[..., None], tmp_path: Path) -> None:
    """Whose arguments it reads from the checkpoint, so none may be there that the task has not."""
    run = trainer()
    run.fit(ClayClassification(TINY, num_classes=3, lr=0.01), Scenes('labels'))
    run.save_checkpoint(tmp_path / 'own.ckpt')
    path = config(tmp_path, 'ClayClassification', 'labels', model=TINY, num_classes=3)
    torchgeo_command('test', '--config', path, '--ckpt_path', tmp_path / 'own.ckpt')
