"""File locks and the stun gate."""

from __future__ import annotations

import threading

import pytest

from vdkit.sim.gate import StunGate
from vdkit.sim.locks import Locked, LockMode, LockTable


def test_readers_share_and_a_writer_does_not() -> None:
    table = LockTable(patience=0)
    one = table.acquire([("a", LockMode.READ)], "one")
    two = table.acquire([("a", LockMode.READ), ("b", LockMode.WRITE)], "two")
    with pytest.raises(Locked, match="one"):
        table.acquire([("c", LockMode.WRITE), ("a", LockMode.WRITE)], "three")
    assert table.holder("c") is None
    with pytest.raises(Locked):
        table.acquire([("b", LockMode.READ)], "three")
    one.release()
    two.release()
    two.release()
    table.acquire([("a", LockMode.WRITE)], "three").release()


def test_a_download_and_a_disk_reader_exclude_each_other() -> None:
    table = LockTable(patience=0)
    with table.acquire([("a", LockMode.BROWSE)], "browser"):
        table.acquire([("a", LockMode.BROWSE)], "browser").release()
        with pytest.raises(Locked):
            table.acquire([("a", LockMode.READ)], "disk")
    with table.acquire([("a", LockMode.READ)], "disk"), pytest.raises(Locked):
        table.acquire([("a", LockMode.BROWSE)], "browser")


def test_an_exchange_that_fails_leaves_the_old_lock() -> None:
    table = LockTable(patience=0)
    other = table.acquire([("b", LockMode.READ)], "other")
    mine = table.acquire([("a", LockMode.WRITE)], "me")
    with pytest.raises(Locked):
        table.exchange(mine, [("a", LockMode.READ), ("b", LockMode.WRITE)], "me")
    with pytest.raises(Locked):
        table.acquire([("a", LockMode.READ)], "somebody")
    other.release()
    mine = table.exchange(mine, [("a", LockMode.READ), ("b", LockMode.WRITE)], "me")
    table.acquire([("a", LockMode.READ)], "somebody").release()
    mine.release()
    assert table.holder("a") is table.holder("b") is None


def test_a_stun_waits_for_what_is_under_way_and_holds_off_what_comes() -> None:
    gate = StunGate()
    order: list[str] = []
    inside, may_leave, stunned, may_end = (threading.Event() for _ in range(4))

    def first() -> None:
        with gate.io():
            inside.set()
            may_leave.wait(10)
            order.append("first")

    def stun() -> None:
        with gate.stun():
            order.append("stun")
            stunned.set()
            may_end.wait(10)
            order.append("end")

    def second() -> None:
        with gate.io():
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=stun), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    may_leave.set()
    assert stunned.wait(10)
    threads[2].start()
    may_end.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "stun", "end", "second"]


def test_somebody_who_is_about_to_let_go_is_waited_for() -> None:
    table = LockTable(patience=30)
    held = table.acquire([("a", LockMode.READ)], "leaving")
    mine = table.acquire([("b", LockMode.WRITE)], "me")
    got: list[str] = []

    def wait(name: str) -> None:
        if name == "new":
            table.acquire([("a", LockMode.WRITE)], "new").release()
        else:
            table.exchange(mine, [("a", LockMode.READ), ("b", LockMode.READ)], "me")
        got.append(name)

    one = threading.Thread(target=wait, args=("new",))
    one.start()
    held.release()
    one.join(30)
    assert got == ["new"]
    wait("exchange")
    assert got == ["new", "exchange"]
