"""Downloads against a server that cuts, stalls and lies: what has the final name is whole, always."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.segmenters import weights as checkpoints
from sa3d_nerfstudio.segmenters.base import SegmenterOptions
from sa3d_nerfstudio.segmenters.download import fetch
from sa3d_nerfstudio.segmenters.registry import make_segmenter
from sa3d_nerfstudio.segmenters.weights import CHECKPOINT_VARIABLE, NO_DOWNLOAD_VARIABLE, find_checkpoint
from tests.tiny_sam import save_tiny_sam

CONTENT = bytes(hashlib.sha256(str(number).encode()).digest()[0] for number in range(300_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PUBLISHED = dict(checkpoints.OFFICIAL)


class Server(http.server.ThreadingHTTPServer):
    """Serves one file, with the faults that a test asks for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.cuts: list[int] = []
        """Send only so many bytes of a response and hang up; one entry per request."""
        self.stalls: list[int] = []
        """Send only so many bytes and then nothing; likewise."""
        self.statuses: list[int] = []
        """Answer with these errors first."""
        self.ranges = True
        """Whether it knows of ranges."""
        self.lying_range = False
        """Whether it answers a range with another one."""
        self.says_length = True
        self.released = threading.Event()
        """Ends the stalls."""
        self.requests: list[str | None] = []
        """The range of each request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        if self.server.statuses:
            self.send_error(self.server.statuses.pop(0))
            return
        content, start = self.server.content, 0
        if wanted and self.server.ranges:
            match = re.fullmatch(r"bytes=(\d+)-", wanted)
            assert match
            start = int(match.group(1))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            said = start + 7 if self.server.lying_range else start
            self.send_header("Content-Range", f"bytes {said}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        if self.server.says_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cuts:
            body = body[: self.server.cuts.pop(0)]
        stall = self.server.stalls.pop(0) if self.server.stalls else None
        self.wfile.write(body[:stall])
        self.wfile.flush()
        if stall is not None:
            self.server.released.wait()

    def log_message(self, format: str, *args: object) -> None:
        """Tests need no log."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def get(server: Server, destination: Path, sha256: str = SHA256, timeout: float = 60) -> None:
    fetch(server.url, destination, sha256, timeout=timeout, pause=0)


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.pth"


def partial(destination: Path) -> Path:
    return destination.with_name("weights.pth.part")


