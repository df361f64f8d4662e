# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Names of classes in the table of a test, and its confusion matrix, against scikit-learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_batches as tiny
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch.utils.data import DataLoader, Dataset
from torchgeo.datamodules import NonGeoDataModule

from torchgeo_clay.tasks import ClayChangeDetection, ClayClassification, ClaySemanticSegmentation
from torchgeo_clay.tasks.classes import class_names

NAMES = ['forest', 'meadow', 'water']


class Named(Dataset[Any]):
    """Samples with the names of their classes, as many of TorchGeo's datasets have them."""

    def __init__(self, samples: list[Any], classes: list[str]) -> None:
        self.samples, self.classes = samples, classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


class Data(tiny.TinyDataModule):
    def setup(self, stage: str) -> None:
        self.test_dataset = Named(self.samples, NAMES)


def run(task: Any, data: Data, path: Path, **options: Any) -> dict[str, float]:
    (metrics,) = tiny.trainer(logger=CSVLogger(path), **options).test(task, data, verbose=False)
    return dict(metrics)


@pytest.mark.parametrize('kind', ['image', 'pixel'])
def test_the_table_names_classes_and_the_matrix_is_that_of_scikit_learn(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task: Any
    if kind == 'image':
        task, data = ClayClassification(tiny.TINY, num_classes=3), Data(tiny.labelled)
    else:
        task = ClaySemanticSegmentation('unet', tiny.TINY, num_classes=3, ignore_index=2)
        data = Data(tiny.masked())
    counted: list[Any] = []
    task._plot = lambda counts, plot=task._plot: counted.append(counts) or plot(counts)
    metrics = run(task, data, tmp_path)
    assert {f'test_ClasswiseAccuracy_{name}' for name in NAMES} <= set(metrics)
    task.eval()
    predicted, truth = [], []
    for batch in DataLoader(data.samples, batch_size=2):
        with torch.no_grad(), tiny.told(task, task.conditioning(batch)):
            predicted.append(task(batch['image']).argmax(1).flatten())
        truth.append(batch['label' if kind == 'image' else 'mask'].flatten())
    labels, found = torch.cat(truth), torch.cat(predicted)
    known = labels != 2 if kind == 'pixel' else labels >= 0
    expected = confusion_matrix(labels[known], found[known], labels=[0, 1, 2])
    assert np.array_equal(counted[0].numpy(), expected)
    (picture,) = tmp_path.rglob('confusion_matrix.png')
    assert np.asarray(Image.open(picture)).std() > 10
    assert task.test_confusion.confmat.sum() == 0  # the next test starts over


def test_labels_of_the_task_come_first(tmp_path: Path) -> None:
    task = ClayClassification(tiny.TINY, num_classes=3, labels=['a', 'b', 'c'])
    assert 'test_ClasswiseRecall_b' in run(task, Data(tiny.labelled), tmp_path)


def test_names_are_kept_in_checkpoints(tmp_path: Path) -> None:
    """So that predictions bear them, too."""
    task = ClayClassification(tiny.TINY, num_classes=3)
    trainer = tiny.trainer(logger=False)
    trainer.test(task, Data(tiny.labelled), verbose=False)
    trainer.save_checkpoint(tmp_path / 'last.ckpt')
    assert not list(tmp_path.rglob('*.png'))  # no logger, no pictures
    again = ClayClassification.load_from_checkpoint(tmp_path / 'last.ckpt', map_location='cpu')
    assert again.hparams['labels'] == NAMES


def test_two_classes_labels_and_dates(tmp_path: Path) -> None:
    """Kinds of matrix that torchmetrics has for them, in a logger that takes figures."""
    binary = ClayChangeDetection('unet', tiny.TINY)
    changes = Data(lambda i: {'mask': tiny.mask((32, 32), 2, i)}, (2, 3, 32, 32))
    multi = ClayClassification(tiny.TINY, task='multilabel', num_labels=3, loss='bce')
    labels = Data(lambda i: {'label': torch.tensor([1, 0, i % 2])})
    for i, (task, data) in enumerate(((binary, changes), (multi, labels))):
        logger = TensorBoardLogger(tmp_path / str(i))
        tags: list[str] = []
        logger.experiment.add_figure = lambda tag, *_, tags=tags, **__: tags.append(tag)
        tiny.trainer(logger=logger).test(task, data, verbose=False)
        assert tags == ['confusion_matrix']
    assert len(list(tmp_path.rglob('confusion_matrix.png'))) == 2


@pytest.mark.filterwarnings('ignore:Experiment logs directory')
def test_a_matrix_that_cannot_be_written_ends_no_test(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version=0)
    Path(logger.log_dir, 'confusion_matrix.png').mkdir(parents=True)  # a folder of the picture's name
    task = ClayClassification(tiny.TINY, num_classes=3)
    with pytest.warns(UserWarning, match=r'confusion_matrix\.png: the picture could not be written'):
        (metrics,) = tiny.trainer(logger=logger).test(task, Data(tiny.labelled), verbose=False)
    assert 'test_loss' in metrics


def test_names_that_do_not_fit_are_not_taken() -> None:
    data = NonGeoDataModule(Named, 1)
    assert class_names(None, 2) is None
    for names, count in ((['a', 'b', 'c'], 2), (['a', 'a'], 2)):
        data.test_dataset = Named([], names)
        assert class_names(data, count) is None
    data.test_dataset = torch.utils.data.Subset(Named([], ['a', 'b']), [])
    assert class_names(data, 2) == ['a', 'b']
