# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Check of labels against the number of classes, before a loss on a device stops at an assertion that names neither."""

from __future__ import annotations

from torch import Tensor

__all__ = ('check_labels',)


def check_labels(target: Tensor, key: str, num_classes: int | None, ignore_index: int | None) -> None:
    """Raise for labels that are not classes.

    Args:
        target: labels, of any shape, on the host.
        key: of the batch, ``label`` or ``mask``.
        num_classes: K; labels are 0 to K-1. None for unknown, which checks nothing.
        ignore_index: a label that is allowed too.

    Raises:
        ValueError: naming the first such label.
    """
    if num_classes is None or target.numel() == 0:
        return
    low, high = (int(v) for v in target.aminmax())
    if low >= 0 and high < num_classes:
        return
    wrong = (target < 0) | (target >= num_classes)
    if ignore_index is not None:
        wrong &= target != ignore_index
    if wrong.any():
        value, share = target[wrong][0].item(), wrong.float().mean().item()
        ignored = 'no ignore_index' if ignore_index is None else f'ignore_index={ignore_index}'
        raise ValueError(
            f'{key}: found the label {value} ({share:.1%} of them are out of range), expected 0 to {num_classes - 1} '
            f'for num_classes={num_classes} and {ignored}. Give num_classes: {int(high) + 1} if they are classes, '
            f'ignore_index: {value} if they mean no data, or number the classes from 0.'
        )
