# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay's tasks, for `torchgeo fit|validate|test|predict`."""

from torchgeo_clay.tasks.pretraining import ClayPretraining

__all__ = ('ClayPretraining',)
