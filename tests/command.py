"""`ditic-stream` in a process of its own, without waiting for imports each time.

A server imports what the command imports and forks itself for every command: what runs is a process as users
start it, with its own streams, environment, signals and exit code, but torch and the rest are there already.  What
is to be shown of the start itself has to be run by `fresh`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

LIMIT = 300.0
"""Seconds after which a command that has not ended is ended, and the test fails."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def fresh(*arguments: str | Path, timeout: float = LIMIT, **variables: str) -> Done:
    """Run the command in a new interpreter."""
    command = [sys.executable, "-W", "error::UserWarning", "-m", "ditic_stream", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **variables}, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


class Forks:
    """The server; call it as `fresh`.  Close it to end it."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.server = subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", "-c", SERVER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def __call__(self, *arguments: str | Path, timeout: float = LIMIT, **variables: str) -> Done:
        if any(name.startswith("PYTHON") for name in variables):  # they speak to an interpreter that starts
            return fresh(*arguments, timeout=timeout, **variables)
        out, err = (Path(self.folder.name, name) for name in ("out", "err"))
        asked = {"arguments": [str(one) for one in arguments], "out": str(out), "err": str(err), "cwd": os.getcwd()}
        asked["environment"] = {**os.environ, **variables}
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        child = int(self.server.stdout.readline())
        if not select.select([self.server.stdout], [], [], timeout)[0]:
            os.killpg(child, signal.SIGKILL)
            self.server.stdout.readline()
            raise AssertionError(f"ditic-stream {arguments} did not end in {timeout} s: {err.read_text()}")
        return Done(int(self.server.stdout.readline()), out.read_text(), err.read_text())

    def close(self) -> None:
        """End the server."""
        assert self.server.stdin and self.server.stdout
        self.server.stdin.close()
        self.server.wait(30)
        self.server.stdout.close()
        self.folder.cleanup()


SERVER = """
import json, os, sys, traceback
import numpy, torch, zarr, tifffile, imagecodecs, typer
import ditic_stream.cli, ditic_stream.compression, ditic_stream.regions, ditic_stream.compare, ditic_stream.verify
from ditic_stream.__main__ import main

def run(asked):
    os.setpgid(0, 0)
    for number, name in ((1, asked["out"]), (2, asked["err"])):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["ditic-stream", *asked["arguments"]]
    code = 1
    try:
        main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    # As an interpreter does on its way out; without it, processes and temporary files would stay.
    import atexit, multiprocessing.util
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    child = os.fork()
    if not child:
        run(json.loads(line))
    print(child, flush=True)
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
