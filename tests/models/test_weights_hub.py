# Copyright (c) torchgeo_clay contributors. Licensed under the MIT License.

"""Fetching the released weights, from a server on this machine that speaks the Hub's protocol.

The pinned file is stood in for by one of a tiny model, under the same repository, name and commit.
"""

import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from torch import nn

from torchgeo_clay import models
from torchgeo_clay.models import CheckpointError, ClayLarge8_Weights
from torchgeo_clay.models.weights import Archive, released_name, resolve_weights

WEIGHTS = ClayLarge8_Weights.CLAY_V1_5
REVISION = '2033cf5c59afbd8fef655008d0b0a9d6861951c8'
URL = f'/made-with-clay/Clay/resolve/{REVISION}/v1.5/clay-v1.5.ckpt'


class Hub(http.server.ThreadingHTTPServer):
    """A Hub of one file, kept in large-file storage: metadata at its address, bytes where that redirects to.

    Attributes:
        content: what it sends.
        digest: the SHA-256 it claims.
        claims: headers in place of the right ones.
        status: of its answers at the file's address.
        cut: number of bytes after which it closes the connection.
        requests: what it was asked.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.content = content
        self.digest = hashlib.sha256(content).hexdigest()
        self.linked = True
        self.claims: dict[str, str] = {}
        self.status = 302
        self.cut: int | None = None
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""

    def do_HEAD(self) -> None:
        if not self.path.startswith('/api/'):  # the client's own affairs
            self.server.requests.append(f'{self.command} {self.path}')
        if self.path.startswith('/cdn/'):
            self.send_file()
        elif self.path != URL:
            self.answer(404, {'X-Error-Code': 'EntryNotFound'})
        elif self.server.status != 302:
            self.answer(self.server.status, self.server.claims)
        else:
            linked = {'X-Linked-Etag': f'"{self.server.digest}"', 'X-Linked-Size': str(len(self.server.content))}
            self.answer(
                302,
                {
                    'X-Repo-Commit': REVISION,
                    'Accept-Ranges': 'bytes',
                    'ETag': f'"{"0" * 40}"',
                    # another host, as in life: a client follows that for the bytes only
                    'Location': f'http://localhost:{self.server.server_port}/cdn/{self.server.digest}',
                    **(linked if self.server.linked else {}),
                    **self.server.claims,
                },
            )

    do_GET = do_HEAD

    def answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', '0')
        self.end_headers()

    def send_file(self) -> None:
        content = self.server.content
        start = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        first = int(start[1]) if start else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header('Content-Range', f'bytes {first}-{len(content) - 1}/{len(content)}')
        self.send_header('Content-Length', str(len(content) - first))
        self.send_header('ETag', f'"{self.server.digest}"')
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(content[first : self.server.cut])


@pytest.fixture(scope='module')
def source() -> models.Clay:
    return models.clay_tiny_patch8()


@pytest.fixture(scope='module')
def content(source: models.Clay, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp('release') / 'clay.ckpt'
    torch.save({'state_dict': {f'model.encoder.{released_name(k)}': v for k, v in source.state_dict().items()}}, path)
    return path.read_bytes()


@pytest.fixture
def hub(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running Hub, an empty cache, and the release declared to be of the tiny model."""
    server = Hub(content)
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    point_at(server.endpoint, monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_DISABLE_XET', True)
    monkeypatch.setattr('huggingface_hub.utils._http.time.sleep', lambda _: None)  # between its attempts
    monkeypatch.setitem(WEIGHTS.meta, 'model', 'clay_tiny_patch8')
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what HF_ENDPOINT does when huggingface_hub is imported."""
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
    monkeypatch.setattr(constants, 'ENDPOINT', endpoint)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)


def cached_files(tmp_path: Path) -> list[Path]:
    """Files of the cache, whole or in part, without its tags, locks and notes of missing files."""
    return [p for p in (tmp_path / 'cache').rglob('*') if p.is_file() and {'blobs', 'snapshots'} & set(p.parts)]


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


# the pin -------------------------------------------------------------------------------------------------------------


def test_pinned() -> None:
    assert WEIGHTS.url.endswith(URL)
    assert WEIGHTS.meta['revision'] == REVISION
    assert WEIGHTS.meta['license'] == 'Apache-2.0'
    assert WEIGHTS.meta['model'] == 'clay_large_patch8'
    with torch.device('meta'):
        assert WEIGHTS.meta['num_params'] == sum(p.numel() for p in models.clay_large_patch8().parameters())
    assert torch.equal(WEIGHTS.transforms(torch.ones(2)), torch.ones(2))


# what goes well ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('weights', [True, WEIGHTS, 'CLAY_V1_5', 'ClayLarge8_Weights.CLAY_V1_5'])
def test_fetched_then_offline(
    hub: Hub, source: models.Clay, monkeypatch: pytest.MonkeyPatch, weights: ClayLarge8_Weights | str | bool
) -> None:
    assert equal(models.clay_tiny_patch8(weights=weights), source)
    assert hub.requests[0] == f'HEAD {URL}'
    assert {request.split()[1] for request in hub.requests} == {URL, f'/cdn/{hub.digest}'}
    count = len(hub.requests)
    offline(monkeypatch)
    assert equal(models.clay_tiny_patch8(weights=weights, num_classes=2).blocks, source.blocks)
    assert len(hub.requests) == count


def test_cached_asks_nobody(hub: Hub) -> None:
    """The commit is pinned, so a cached file needs no request."""
    path = WEIGHTS.fetch()
    hub.requests.clear()
    assert WEIGHTS.fetch() == path
    assert hub.requests == []


def test_another_cache(hub: Hub, tmp_path: Path) -> None:
    path = WEIGHTS.fetch(cache_dir=tmp_path / 'mine')
    assert path.is_relative_to(tmp_path / 'mine')
    assert WEIGHTS.fetch(cache_dir=str(tmp_path / 'mine')) == path
    assert cached_files(tmp_path) == []


def test_resumed(hub: Hub, source: models.Clay) -> None:
    """A broken download resumes where it broke, and the whole file is verified."""
    hub.cut = 1_000_000

    class Once(Handler):
        def send_file(self) -> None:
            super().send_file()
            if self.command == 'GET':
                self.server.cut = None

    hub.RequestHandlerClass = Once
    assert equal(models.clay_tiny_patch8(weights=WEIGHTS), source)
    assert hub.requests.count(f'GET /cdn/{hub.digest}') == 2


def test_timm_pretrained(hub: Hub, source: models.Clay, tmp_path: Path) -> None:
    model = timm.create_model('clay_tiny_patch8', pretrained=True, num_classes=3, cache_dir=tmp_path / 'mine')
    assert equal(model.blocks, source.blocks)
    assert not any(p.is_meta for p in model.parameters())
    assert list((tmp_path / 'mine').rglob('*.ckpt'))
    features = timm.create_model(
        'clay_tiny_patch8',
        pretrained=True,
        features_only=True,
        feature_cls='getter',
        out_indices=[5],
        cache_dir=tmp_path / 'mine',
    )
    assert equal(features.model.blocks, source.blocks)


def test_state_dict_for_torchgeo(hub: Hub, source: models.Clay) -> None:
    """TorchGeo's tasks load the weights this way, with arguments meant for downloads by URL."""
    state = WEIGHTS.get_state_dict(progress=True, check_hash=True, weights_only=True)
    assert state.keys() == source.state_dict().keys()
    assert all(torch.equal(v, state[k]) for k, v in source.state_dict().items())


@pytest.mark.slow
def test_environment(hub: Hub, tmp_path: Path) -> None:
    """A process of its own: importing asks nobody; HF_ENDPOINT and HF_HOME are respected."""
    program = (
        'import torchgeo_clay\n'
        'from torchgeo_clay.models import ClayLarge8_Weights\n'
        'print(ClayLarge8_Weights.CLAY_V1_5.url)\n'
        'input()\n'
        'print(ClayLarge8_Weights.CLAY_V1_5.fetch())\n'
    )
    environment = os.environ | {
        'HF_ENDPOINT': hub.endpoint,
        'HF_HOME': str(tmp_path / 'home'),
        'HF_HUB_DISABLE_XET': '1',
        'OMP_NUM_THREADS': '1',
    }
    for name in ('HF_HUB_OFFLINE', 'HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE'):
        environment.pop(name, None)
    with subprocess.Popen(
        [sys.executable, '-c', program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().strip() == hub.endpoint + URL
        assert hub.requests == []
        output, _ = process.communicate('\n')
    assert process.returncode == 0
    assert Path(output.strip()).is_relative_to(tmp_path / 'home')
    assert Path(output.strip()).read_bytes() == hub.content


# what goes wrong -----------------------------------------------------------------------------------------------------


def test_wrong_digest(hub: Hub, tmp_path: Path, source: models.Clay) -> None:
    """A damaged file is an error and leaves the cache; a second try gets the right one."""
    right = hub.content
    hub.content = right[:-1] + bytes([right[-1] ^ 1])
    with pytest.raises(CheckpointError, match=rf'{hub.digest}, the file received has .*removed from the cache'):
        models.clay_tiny_patch8(weights=WEIGHTS)
    assert cached_files(tmp_path) == []
    hub.content = right
    assert equal(models.clay_tiny_patch8(weights=WEIGHTS), source)


def test_no_digest(hub: Hub, tmp_path: Path) -> None:
    """A mirror that hides the SHA-256 is refused."""
    hub.linked = False
    with pytest.raises(CheckpointError, match='SHA-256'):
        WEIGHTS.fetch()
    assert cached_files(tmp_path) == []


def test_digest_where_the_cache_has_no_links(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: files do not have the names of their digests, so the Hub is asked for it."""
    monkeypatch.setattr('huggingface_hub.file_download.are_symlinks_supported', lambda *_, **__: False)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_DISABLE_SYMLINKS_WARNING', True)
    path = WEIGHTS.fetch()
    assert path.name == 'clay-v1.5.ckpt'
    assert not path.is_symlink()
    assert Archive(path).shapes
    path.unlink()
    hub.content = hub.content[:-1] + b'?'
    with pytest.raises(CheckpointError, match='removed from the cache'):
        WEIGHTS.fetch()
    assert not path.exists()


@pytest.mark.parametrize('header', ['X-Linked-Etag', 'X-Xet-Hash', 'X-Repo-Commit'])
@pytest.mark.parametrize('status', [302, 404])
def test_hostile_headers_touch_no_file(hub: Hub, tmp_path: Path, header: str, status: int) -> None:
    """huggingface_hub makes paths of these headers: a Hub could link, write or remove any file of the user."""
    victim = tmp_path / 'thesis'
    victim.write_text('years of work')
    before = sorted(tmp_path.rglob('*'))
    hub.status = status
    hub.claims = {header: '../' * 12 + str(victim).lstrip('/'), 'X-Error-Code': 'EntryNotFound'}
    if header == 'X-Xet-Hash':
        hub.claims['Link'] = f'<{hub.endpoint}/auth>; rel="xet-auth"'
    with pytest.raises(CheckpointError):
        WEIGHTS.fetch()
    assert victim.read_text() == 'years of work'
    assert [path for path in sorted(tmp_path.rglob('*')) if 'cache' not in path.parts[-1:] and path not in before] == []


def test_another_commit(hub: Hub, tmp_path: Path) -> None:
    hub.claims = {'X-Repo-Commit': 'f' * 40}
    with pytest.raises(CheckpointError, match=f'commit .{"f" * 40}.; expected {REVISION}'):
        WEIGHTS.fetch()
    assert cached_files(tmp_path) == []


@pytest.mark.parametrize('address', ['http://192.0.2.1/clay.ckpt', 'ftp://127.0.0.1/clay.ckpt', 'http://hub.example/'])
def test_redirect_without_tls(hub: Hub, tmp_path: Path, address: str) -> None:
    hub.claims = {'Location': address}
    with pytest.raises(CheckpointError, match=r'would come from|could not be fetched.*ftp'):
        WEIGHTS.fetch()
    assert cached_files(tmp_path) == []


def test_mirror_without_tls(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at('http://192.0.2.1', monkeypatch)
    with pytest.raises(CheckpointError, match=r'http://192\.0\.2\.1: expected https.*HF_ENDPOINT'):
        WEIGHTS.fetch()


def test_the_users_client_is_kept(hub: Hub) -> None:
    """A client with a proxy or certificates of its own is used, checked, and restored."""
    made: list[object] = []

    def factory() -> object:
        made.append(huggingface_hub.utils._http.default_client_factory())
        return made[-1]

    before = huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY
    huggingface_hub.set_client_factory(factory)
    try:
        WEIGHTS.fetch()
        assert made
        assert huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY is factory
    finally:
        huggingface_hub.set_client_factory(before)


def test_damaged_file_in_the_cache(hub: Hub) -> None:
    """The next run would find it again, so the message names what to delete."""
    path = WEIGHTS.fetch()
    path.resolve().write_bytes(hub.content[:1000])
    with pytest.raises(CheckpointError, match=rf'delete {re.escape(str(path.resolve()))} and {re.escape(str(path))}'):
        models.clay_tiny_patch8(weights=WEIGHTS)
    path.resolve().unlink()
    path.unlink()
    models.clay_tiny_patch8(weights=WEIGHTS)


def test_offline_without_a_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    with pytest.raises(
        CheckpointError, match=r'clay-v1\.5\.ckpt of made-with-clay/Clay could not be fetched.*Offline\?'
    ):
        models.clay_tiny_patch8(weights=WEIGHTS)
    assert hub.requests == []


@pytest.mark.parametrize('status', [401, 403, 404, 429, 500, 503])
def test_status(hub: Hub, tmp_path: Path, status: int) -> None:
    hub.status = status
    with pytest.raises(CheckpointError, match=rf'could not be fetched.*{status}'):
        WEIGHTS.fetch()
    assert cached_files(tmp_path) == []


def test_file_that_is_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTS.meta, 'filename', 'v1.5/other.ckpt')
    with pytest.raises(CheckpointError, match=r'could not be fetched.*404'):
        WEIGHTS.fetch()


def test_connection_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at('http://127.0.0.1:9', monkeypatch)
    with pytest.raises(CheckpointError, match='could not be fetched'):
        WEIGHTS.fetch()


def test_connection_that_breaks_every_time(hub: Hub, tmp_path: Path) -> None:
    hub.cut = 1000
    with pytest.raises(CheckpointError, match='could not be fetched'):
        WEIGHTS.fetch()
    assert not list((tmp_path / 'cache').rglob('*.ckpt'))


def test_not_a_hub(hub: Hub, tmp_path: Path) -> None:
    """A captive portal, say, which answers everything with a page."""
    hub.status = 200
    with pytest.raises(CheckpointError, match='could not be fetched'):
        WEIGHTS.fetch()
    assert cached_files(tmp_path) == []


def test_not_a_checkpoint(hub: Hub) -> None:
    hub.content = b'<html>' * 100
    hub.digest = hashlib.sha256(hub.content).hexdigest()
    with pytest.raises(CheckpointError, match='not a whole PyTorch checkpoint'):
        models.clay_tiny_patch8(weights=WEIGHTS)


# names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('builder', [models.clay_tiny_patch8, models.clay_mae_base_patch8])
def test_weights_of_another_size(builder: type) -> None:
    with pytest.raises(CheckpointError, match='only the large model is released'):
        builder(weights=WEIGHTS)


def test_unknown_name() -> None:
    with pytest.raises(CheckpointError, match=r'No weights .*CLAY_V2.*ClayLarge8_Weights\.CLAY_V1_5'):
        models.clay_large_patch8(weights='ClayLarge8_Weights.CLAY_V2')


@pytest.mark.parametrize('weights', ['https://example.org/clay.ckpt', 's3://bucket/clay.ckpt'])
def test_addresses_are_no_paths(weights: str) -> None:
    with pytest.raises(CheckpointError, match=f'{weights}.*expected the path of a file'):
        models.clay_tiny_patch8(weights=weights)


def test_paths_are_paths(tmp_path: Path) -> None:
    assert resolve_weights(str(tmp_path / 'a.ckpt'), 'clay_tiny_patch8') == tmp_path / 'a.ckpt'
    assert resolve_weights(tmp_path, 'clay_tiny_patch8') == tmp_path
    assert resolve_weights(None, 'clay_tiny_patch8') is resolve_weights(False, 'clay_tiny_patch8') is None
