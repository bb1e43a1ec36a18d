"""A host's budget among processes: killed and forked ones keep nothing, and all stay below the limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import pytest

from vdkit.errors import TooManyConnections
from vdkit.net.budget import HostBudget, HostBudgets
from vdkit.net.limits import UNIT, HostLimits

MIB = 1 << 20
LIMITS = HostLimits(memory=8 * MIB, connections=6)
#: Takes leases and all the memory that it can get, says so, and holds them until its input ends.
HOLDER = """
import sys
from pathlib import Path
from vdkit.net.budget import HostBudgets
from vdkit.net.limits import UNIT, HostLimits
folder, memory, connections, count = sys.argv[1:]
limits = HostLimits(int(memory), int(connections))
budget = HostBudgets(folder=Path(folder)).of("::1", 902, "hostd", limits)
leases = [budget.lease(wait=0) for _ in range(int(count))]
while any(lease.take(UNIT) for lease in leases):
    pass
print(sum(lease.granted for lease in leases), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def budget(tmp_path: Path) -> HostBudget:
    return HostBudgets(folder=tmp_path).of("::1", 902, "hostd", LIMITS)


@contextmanager
def holder(budget: HostBudget, count: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with ``count`` leases, and the bytes that they were granted."""
    arguments = [str(budget.path.parent), str(LIMITS.memory), str(LIMITS.connections), str(count)]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_what_a_killed_process_held_is_free_at_once(budget: HostBudget) -> None:
    with holder(budget, LIMITS.connections) as (process, granted):
        assert granted == LIMITS.memory
        with pytest.raises(TooManyConnections) as caught:
            budget.lease(wait=0)
        assert f"6 of 6 connections, 8.0 of 8 MiB in use by 1 process (pid {process.pid})" in str(
            caught.value
        )
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (budget.usage().connections, budget.usage().memory) == (0, 0)
        lease = budget.lease(wait=0)
        while lease.take(UNIT):
            pass
        assert lease.granted == LIMITS.memory - 5 * lease.floor
        lease.close()
    assert not budget.path.exists()


def test_a_waiter_goes_on_when_a_holder_is_killed(budget: HostBudget) -> None:
    heard: list[str] = []
    with holder(budget, LIMITS.connections) as (process, _):

        def told(text: str) -> None:
            heard.append(text)
            process.send_signal(signal.SIGKILL)

        lease = budget.lease(wait=60, notify=told)
        assert lease.waited > 0
        assert len(heard) == 1 and f"pid {process.pid}" in heard[0]
        lease.close()


def test_a_stopped_process_keeps_what_it_has(budget: HostBudget) -> None:
    """It will go on some day, with requests at the host."""
    with holder(budget, LIMITS.connections) as (process, _):
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(TooManyConnections):
            budget.lease(wait=0.2)


def test_several_processes_are_named(budget: HostBudget) -> None:
    with (
        holder(budget, 2) as (one, first),
        holder(budget, 3) as (two, second),
        holder(budget, 1) as (_, third),
    ):
        assert first + second + third == LIMITS.memory
        with pytest.raises(TooManyConnections) as caught:
            budget.lease(wait=0)
        assert "by 3 processes (pid " in str(caught.value)
        assert str(one.pid) in str(caught.value) and str(two.pid) in str(caught.value)


def test_a_forked_child_has_no_part_in_a_lease(budget: HostBudget) -> None:
    lease = budget.lease(wait=0)
    assert lease.take(lease.floor)
    child = os.fork()
    if child == 0:  # what it may not do is told by its exit code
        try:
            refused = not lease.take(1)
            lease.close()
            os._exit(0 if refused and budget.usage().connections == 1 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert budget.usage().connections == 1, "the child's closing took nothing from us"
    lease.close()
    assert budget.usage().connections == 0


def test_a_child_that_lives_on_does_not_hold_what_its_parent_gave_back(budget: HostBudget) -> None:
    lease = budget.lease(wait=0)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    lease.close()
    assert budget.usage().connections == 0
    os.close(theirs)
    os.close(ours)
    os.waitpid(child, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
def test_users_share_in_a_sticky_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each with the strictest umask, one after the other and both at once."""
    folder = Path(tmp_path_factory.mktemp("sticky"))
    folder.chmod(0o1777)
    with ExitStack() as opened:
        for parent in folder.parents:  # pytest's own folders are for their owner only, each worker's too
            mode = parent.stat().st_mode
            if mode & 0o005 == 0o005:
                continue
            parent.chmod(0o755)
            opened.callback(parent.chmod, mode)
        budget = HostBudgets(folder=folder).of("::1", 902, "hostd", LIMITS)
        umask = os.umask(0o077)
        try:
            mine = budget.lease(wait=0)
        finally:
            os.umask(umask)
        child = os.fork()
        if child == 0:
            try:
                os.setgid(65534)
                os.setuid(65534)
                leases = [budget.lease(wait=0) for _ in range(LIMITS.connections - 1)]
                try:
                    budget.lease(wait=0)
                except TooManyConnections:
                    os._exit(0 if len(leases) == 5 else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        mine.close()
        assert not budget.path.exists()


def test_many_threads_stay_below_the_limit(budget: HostBudget) -> None:
    """Eight threads, one lease after the other; what all of them were granted is counted as it happens."""
    lock, errors = threading.Lock(), list[str]()
    state = {"requested": 0, "leases": 0, "most": 0}

    def count(leases: int, size: int) -> None:
        with lock:
            state["leases"] += leases
            state["requested"] += size
            state["most"] = max(state["most"], state["requested"])
            if state["requested"] > LIMITS.memory or state["leases"] > LIMITS.connections:
                errors.append(str(state))

    def work(seed: int) -> None:
        random = Random(seed)
        for _ in range(6):
            lease = budget.lease(wait=60, sleep=lambda seconds: threading.Event().wait(seconds / 50))
            count(1, 0)
            held: list[int] = []
            for _ in range(60):
                size = random.choice([4096, UNIT, lease.floor, MIB])
                if lease.take(size):
                    held.append(size)
                    count(0, size)
                elif not held and size <= lease.floor:
                    errors.append("an idle lease was refused its floor")
                while held and random.random() < 0.4:
                    size = held.pop()
                    count(0, -size)
                    lease.give(size)
            count(-1, -sum(held))
            lease.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert state["most"] > LIMITS.memory // 2
    assert not budget.path.exists()
