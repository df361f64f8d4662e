# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Clay v1.5 for TorchGeo: importing it registers the models in ``torchgeo.models`` and timm.

Names are imported when first used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from torchgeo_clay.models.registry import register

if TYPE_CHECKING:
    from torchgeo_clay.evaluation.search import similar
    from torchgeo_clay.inference.embedding import embed
    from torchgeo_clay.inference.maps import map_scenes
    from torchgeo_clay.models import (
        ClayLarge8_Weights,
        clay_base_patch8,
        clay_large_patch8,
        clay_mae_base_patch8,
        clay_mae_large_patch8,
        clay_mae_small_patch8,
        clay_mae_tiny_patch8,
        clay_small_patch8,
        clay_tiny_patch8,
    )
    from torchgeo_clay.sensors import SENSORS

__all__ = (
    'SENSORS',
    'ClayLarge8_Weights',
    '__version__',
    'callbacks',
    'clay_base_patch8',
    'clay_large_patch8',
    'clay_mae_base_patch8',
    'clay_mae_large_patch8',
    'clay_mae_small_patch8',
    'clay_mae_tiny_patch8',
    'clay_small_patch8',
    'clay_tiny_patch8',
    'conditioning',
    'datamodules',
    'datasets',
    'embed',
    'evaluation',
    'inference',
    'map_scenes',
    'models',
    'sensors',
    'similar',
    'simulator',
    'tasks',
    'writers',
)

__version__ = version('torchgeo-clay')

register()


def __getattr__(name: str) -> Any:
    """Import a name of ``__all__`` when it is first used."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    rooms = {'embed': 'inference', 'map_scenes': 'inference', 'similar': 'evaluation', 'SENSORS': 'sensors'}
    if name in rooms or name.lower().startswith('clay'):
        found = getattr(import_module(f'{__name__}.{rooms.get(name, "models")}'), name)
    else:
        found = import_module(f'{__name__}.{name}')
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the names that are not imported yet, too."""
    return sorted({*globals(), *__all__})
