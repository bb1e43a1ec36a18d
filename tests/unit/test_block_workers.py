"""Scopes join what they started, whatever happens."""

from __future__ import annotations

import threading

import pytest

from vdkit.block.workers import CancelToken, WorkerScope
from vdkit.errors import Cancelled


def alive() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("scope-test")]


def test_leaving_joins() -> None:
    done: list[int] = []
    gate = threading.Event()

    def work(number: int) -> None:
        gate.wait()
        done.append(number)

    with WorkerScope("scope-test") as scope:
        for i in range(3):
            scope.spawn(work, i)
        gate.set()
    assert sorted(done) == [0, 1, 2]
    assert alive() == []
    assert not scope.token.cancelled


def test_the_first_error_cancels_the_rest() -> None:
    def wait() -> None:
        assert scope.token.wait(30)
        scope.token.check()

    def fail() -> None:
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"), WorkerScope("scope-test") as scope:
        scope.spawn(wait)
        scope.spawn(wait)
        scope.spawn(fail)
    assert alive() == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, Cancelled])
def test_an_error_in_the_block_cancels_and_goes_on(kind: type[BaseException]) -> None:
    with pytest.raises(kind), WorkerScope("scope-test") as scope:
        scope.spawn(scope.token.wait, 30)
        raise kind("in the block")
    assert alive() == []
    assert scope.token.cancelled


def test_a_worker_error_behind_a_cancelled_block_wins() -> None:
    def fail() -> None:
        raise ValueError("the reason")

    with pytest.raises(ValueError, match="the reason"), WorkerScope("scope-test") as scope:
        scope.spawn(fail)
        scope.token.wait(30)
        scope.token.check()


def test_an_outer_token_reaches_the_workers() -> None:
    outer = CancelToken()

    def work() -> None:
        outer.cancel()
        scope.token.check()

    with pytest.raises(Cancelled), WorkerScope("scope-test", cancel=outer) as scope:
        scope.spawn(work)
    assert not outer._callbacks


def test_a_scope_does_not_cancel_its_outer_token() -> None:
    outer = CancelToken()
    with pytest.raises(ZeroDivisionError), WorkerScope("scope-test", cancel=outer) as scope:
        scope.spawn(lambda: 1 // 0)
    assert not outer.cancelled
    assert not outer._callbacks


def test_token() -> None:
    token, calls = CancelToken(), []
    token.check()
    assert not token.wait(0)
    token.subscribe(lambda: calls.append(1))
    forget = token.subscribe(lambda: calls.append(2))
    forget()
    token.cancel()
    token.cancel()
    token.subscribe(lambda: calls.append(3))
    assert calls == [1, 3]
    assert token.cancelled
    assert token.wait(30)
    with pytest.raises(Cancelled):
        token.check()


def test_an_error_behind_a_worker_that_only_obeyed_wins() -> None:
    obeyed = threading.Event()

    def obey() -> None:
        obeyed.set()
        raise Cancelled("obeyed")

    def fail() -> None:
        assert scope.token.wait(30)  # the other one has been recorded
        raise ValueError("the reason")

    with pytest.raises(ValueError, match="the reason"), WorkerScope("scope-test") as scope:
        scope.spawn(fail)
        scope.spawn(obey)
        assert obeyed.wait(30)