def test_whole(server: Server, destination: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    fetch(server.url, destination, SHA256, lambda here, total: seen.append((here, total)))
    assert destination.read_bytes() == CONTENT
    assert not partial(destination).exists()
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    get(server, destination)
    assert server.requests == [None], "what is there is not fetched again"


@pytest.mark.parametrize("cut", [0, 1, 4096, len(CONTENT) // 2, len(CONTENT) - 1])
def test_cut_and_continued(server: Server, destination: Path, cut: int) -> None:
    server.cuts = [cut]
    get(server, destination)
    assert destination.read_bytes() == CONTENT
    assert server.requests == [None, f"bytes={cut}-" if cut else None]


@pytest.mark.parametrize("cut", [0, 1, 5000, len(CONTENT) - 1])
def test_cut_for_good_leaves_nothing_that_looks_whole(server: Server, destination: Path, cut: int) -> None:
    server.cuts = [cut] + [0] * 20
    with pytest.raises(SA3DError, match="cannot be fetched"):
        get(server, destination)
    assert not destination.exists()
    if cut:
        assert partial(destination).read_bytes() == CONTENT[:cut]
    server.cuts = []
    server.requests.clear()
    get(server, destination)
    assert destination.read_bytes() == CONTENT
    assert server.requests == [f"bytes={cut}-" if cut else None], "the next call goes on from there"


def test_many_cuts_are_no_failure_while_something_comes(server: Server, destination: Path) -> None:
    server.cuts = [20_000] * 14
    get(server, destination)
    assert destination.read_bytes() == CONTENT
    assert len(server.requests) == 15


def test_stall(server: Server, destination: Path) -> None:
    server.stalls = [100_000]
    get(server, destination, timeout=1)
    assert destination.read_bytes() == CONTENT


def test_stalls_for_good(server: Server, destination: Path) -> None:
    server.stalls = [1000] + [0] * 20
    with pytest.raises(SA3DError, match=r"timed out.*0\.0 MB that came are kept"):
        get(server, destination, timeout=0.1)
    assert not destination.exists()
    assert partial(destination).stat().st_size == 1000


@pytest.mark.parametrize("ranges", [True, False])
def test_wrong_bytes(server: Server, destination: Path, ranges: bool) -> None:
    server.content = CONTENT[:1000] + b"?" + CONTENT[1001:]
    server.ranges = ranges
    with pytest.raises(SA3DError, match="is not what is expected there"):
        get(server, destination)
    assert not destination.exists()
    assert not partial(destination).exists(), "wrong bytes must not be continued"


@pytest.mark.parametrize("left", [b"wrong" * 100, b"wrong" * 100_000, CONTENT, CONTENT + b"more"])
def test_leftovers_of_another_download(server: Server, destination: Path, left: bytes) -> None:
    """Whatever a partial file holds, the end is the right file."""
    destination.parent.mkdir()
    partial(destination).write_bytes(left)
    get(server, destination)
    assert destination.read_bytes() == CONTENT


def test_server_without_ranges(server: Server, destination: Path) -> None:
    server.ranges = False
    server.cuts = [100_000]
    get(server, destination)
    assert destination.read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-"]


def test_server_that_sends_another_range(server: Server, destination: Path) -> None:
    server.lying_range = True
    server.cuts = [100_000]
    get(server, destination)
    assert destination.read_bytes() == CONTENT


def test_server_that_says_no_length(server: Server, destination: Path) -> None:
    server.says_length = False
    get(server, destination)
    assert destination.read_bytes() == CONTENT
    destination.unlink()
    server.cuts = [100_000]
    with pytest.raises(SA3DError, match="is not what is expected there"):
        get(server, destination)
    assert not destination.exists()


def test_passing_server_errors(server: Server, destination: Path) -> None:
    server.statuses = [503, 500]
    get(server, destination)
    assert destination.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404])
def test_lasting_errors_are_told_at_once(server: Server, destination: Path, status: int) -> None:
    server.statuses = [status] * 20
    with pytest.raises(SA3DError, match=f"HTTP {status}"):
        get(server, destination)
    assert len(server.requests) == 1


def test_nobody_answers(server: Server, destination: Path) -> None:
    url = server.url
    server.server_close()
    with pytest.raises(SA3DError, match="cannot be fetched"):
        fetch(url, destination, SHA256, timeout=60, pause=0)
    assert not destination.exists()


def test_no_place(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SA3DError, match=r"cannot write to .*TORCH_HOME"):
        get(server, tmp_path / "file" / "weights.pth")


def test_two_at_a_time(server: Server, destination: Path) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            get(server, destination)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert destination.read_bytes() == CONTENT
    assert server.requests == [None]


@pytest.fixture
def hub(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's cache in a fresh place, and the tests' server in the place of the official one."""
    server.content = save_tiny_sam(tmp_path / "tiny.pth").read_bytes()
    monkeypatch.delenv(CHECKPOINT_VARIABLE, raising=False)
    monkeypatch.delenv(NO_DOWNLOAD_VARIABLE, raising=False)
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path / "hub"))
    served = {"folder": server.url.removesuffix("weights.pth"), "sha256": hashlib.sha256(server.content).hexdigest()}
    for size, weights in list(checkpoints.OFFICIAL.items()):
        monkeypatch.setitem(checkpoints.OFFICIAL, size, dataclasses.replace(weights, **served))
    return tmp_path / "hub" / "checkpoints" / "sam_vit_b_01ec64.pth"


def test_first_use_fetches_and_the_next_does_not(server: Server, hub: Path, capfd: pytest.CaptureFixture) -> None:
    assert find_checkpoint(None, "vit-b") == hub
    assert hub.read_bytes() == server.content
    assert str(hub) in capfd.readouterr().err.replace("\n", "")
    assert find_checkpoint(None, "vit-b", download=False) == hub
    assert len(server.requests) == 1
    with pytest.raises(SA3DError, match="32 wide and 2 deep"):  # it got as far as to look into the file
        make_segmenter("sam-vit-b")


def test_each_size_has_its_file(server: Server, hub: Path, capfd: pytest.CaptureFixture) -> None:
    """What is served is the same here; what it is called, and checked by, is not."""
    assert find_checkpoint(None, "vit-t") == hub.with_name("mobile_sam.pt")
    assert "weights of mobile-sam to" in capfd.readouterr().err
    assert len({weights.sha256 for weights in PUBLISHED.values()}) == len(PUBLISHED) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", weights.sha256) for weights in PUBLISHED.values())
    assert PUBLISHED["vit-t"].address.startswith("https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/")
    assert PUBLISHED["vit-t"].address.endswith("/weights/mobile_sam.pt")


@pytest.mark.parametrize("how", ["option", "variable"])
def test_downloads_can_be_forbidden(server: Server, hub: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "variable":
        monkeypatch.setenv(NO_DOWNLOAD_VARIABLE, "1")
    with pytest.raises(SA3DError, match=r"--pipeline\.sam-checkpoint"):
        make_segmenter("sam-vit-b", SegmenterOptions(sam_download=how != "option"))
    assert not server.requests
    assert not hub.exists()


def test_failure_says_what_else_can_be_done(server: Server, hub: Path) -> None:
    server.statuses = [404]
    with pytest.raises(SA3DError) as caught:
        make_segmenter("sam-vit-b")
    sentence = str(caught.value)
    for part in ("HTTP 404", "sam_vit_b_01ec64.pth", "--pipeline.sam-checkpoint", "--pipeline.segmenter grabcut"):
        assert part in sentence
    assert "\n" not in sentence


def test_a_named_checkpoint_is_never_replaced_by_a_download(server: Server, hub: Path, tmp_path: Path) -> None:
    with pytest.raises(SA3DError, match="there is no file"):
        find_checkpoint(tmp_path / "gone.pth", "vit-b")
    assert not server.requests


def test_any_size_has_no_published_file(server: Server, hub: Path) -> None:
    with pytest.raises(SA3DError, match="needs its weights"):
        find_checkpoint(None, None)
    assert not server.requests
