# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""What the shared fixtures promise."""

import os
import socket
from types import ModuleType

import pytest
import torch


def test_reference_leaves_the_process_as_it_was(reference: ModuleType) -> None:
    assert reference.__name__ == 'src.model'
    assert torch.get_float32_matmul_precision() == 'highest'
    assert 'TORCH_CUDNN_V8_API_DISABLED' not in os.environ


def test_only_loopback_is_reached() -> None:
    with socket.create_server(('127.0.0.1', 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
    with socket.socket() as client, pytest.raises(ConnectionRefusedError, match='without the mark `network`'):
        client.connect(('192.0.2.1', 80))
