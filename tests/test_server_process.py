"""The server as a process and behind real sockets: its life, hostile requests, full queues, clients that hang up."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from conftest import Command, Sample
from test_server_app import HOSTILE

from ditic_stream.doors.server import answers, app, run
from ditic_stream.doors.server.app import Settings, make_app
from ditic_stream.doors.server.served import Catalog


@contextlib.contextmanager
def running(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`ditic-stream` with these arguments and --json; (process, what it printed when it was ready)."""
    command = [sys.executable, "-m", "ditic_stream", *map(str, arguments), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process, json.loads(line)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_serve_tells_its_address_answers_and_ends_in_good_order(sample: Sample, number: signal.Signals) -> None:
    with running("serve", sample.archive, "--port", "0", "--threads", "1") as (process, said):
        assert said["archives"] == {"scene": f"{said['url']}scene/"}
        answer = httpx.get(f"{said['url']}healthz")
        assert answer.status_code == 200 and "server" not in answer.headers
        if number is signal.SIGINT:
            assert httpx.get(f"{said['url']}scene/image_files/8/0_0.png", timeout=120).status_code == 200
        process.send_signal(number)
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors


def test_view_opens_on_the_page_and_finds_the_source(sample: Sample) -> None:
    with running("view", sample.archive, "--no-browser", "--threads", "1") as (process, said):
        assert said["url"].endswith("/scene/")
        facts = httpx.get(f"{said['url']}info", timeout=120).json()
        assert facts["original"]["name"] == "scene.tif" and facts["page_format"] == "png"
        closed = httpx.get(f"{said['url']}iiif/info.json")
        assert "access-control-allow-origin" not in closed.headers
        assert httpx.get(f"{said['url']}info", headers={"Host": "evil.example"}).status_code == 404
        process.send_signal(signal.SIGINT)
        assert "original: " in process.communicate(timeout=90)[1]


def test_view_shows_the_archive_alone_when_what_lies_beside_it_is_no_scene(sample: Sample, tmp_path: Path) -> None:
    shutil.copytree(sample.archive, tmp_path / "scene.ditic")
    (tmp_path / "scene.tif").write_bytes(bytes(sample.scene.stat().st_size))
    with running("view", tmp_path / "scene.ditic", "--no-browser", "--threads", "1") as (process, said):
        assert httpx.get(f"{said['url']}info", timeout=120).json()["original"] is None
        process.send_signal(signal.SIGINT)
        assert "is not shown beside it" in process.communicate(timeout=90)[1]


def test_a_body_does_not_wait_until_its_head_is_confirmed() -> None:
    with run.listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_a_port_in_use_is_a_sentence(sample: Sample, ditic: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = ditic("serve", sample.archive, "--port", str(taken.getsockname()[1]))
    assert done.code == 1 and "--port" in done.err and done.err.count("\n") == 1


def test_without_its_libraries_serving_names_the_extra(sample: Sample, ditic: Command, tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError('no', name='starlette')\n")
    done = ditic("serve", sample.archive, PYTHONPATH=str(tmp_path))
    assert done.code == 1 and "pip install 'ditic-stream[serve]'" in done.err


def test_an_archive_that_is_none_is_told_before_anything_is_served(ditic: Command, tmp_path: Path) -> None:
    done = ditic("serve", tmp_path / "none.ditic")
    assert done.code == 1 and done.err.startswith("ditic-stream: source:")


# --- in this process, so that pictures can be held up


@contextlib.contextmanager
def served(archive: Path, **settings: Any) -> Iterator[tuple[str, Any]]:
    """A real uvicorn on loopback over `archive`; (address, the Server behind it)."""
    with Catalog() as catalog, run.listen("127.0.0.1", 0) as listener:
        catalog.add(archive)
        made = make_app(catalog, Settings(**{"threads": 1, **settings}))
        server = uvicorn.Server(run.configured(made))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", made.state.server
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Pictures are finished only once this is set."""
    go = threading.Event()
    finish = app.encode

    def wait(*arguments: Any) -> bytes:
        assert go.wait(120)
        return finish(*arguments)

    monkeypatch.setattr(app, "encode", wait)
    yield go
    go.set()


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def raw(address: str, request: bytes, *, read: bool = True) -> bytes:
    """Send bytes as they are, since clients tidy addresses up; the answer, or nothing when the client hangs up."""
    place = urlsplit(address)
    with socket.create_connection((place.hostname, place.port), timeout=120) as link:
        link.sendall(request)
        if not read:
            return b""
        answer = b""
        while piece := link.recv(65536):
            answer += piece
        return answer


def test_hostile_requests_over_a_bare_socket_reach_no_file(sample: Sample) -> None:
    targets = [
        *HOSTILE, "/..", "/../", "/../../../../etc/passwd", "http://127.0.0.1/../etc/passwd", "/scene/../zarr.json",
        "/./scene/info/../../../etc/passwd", "/%252e%252e/etc/passwd", "/\xff\xfe", "/scene/" + "a/" * 3000, "*",
        "/%ff%fe", "/scene/region?archive=../../etc&window=0,0,1,1&size=0,0",
    ]  # fmt: skip
    with served(sample.archive) as (address, _):
        for target in targets:
            line = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1")
            answer = raw(address, line)
            status = int(answer.split(b" ", 2)[1])
            assert status in (400, 404, 414, 431), (target, answer[:300])
            assert b"root:" not in answer and b"zarr_format" not in answer
        for junk in (
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"\0" * 500 + b"\r\n\r\n",
        ):
            raw(address, junk, read=False)
        assert httpx.get(f"{address}/healthz").json()["status"] == "ok"


def test_a_client_that_hangs_up_frees_its_slot(sample: Sample, held: threading.Event) -> None:
    with served(sample.archive) as (address, server):
        lines = [
            f"GET /scene/region?window={n},0,8,8 HTTP/1.1\r\nHost: x\r\n\r\n".encode() for n in range(4)
        ]  # fmt: skip
        place = urlsplit(address)
        links = [socket.create_connection((place.hostname, place.port)) for _ in lines]
        for link, line in zip(links, lines, strict=True):
            link.sendall(line)
        until(lambda: server.gate.running == 1 and server.gate.waiting == 3)
        for link in links:
            link.close()
        until(lambda: server.gate.waiting == 0 and server.gate.facts()["left"] == 4)
        held.set()
        until(lambda: server.gate.running == 0)
        assert httpx.get(f"{address}/scene/region?window=0,0,8,8", timeout=120).status_code == 200


def test_a_full_queue_answers_503_with_a_time_to_come_back(sample: Sample, held: threading.Event) -> None:
    with served(sample.archive, queue=2) as (address, server):
        results: list[httpx.Response] = []
        threads = [
            threading.Thread(
                target=lambda n=n: results.append(httpx.get(f"{address}/scene/region?window={n},0,8,8", timeout=120))
            )
            for n in range(3)
        ]
        for thread in threads:
            thread.start()
        until(lambda: server.gate.running == 1 and server.gate.waiting == 2)
        refused = httpx.get(f"{address}/scene/region?window=9,0,8,8", timeout=120)
        assert refused.status_code == 503 and 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["kind"] == "busy"
        assert httpx.get(f"{address}/healthz").json()["refused"] == 1  # health is answered however long the queue
        held.set()
        for thread in threads:
            thread.join()
        assert [one.status_code for one in results] == [200] * 3


def test_a_request_that_takes_too_long_answers_503(sample: Sample, held: threading.Event) -> None:
    with served(sample.archive, timeout=0.3) as (address, server):
        late = httpx.get(f"{address}/scene/region?window=0,0,8,8", timeout=120)
        assert late.status_code == 503 and "0.3 s" in late.json()["message"]
        held.set()
        until(lambda: server.gate.running == 0)


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: x", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /"]
)
def test_a_client_that_sends_no_whole_request_is_cut_off(
    sample: Sample, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(run, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(run, "IDLE_SECONDS", 1)
    with served(sample.archive) as (address, _):
        place = urlsplit(address)
        with socket.create_connection((place.hostname, place.port), timeout=120) as link:
            link.sendall(sent)
            answer = b""
            while piece := link.recv(65536):  # until the server closes: without a deadline, never
                answer += piece
        assert answer.count(b'"status":"ok"') == (1 if b"\r\n\r\n" in sent else 0)


def test_a_client_that_reads_nothing_is_let_go(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(app, "encode", lambda *arguments: bytes(2**24))  # more than sockets hold
    with served(sample.archive) as (address, server):
        place = urlsplit(address)
        with socket.socket() as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.connect((place.hostname, place.port))
            link.sendall(b"GET /scene/region?window=0,0,8,8 HTTP/1.1\r\nHost: x\r\n\r\n")
            until(lambda: server.outgoing.bytes > 0)
            until(lambda: server.outgoing.bytes == 0)
        assert httpx.get(f"{address}/healthz").status_code == 200
