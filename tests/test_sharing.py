"""Shared work: done once while it is wanted, forgotten oldest first, tried again after it failed."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from ditic_stream._sharing import SharedWork


def work(limit: int = 100) -> SharedWork[str, bytes]:
    return SharedWork(limit=limit, size=len)


def test_threads_that_want_the_same_at_once_begin_it_once_and_get_one_value() -> None:
    kept, begun, gate = work(), [], threading.Barrier(8)
    first: list[Future[bytes]] = []

    def begin(future: Future[bytes]) -> None:
        begun.append(1)
        first.append(future)

    def ask(_: int) -> Future[bytes]:
        gate.wait()
        return kept.get("tile", begin)

    with ThreadPoolExecutor(8) as pool:
        futures = list(pool.map(ask, range(8)))
    assert len(begun) == 1
    first[0].set_result(b"pixels")
    assert {id(future.result()) for future in futures} == {id(futures[0].result())}


def test_the_value_used_longest_ago_goes_when_the_bytes_exceed_the_limit() -> None:
    kept, begun = work(limit=20), []

    def get(name: str) -> bytes:
        def begin(future: Future[bytes]) -> None:
            begun.append(name)
            future.set_result(name.encode() * 10)

        return kept.get(name, begin).result()

    for name in "abacab":
        assert get(name) == name.encode() * 10
        assert kept.nbytes <= 20
    assert begun == ["a", "b", "c", "b"]


def test_a_value_larger_than_the_limit_reaches_those_who_asked_and_is_not_kept() -> None:
    kept = work(limit=3)
    assert kept.get("a", lambda future: future.set_result(b"1234")).result() == b"1234"
    assert not kept.has("a")
    assert kept.nbytes == 0


def test_work_that_failed_fails_for_all_who_wait_and_is_tried_again() -> None:
    kept, waiting = work(), []
    one = kept.get("a", waiting.append)
    other = kept.get("a", lambda future: pytest.fail("begun twice"))
    waiting[0].set_exception(OSError("a lens cap"))
    for future in (one, other):
        with pytest.raises(OSError, match="lens cap"):
            future.result()
    assert kept.get("a", lambda future: future.set_result(b"well")).result() == b"well"


def test_a_beginning_that_raises_leaves_nothing_behind() -> None:
    kept = work()
    with pytest.raises(KeyboardInterrupt):
        kept.get("a", lambda future: (_ for _ in ()).throw(KeyboardInterrupt))
    assert not kept.has("a")


def test_what_is_cleared_is_forgotten_even_when_it_ends_later() -> None:
    kept, waiting = work(), []
    future = kept.get("a", waiting.append)
    kept.clear()
    waiting[0].set_result(b"late")
    assert future.result() == b"late"
    assert (kept.has("a"), kept.nbytes) == (False, 0)
