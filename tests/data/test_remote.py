"""Shards behind URLs are read by ranges; commands run only with permission."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from autoselect.config import ConfigError
from autoselect.data import storage
from autoselect.data.faults import BadSample
from autoselect.data.index import sidecar
from autoselect.data.shards import Sample, ShardSet
from tests.data.loaders import make_loader
from tests.data.shard_samples import make_image


class Server(ThreadingHTTPServer):
    """Serves a folder; understands ranges unless told otherwise; notes what it sent."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.ranges = True
        self.failures = 0
        self.sent: list[tuple[str, int]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(send=False)

    def do_GET(self) -> None:
        self.answer(send=True)

    def answer(self, send: bool) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if send and self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
            return
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        first, last, status = 0, len(data) - 1, 200
        if self.server.ranges and (wanted := self.headers.get("Range")):
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last, status = int(start), min(int(end or last), last), 206
            if first > last:
                self.send_error(416)
                return
        body = data[first : last + 1]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if send:
            self.server.sent.append((path.name, len(body)))
            self.wfile.write(body)


@pytest.fixture
def server(shard_folder: Path) -> Iterator[Server]:
    server = Server(shard_folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_RETRY_SECONDS", (0.0, 0.0, 0.0))


@pytest.fixture
def memory(shard_folder: Path) -> Iterator[str]:
    """Put the shards without their indexes into fsspec's memory file system."""
    system = fsspec.filesystem("memory")
    for shard in shard_folder.glob("*.tar"):
        system.pipe_file(f"/shards/{shard.name}", shard.read_bytes())
    yield "memory://shards/"
    system.rm("/shards", recursive=True)


PATTERN = "/shard-{000000..000002}.tar"


def test_http_equals_local_and_reads_only_what_is_due(server: Server, open_set) -> None:
    local, remote = open_set(), ShardSet.open(server.url + PATTERN)
    assert remote.digest == local.digest
    server.sent.clear()
    for number in (0, 33, 49):
        far, near = remote[number], local[number]
        assert (far.images, far.record) == (near.images, near.record)
    assert sum(size for name, size in server.sent if name.endswith(".tar")) < 3 * 3000
    assert sum(name.endswith(".tar") for name, _ in server.sent) == 3


def ids_and_sizes(samples: list[Sample]) -> list[tuple[int, tuple[int, int]]]:
    return [(sample.sample_id, sample.pictures[0].size) for sample in samples]


def test_worker_processes_read_over_http(server: Server, open_set) -> None:
    remote = ShardSet.open(server.url + PATTERN)
    _ = remote[0]
    expected = list(make_loader(open_set(), ids_and_sizes, 0, 5, stop_step=12))
    assert list(make_loader(remote, ids_and_sizes, 0, 5, stop_step=12, workers=2)) == expected


def test_http_without_indexes_needs_a_folder_for_them(
    server: Server, open_set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = open_set().digest
    for index in server.folder.glob("*.jsonl"):
        index.unlink()
    with pytest.raises(ConfigError, match="set AUTOSELECT_INDEX_FOLDER to a folder"):
        ShardSet.open(server.url + PATTERN)
    remote = ShardSet.open(server.url + PATTERN, index_folder=str(tmp_path / "indexes"))
    assert remote.digest == digest
    monkeypatch.setenv("AUTOSELECT_INDEX_FOLDER", str(tmp_path / "others"))
    assert ShardSet.open(server.url + PATTERN).digest == digest
    assert len(list((tmp_path / "others").iterdir())) == 3


def test_a_server_that_fails_while_shards_are_indexed_is_named(
    server: Server, tmp_path: Path, quick_retries
) -> None:
    for index in server.folder.glob("*.jsonl"):
        index.unlink()
    server.failures = 100
    with pytest.raises(ConfigError, match=r"shard=http.*cannot be read"):
        ShardSet.open(server.url + PATTERN, index_folder=str(tmp_path / "indexes"))


def test_a_passing_failure_is_tried_again(server: Server, open_set, quick_retries) -> None:
    remote = ShardSet.open(server.url + PATTERN)
    server.failures = 2
    assert remote[7].images == open_set()[7].images
    server.failures = 100
    with pytest.raises(ConfigError, match="shard=http.*cannot be read any more: .*bytes"):
        _ = remote[8]


def test_a_server_that_ignores_ranges_is_refused(server: Server) -> None:
    remote = ShardSet.open(server.url + PATTERN)
    server.ranges = False
    with pytest.raises(ConfigError, match="ignores range requests"):
        _ = remote[3]


def test_a_cut_remote_shard_is_named(server: Server, quick_retries) -> None:
    remote = ShardSet.open(server.url + PATTERN)
    start = remote.locate(45)[2][0].start
    shard = server.folder / "shard-000002.tar"
    shard.write_bytes(shard.read_bytes()[: start + 700])
    for number in (45, 46):
        with pytest.raises(BadSample) as caught:
            _ = remote[number]
        assert (caught.value.fault.kind, caught.value.fault.key) == ("truncated", f"{number:06d}")
    assert remote[44].images == (make_image(44),)


def test_missing_remote_shards_are_named(server: Server, memory: str) -> None:
    with pytest.raises(ConfigError, match="none.tar"):
        ShardSet.open(server.url + "/none.tar")
    with pytest.raises(ConfigError, match="matches no shard"):
        ShardSet.open(memory + "x*.tar")
    with pytest.raises(ConfigError, match="nosuch"):
        ShardSet.open("nosuch://a/b.tar")


def test_memory_folders_are_indexed_in_place(memory: str, open_set) -> None:
    local = open_set()
    for paths in (memory, memory + "*.tar", memory + "shard-{000000..000002}.tar"):
        assert ShardSet.open(paths).digest == local.digest
    system = fsspec.filesystem("memory")
    assert len(system.glob("/shards/*.index.jsonl")) == 3
    assert ShardSet.open(memory)[21].images == local[21].images


def test_pipes_are_refused_unless_allowed(shard_folder: Path, tmp_path: Path) -> None:
    shard, trace = shard_folder / "shard-000000.tar", tmp_path / "trace"
    command = f"pipe:echo ran >> {trace}; cat {shard}"
    with pytest.raises(ConfigError, match="would run a shell command"):
        ShardSet.open(command)
    assert not trace.exists()
    with pytest.raises(ConfigError, match="give --index-folder"):
        ShardSet.open(command, allow_pipe=True)
    for _ in range(2):
        piped = ShardSet.open(command, allow_pipe=True, index_folder=str(tmp_path / "kept"))
        assert piped.digest == ShardSet.open(str(shard)).digest
    assert trace.read_text() == "ran\n"


def test_a_failing_pipe_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="failed"):
        ShardSet.open(
            "pipe:echo half; exit 3", allow_pipe=True, index_folder=str(tmp_path / "kept")
        )
    assert list((tmp_path / "kept").iterdir()) == []


def test_indexes_of_equal_names_do_not_collide() -> None:
    assert sidecar("s3://a/x.tar", "f") != sidecar("s3://b/x.tar", "f")
