# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Weights cast once are the weights that autocast casts each time."""

import torch

from torchgeo_clay.models import clay_tiny_patch8
from torchgeo_clay.sensors import get_sensor
from torchgeo_clay.tasks.embedding import cast_copy, cast_matmuls


def test_outputs_are_those_of_autocast() -> None:
    torch.manual_seed(0)
    model = clay_tiny_patch8().eval()
    folded, x = model.fold('naip'), torch.randn(2, len(get_sensor('naip')), 32, 32)
    plain = folded(x, 1.0)
    before = {k: v.clone() for k, v in folded.state_dict().items()}
    cast = model.fold('naip')
    cast_matmuls(cast.patch_embed, torch.bfloat16)
    cast.blocks = cast_copy(folded.blocks, torch.bfloat16)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        expected, found = folded(x, 1.0), cast(x, 1.0)
    assert torch.equal(found, expected)
    assert not torch.equal(found.float(), plain)  # autocast did something
    assert all(torch.equal(v, before[k]) for k, v in folded.state_dict().items())
    dtypes = {k: v.dtype for k, v in cast.state_dict().items()}
    assert dtypes['blocks.0.attn.qkv.weight'] == dtypes['patch_embed.proj.weight'] == torch.bfloat16
    assert dtypes['blocks.0.norm1.weight'] == dtypes['cls_token'] == torch.float32
