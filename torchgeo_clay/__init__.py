# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay v1.5 for TorchGeo: importing it makes the models known to ``torchgeo.models`` and timm."""

from importlib.metadata import version

from torchgeo_clay.models.registry import register

__all__ = (
    '__version__',
    'callbacks',
    'conditioning',
    'datamodules',
    'datasets',
    'evaluation',
    'inference',
    'models',
    'sensors',
    'simulator',
    'tasks',
    'writers',
)

__version__ = version('torchgeo-clay')

register()
