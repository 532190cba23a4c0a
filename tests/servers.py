"""Real servers on loopback that tests of remote archives talk to, and that write down what they were asked.

`Folder` serves a folder over HTTP with ranges and ETags, and can be told to misbehave; `object_store` is moto's S3.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass(frozen=True)
class Request:
    """One request as the server saw it.  `at`: when it came; `until`: when it was answered; `sent`: bytes of body."""

    verb: str
    name: str
    range: str | None
    status: int
    sent: int
    at: float
    until: float


class Folder:
    """Serves the files below `root`.  The attributes may be set while it runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[Request] = []
        self.ranges = True
        """False: answers 200 with the whole file, whatever range was asked for."""
        self.suffixes = True
        """False: answers 400 to a range that counts from the end, as some servers do."""
        self.etags = True
        self.drop = 0
        """Connections to close in the middle of the body, without a word."""
        self.busy = 0
        """Requests to answer with 503."""
        self.refuse = 0
        """A status to answer everything with."""
        self.delay = 0.0
        """Seconds each answer takes."""
        self.garble: Callable[[bytes], bytes] | None = None
        """What is sent in place of a range."""
        self.token: str | None = None
        """What the query string has to be."""
        folder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # headers and body are two writes: the second would wait 40 ms for an ACK

            def do_GET(self) -> None:
                folder._answer(self, body=True)

            def do_HEAD(self) -> None:
                folder._answer(self, body=False)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def sent(self) -> int:
        """Bytes of all bodies."""
        return sum(request.sent for request in self.requests)

    def rounds(self) -> int:
        """The fewest moments such that each request was under way at one: requests that follow one another, not those
        that run beside one another."""
        count, until = 0, 0.0
        for request in sorted(self.requests, key=lambda one: one.until):
            if request.at > until:
                count, until = count + 1, request.until
        return count

    def clear(self) -> None:
        self.requests.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _take(self, name: str) -> bool:
        """One of what `name` counts down, if any is left."""
        with self._lock:
            left = getattr(self, name)
            setattr(self, name, max(left - 1, 0))
            return bool(left)

    def _answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        began = time.monotonic()
        path, _, query = handler.path.partition("?")
        name, asked = unquote(path).lstrip("/"), handler.headers.get("Range")
        time.sleep(self.delay)
        place = self.root / name
        data, status, headers = b"", 404, {}
        if self.refuse:
            status = self.refuse
        elif self.token is not None and query != self.token:
            status = 403
        elif self._take("busy"):
            status = 503
        elif place.is_file():
            found = place.stat()
            tag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
            if self.etags:
                headers["ETag"] = tag
            wanted = handler.headers.get("If-Match")
            if wanted is not None and self.etags and wanted != tag:
                status = 412
            else:
                status, data = self._part(place, found.st_size, asked, headers)
        else:
            data = b"nothing here"
        if self.garble is not None and status == 206:
            data = self.garble(data)
        cut = body and data and self._take("drop")
        sent = data[: len(data) // 2] if cut else data
        # Before the answer goes out: who has it may look at once.
        self.requests.append(
            Request(handler.command, name, asked, status, len(sent) if body else 0, began, time.monotonic())
        )
        handler.send_response(status)
        for header, value in headers.items():
            handler.send_header(header, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if body:
            handler.wfile.write(sent)
            handler.wfile.flush()
        if cut:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)

    def _part(self, place: Path, size: int, asked: str | None, headers: dict[str, str]) -> tuple[int, bytes]:
        headers["Last-Modified"] = "Mon, 23 Nov 2026 10:00:00 GMT"
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
        if found is None or not self.ranges:
            return 200, place.read_bytes()
        first, last = found.groups()
        if not first:
            if not self.suffixes:
                return 400, b""
            start, end = max(size - int(last), 0), size
        else:
            start, end = int(first), min(int(last) + 1 if last else size, size)
        headers["Accept-Ranges"] = "bytes"
        if start >= end:
            headers["Content-Range"] = f"bytes */{size}"
            return 416, b""
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        with place.open("rb") as file:
            file.seek(start)
            return 206, file.read(end - start)


@contextmanager
def serving(root: Path) -> Iterator[Folder]:
    """Serve a folder over HTTP for as long as the context lasts."""
    folder = Folder(root)
    try:
        yield folder
    finally:
        folder.close()


class ObjectStore:
    """moto's S3 with one bucket, `bucket`.  `requests`: what it was asked, as "GET /bucket/name"."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.requests: list[str] = []

    def put(self, folder: Path, prefix: str) -> None:
        """Copy the files below a folder, or one file, to below `prefix`."""
        files = [folder] if folder.is_file() else [path for path in folder.rglob("*") if path.is_file()]
        for file in files:
            name = prefix if file == folder else f"{prefix}/{file.relative_to(folder).as_posix()}"
            request = urllib.request.Request(f"{self.endpoint}/bucket/{name}", data=file.read_bytes(), method="PUT")
            request.add_header("Content-Type", "application/octet-stream")
            urllib.request.urlopen(request, timeout=30).close()
        self.requests.clear()


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A real S3 API on loopback; the environment says how to get there for as long as the context lasts."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    log = logging.getLogger("werkzeug")
    level = log.level
    log.setLevel(logging.CRITICAL)
    server.start()
    host, port = server.get_host_and_port()
    store = ObjectStore(f"http://{host}:{port}")
    answer = server._server.app

    def counted(environ: dict[str, str], start: Callable[..., object]) -> object:
        store.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        return answer(environ, start)

    server._server.app = counted
    names = {
        "AWS_ENDPOINT_URL": store.endpoint, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        urllib.request.urlopen(urllib.request.Request(f"{store.endpoint}/bucket", method="PUT"), timeout=30).close()
        yield store
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        log.setLevel(level)
        server.stop()
