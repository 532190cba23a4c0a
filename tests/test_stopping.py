"""Ctrl-C and SIGTERM lose no step of a training run."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
from pathlib import Path

import imagecodecs
import pytest
import torch
from pictures import landscape

from ditic_stream.training.stopping import stopping


def command(folder: Path, out: str) -> list[str]:
    return [
        sys.executable, "-m", "ditic_stream", "train", str(folder / "scenes"), "--model", "tiny", "--steps", "30",
        "--batch", "2", "--threads", "2", "--report", "3600", "--licence", "CC0-1.0", "--out", str(folder / out),
    ]  # fmt: skip


def stopped(folder: Path, number: signal.Signals) -> None:
    """Stop a run after its first steps."""
    (folder / "scenes").mkdir()
    for seed in range(3):
        (folder / f"scenes/{seed}.png").write_bytes(imagecodecs.png_encode(landscape(300, 300, seed)))
    with subprocess.Popen(command(folder, "stopped"), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "crops/s" in line:  # said after a step
                break
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == 130 and "what was trained is kept; run the same command again" in said


def test_a_run_that_is_stopped_keeps_its_last_step(tmp_path: Path) -> None:
    stopped(tmp_path, signal.SIGINT)
    kept = torch.load(tmp_path / "stopped/checkpoint.pt", weights_only=True)
    assert 0 < kept["steps"] < 30


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, number: signal.Signals) -> None:
    stopped(tmp_path, number)
    digests = []
    for out in ("stopped", "unbroken"):
        subprocess.run(command(tmp_path, out), check=True, capture_output=True)
        digests.append(hashlib.sha256((tmp_path / out / "weights.safetensors").read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_a_second_signal_does_not_wait_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stopping() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_signal_that_was_ignored_stays_so() -> None:
    """As Ctrl-C is by what a script runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping() as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_elsewhere_than_in_the_main_thread_nothing_is_heard() -> None:
    heard = []

    def run() -> None:
        with stopping() as asked:
            heard.append(asked())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert heard == [False]
