"""The gate of the server: fair, bounded, in time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ditic_stream.doors.server.gate import Busy, Gate, Ticket


def with_gate(scenario: Callable[[Gate], Any], **settings: Any) -> Any:
    """Run a coroutine of a gate in a loop of its own."""

    async def run() -> Any:
        gate = Gate(**{"threads": 1, "timeout": 10.0, **settings})
        try:
            return await scenario(gate)
        finally:
            gate.close()

    return asyncio.run(run())


class Blocked:
    """A job that waits until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go, self.abandoned = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, ticket: Ticket) -> str:
        self.begun.set()
        end = time.monotonic() + 20
        while not self.go.wait(0.005) and time.monotonic() < end:
            try:
                ticket.check()
            except BaseException:
                self.abandoned.set()
                raise
        return "done"


async def until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not come to that")


def test_clients_take_turns_however_many_requests_one_sends_first() -> None:
    async def scenario(gate: Gate) -> list[str]:
        first, order = Blocked(), []
        running = asyncio.ensure_future(gate.run("greedy", "first", first))
        await until(first.begun.is_set)

        def job(name: str) -> Callable[[Ticket], None]:
            return lambda ticket: order.append(name)

        waiting = [asyncio.ensure_future(gate.run("greedy", number, job("greedy"))) for number in range(5)]
        await until(lambda: gate.waiting == 5)
        waiting += [asyncio.ensure_future(gate.run("modest", "m", job("modest")))]
        waiting += [asyncio.ensure_future(gate.run("late", "l", job("late")))]
        await until(lambda: gate.waiting == 7)
        first.go.set()
        await asyncio.gather(running, *waiting)
        return order

    assert with_gate(scenario) == ["greedy", "modest", "late", "greedy", "greedy", "greedy", "greedy"]


def test_never_more_jobs_run_than_there_are_threads() -> None:
    most, now, lock = 0, 0, threading.Lock()

    def job(ticket: Ticket) -> None:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    async def scenario(gate: Gate) -> None:
        await asyncio.gather(*(gate.run(str(number % 4), number, job) for number in range(20)))

    with_gate(scenario, threads=3)
    assert most == 3


def test_equal_requests_share_one_job_and_its_error() -> None:
    ran = []

    def job(ticket: Ticket) -> None:
        ran.append(1)
        time.sleep(0.05)
        raise KeyError("no")

    async def scenario(gate: Gate) -> list[Any]:
        return await asyncio.gather(*(gate.run(str(n), "same", job) for n in range(8)), return_exceptions=True)

    assert [type(one) for one in with_gate(scenario)] == [KeyError] * 8
    assert len(ran) == 1


@pytest.mark.parametrize(("clients", "refused"), [(("a", "a", "a"), "3 requests wait"), (("a", "b", "c"), "at most 3")])
def test_a_full_queue_refuses_with_a_time_to_come_back(clients: tuple[str, ...], refused: str) -> None:
    async def scenario(gate: Gate) -> Busy:
        first = Blocked()
        tasks = [asyncio.ensure_future(gate.run("x", "first", first))]
        await until(first.begun.is_set)
        tasks += [asyncio.ensure_future(gate.run(one, n, first)) for n, one in enumerate(clients)]
        await until(lambda: gate.waiting == 3)
        with pytest.raises(Busy, match=refused) as caught:
            await gate.run("a", "one more", first)
        assert gate.facts()["refused"] == 1
        first.go.set()
        await asyncio.gather(*tasks)
        return caught.value

    assert 1 <= with_gate(scenario, queue=3, each=3).seconds <= 60


def test_one_client_cannot_fill_the_queue() -> None:
    async def scenario(gate: Gate) -> None:
        first = Blocked()
        tasks = [asyncio.ensure_future(gate.run("a", "first", first))]
        await until(first.begun.is_set)
        tasks += [asyncio.ensure_future(gate.run("a", n, first)) for n in range(2)]
        await until(lambda: gate.waiting == 2)
        with pytest.raises(Busy, match="2 of them yours"):
            await gate.run("a", "third", first)
        tasks.append(asyncio.ensure_future(gate.run("b", "of another", first)))
        await until(lambda: gate.waiting == 3)
        first.go.set()
        await asyncio.gather(*tasks)

    with_gate(scenario, queue=10, each=2)


def test_who_waits_too_long_is_told_so_and_leaves_no_job_behind() -> None:
    async def scenario(gate: Gate) -> None:
        first = Blocked()
        running = asyncio.ensure_future(gate.run("a", "first", first))
        await until(first.begun.is_set)
        with pytest.raises(Busy, match=r"no answer within 0\.1 s"):
            await gate.run("b", "second", first)
        with pytest.raises(Busy):
            await running
        await until(first.abandoned.is_set)  # the running one learnt of it, and stopped
        await until(lambda: gate.running == 0)
        facts = gate.facts()
        assert (facts["waiting"], facts["late"]) == (0, 2)

    with_gate(scenario, timeout=0.1)


def test_a_client_that_leaves_frees_its_place_and_its_thread() -> None:
    async def scenario(gate: Gate) -> None:
        first, second = Blocked(), Blocked()
        running = asyncio.ensure_future(gate.run("a", "first", first))
        await until(first.begun.is_set)
        waiting = asyncio.ensure_future(gate.run("b", "second", second))
        await until(lambda: gate.waiting == 1)
        waiting.cancel()
        await until(lambda: gate.waiting == 0)
        running.cancel()
        await until(first.abandoned.is_set)
        await until(lambda: gate.running == 0)
        assert not second.begun.is_set()
        assert await gate.run("c", "first", lambda ticket: "anew") == "anew"
        assert gate.facts()["left"] == 2

    with_gate(scenario)


def test_a_job_goes_on_while_anybody_waits_for_it() -> None:
    async def scenario(gate: Gate) -> str:
        job = Blocked()
        one, other = (asyncio.ensure_future(gate.run(name, "same", job)) for name in "ab")
        await until(job.begun.is_set)
        one.cancel()
        await asyncio.sleep(0.03)
        assert not job.abandoned.is_set()
        job.go.set()
        return await other

    assert with_gate(scenario) == "done"
