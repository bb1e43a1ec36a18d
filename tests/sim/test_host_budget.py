"""Many disks of one host at once, in threads and in processes: the host's limits are kept, and nobody fails.

The host counts: bytes of requests that have come and are not answered, and connections.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from budget_reader import MIB, USED, hash_of, opened
from simulated_login import logged_in, one_line, the_machine

from vdkit.backup import Repository
from vdkit.block.local import FolderStore
from vdkit.block.workers import CancelToken, WorkerScope
from vdkit.disklib.remote import Retry, Turn
from vdkit.errors import Cancelled, TooManyConnections, VixError
from vdkit.jobs.backup import backup_machine
from vdkit.jobs.observer import SilentObserver
from vdkit.net.budget import HostBudget, HostBudgets
from vdkit.net.limits import HostLimits, limits_of
from vdkit.sim.clock import ManualClock
from vdkit.sim.host import SimulatedHost
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.scenario import Scenario
from vdkit.sim.snapshot import DiskSpec
from vdkit.testing.fixtures import HostFactory
from vdkit.transports.nfc import Timeouts
from vdkit.vsphere.inventory import list_machines
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.session import Session

MEMORY = 48 * MIB
READER = Path(__file__).with_name("budget_reader.py")
#: Reads wait a little, so that what is asked for really piles up at the host.
SLOW = NfcFaults(slow_reads=0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the processes of one test meet; nothing may be left in it."""
    folder = tmp_path / "limits"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def make(simulated_host_factory: HostFactory) -> Callable[..., tuple[SimulatedHost, list[str]]]:
    """A host with that many machines, and the hash of the start of each one's disk."""

    def make(machines: int, **options: object) -> tuple[SimulatedHost, list[str]]:
        scenario = Scenario(api_version="7.0.3.0", nfc=SLOW, nfc_memory_limit=MEMORY)
        host = simulated_host_factory(machines=machines, scenario=scenario, **options)
        hashes = []
        for number in range(1, machines + 1):
            data = Random(number).randbytes(USED)
            machine = host.machine(f"vm{number}")
            machine.power_on()
            machine.disk(2000).guest().write_from(0, data)
            machine.power_off()
            hashes.append(hashlib.sha256(data).hexdigest())
        return host, hashes

    return make


def nothing_was_refused(host: SimulatedHost) -> None:
    assert host.nfc_memory_refused == 0
    assert host.nfc_connections_refused == 0
    assert host.nfc_memory_peak <= MEMORY
    assert host.internal_errors == []


def test_32_disks_at_once_keep_a_hosts_memory(
    make: Callable[..., tuple[SimulatedHost, list[str]]], folder: Path
) -> None:
    host, hashes = make(32)
    budgets = HostBudgets(folder=folder)
    found: dict[str, str] = {}
    retried: list[VixError] = []
    together = threading.Barrier(32)

    def read(session: Session, vm: VirtualMachine) -> None:
        retry = Retry(notify=lambda error, seconds: retried.append(error))
        with opened(session, vm, budgets, retry=retry) as disk:
            together.wait()
            found[vm.name] = hash_of(disk)

    with logged_in(host) as session, WorkerScope("read") as scope:
        for vm in list_machines(session):
            scope.spawn(read, session, vm)
    assert [found[f"vm{number}"] for number in range(1, 33)] == hashes
    assert retried == []
    nothing_was_refused(host)
    assert host.nfc_memory_peak > MEMORY // 4, "they really used it"


def test_eight_processes_share_a_hosts_memory(
    make: Callable[..., tuple[SimulatedHost, list[str]]], folder: Path
) -> None:
    host, hashes = make(32)
    running = []
    for process in range(8):
        names = [f"vm{process * 4 + number}" for number in range(1, 5)]
        where = [host.host, str(host.port), host.user, host.thumbprint_sha256, str(folder)]
        one = subprocess.Popen(
            [sys.executable, READER, *where, *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(one)
    found: list[str] = []
    for one in running:
        output, errors = one.communicate(host.password.reveal() + "\n", timeout=120)
        assert one.returncode == 0, errors
        found += output.split()
    assert found == hashes
    nothing_was_refused(host)


def test_60_disks_through_vcenter_take_turns(
    make: Callable[..., tuple[SimulatedHost, list[str]]], folder: Path
) -> None:
    host, hashes = make(60, personality="vcenter")
    host.scenario.nfc_connection_limit = 52
    found: dict[str, str] = {}
    waiting: list[str] = []
    somebody_waits = threading.Event()

    def tell(text: str) -> None:
        waiting.append(text)
        somebody_waits.set()

    retry = Retry(waiting=tell)

    def read(session: Session, vm: VirtualMachine) -> None:
        with opened(session, vm, HostBudgets(folder=folder), retry=retry) as disk:
            # Nobody ends before somebody waits.
            assert somebody_waits.wait(120)
            found[vm.name] = hash_of(disk)

    with logged_in(host) as session, WorkerScope("read") as scope:
        for vm in list_machines(session):
            scope.spawn(read, session, vm)
    assert [found[f"vm{number}"] for number in range(1, 61)] == hashes
    nothing_was_refused(host)
    assert 40 <= host.nfc_connections_peak <= limits_of("7.0.3", "vpxa").connections
    assert f"{host.nfc_port}: waiting for a connection" in waiting[0]
    assert "vpxa: 50 of 50 connections" in waiting[0]


# -- one disk, and a host whose connections others have -------------------------------------------


def budget_of(host: SimulatedHost, budgets: HostBudgets) -> HostBudget:
    return budgets.of(host.host, host.nfc_port, "hostd", HostLimits(MEMORY, 50))


def test_a_disk_waits_for_its_turn_and_takes_a_fresh_ticket(
    simulated_host_factory: HostFactory, folder: Path
) -> None:
    """The ticket that told it where to wait has expired by then."""
    clock = ManualClock()
    host = simulated_host_factory(clock=clock)
    budgets = HostBudgets(folder=folder, connections=1)
    held = budget_of(host, budgets).lease()
    waiting: list[str] = []

    def sleep(seconds: float) -> None:
        assert waiting
        clock.advance(2 * host.scenario.ticket_seconds)
        held.close()

    with logged_in(host) as session:
        retry = Retry(attempts=1, waiting=waiting.append, sleep=sleep)
        with opened(session, the_machine(session), budgets, retry=retry) as disk:
            assert hash_of(disk)
    assert len(waiting) == 1 and "1 of 1 connections" in waiting[0]


def test_waiting_ends_with_the_configured_time(simulated_host: SimulatedHost, folder: Path) -> None:
    budgets = HostBudgets(folder=folder, connections=1)
    with logged_in(simulated_host) as session:
        held = budget_of(simulated_host, budgets).lease()
        slept: list[float] = []
        tried: list[VixError] = []
        retry = Retry(attempts=3, sleep=slept.append, notify=lambda error, seconds: tried.append(error))
        with pytest.raises(TooManyConnections) as caught:
            opened(session, the_machine(session), budgets, retry=retry, timeouts=Timeouts(request=3))
        assert "nothing came free in 3 s" in str(tried[0])
        one_line(caught.value, f":{simulated_host.nfc_port}", "1 of 1 connections", f"(pid {os.getpid()})")
        assert 3 <= sum(slept) < 5, "three seconds once, and the pauses of the retries"
        cancel = CancelToken()
        retry = Retry(waiting=lambda text: cancel.cancel(), sleep=slept.append)
        with pytest.raises(Cancelled):
            opened(session, the_machine(session), budgets, retry=retry, cancel=cancel)
        held.close()


def test_every_way_out_gives_the_connection_back(simulated_host: SimulatedHost, folder: Path) -> None:
    budgets = HostBudgets(folder=folder, connections=1)
    retry = Retry(attempts=1)
    with logged_in(simulated_host) as session:
        for faults in (
            NfcFaults(proxy_refused=True),
            NfcFaults(open_error=(1, "no")),
            NfcFaults(cut_after_messages=6),
        ):
            simulated_host.set_data_faults(faults)
            with pytest.raises(VixError), opened(session, the_machine(session), budgets, retry=retry) as disk:
                hash_of(disk)
            assert list(folder.iterdir()) == []
        simulated_host.set_data_faults(None)
        with opened(session, the_machine(session), budgets, retry=retry) as disk:
            assert len(list(folder.iterdir())) == 1
            hash_of(disk)
        assert list(folder.iterdir()) == []


def test_a_reopened_disk_has_one_lease(simulated_host: SimulatedHost, folder: Path) -> None:
    budgets = HostBudgets(folder=folder, connections=1)
    with logged_in(simulated_host) as session:
        simulated_host.set_data_faults(NfcFaults(cut_after_messages=18))
        with opened(session, the_machine(session), budgets, retry=Retry(sleep=lambda seconds: None)) as disk:
            simulated_host.set_data_faults(None)
            first, second = hash_of(disk), hash_of(disk)
            assert first == second and disk.reopened == 1
            assert budget_of(simulated_host, budgets).usage().connections == 1


# -- the command -----------------------------------------------------------------------------------


def vdkit(host: SimulatedHost, folder: Path, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **host.environment(), "VDKIT_LIMITS_FOLDER": str(folder), **settings}
    return subprocess.Popen(
        [sys.executable, "-m", "vdkit", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_a_backup_says_why_it_waits(simulated_host: SimulatedHost, folder: Path, tmp_path: Path) -> None:
    held = budget_of(simulated_host, HostBudgets(folder=folder, connections=1)).lease()
    arguments = ("backup", "vm1", "--to", str(tmp_path / "repository"), "--host-connections", "1")
    with vdkit(simulated_host, folder, *arguments) as running:
        assert running.stderr is not None
        lines = []
        for line in running.stderr:
            lines.append(line)
            if "waiting" in line:
                held.close()
        assert running.wait() == 0, lines
    [told] = [line for line in lines if "waiting" in line]
    assert f"{simulated_host.host}:{simulated_host.nfc_port}: waiting for a connection" in told
    assert f"(pid {os.getpid()})" in told


def test_a_backup_waits_before_its_snapshot_and_once_for_all_disks(
    simulated_host_factory: HostFactory, folder: Path, tmp_path: Path
) -> None:
    """What waits under a snapshot lets it grow, for an hour; and the next disk would wait again."""
    host = simulated_host_factory(machines=0)
    host.inventory.create_machine("vm1", "datastore1", [DiskSpec(capacity=MIB)] * 2)
    budgets = HostBudgets(folder=folder, connections=1)
    budget = budget_of(host, budgets)
    held, rivals, told = budget.lease(), [], []

    class Watch(SilentObserver):
        def note(self, text: str) -> None:
            if "waiting for a connection" in text:
                told.append(list(host.machine("vm1").snapshots()))
                held.close()

        def step(self, text: str) -> None:
            with suppress(TooManyConnections):
                if told and "removing" not in text:
                    rivals.append(budget.lease(wait=0))

    with logged_in(host) as session:
        result = backup_machine(
            session, "vm1", Repository.create(FolderStore(tmp_path)), Watch(), budget=budgets
        )
    assert sorted(result.modes) == [2000, 2001]
    assert told == [[]]
    assert rivals == []


def test_a_place_at_another_host_is_let_go_before_one_there_is_waited_for(folder: Path) -> None:
    budget = HostBudget("a:902", "vpxa", HostLimits(MEMORY, 1), folder / "a")
    turn = Turn()
    turn._lease, turn._path = budget.lease(wait=0), budget.path
    with turn:
        lent = turn.lend(budget.path)
        assert lent is not None
        assert turn.lend(budget.path) is None, "one disk at a time"
        assert lent.take(lent.floor)
        lent.give(lent.floor)
        lent.close()
        lent.close()
        assert not lent.take(1)
        assert turn.lend(folder / "b") is None
        budget.lease(wait=0).close()


@pytest.mark.parametrize(
    ("arguments", "settings", "told"),
    [
        (("--host-memory", "1", "--host-connections", "5"), {}, "allow 4 connections"),
        ((), {"VDKIT_HOST_CONNECTIONS": "many"}, "host_connections needs a whole number, not 'many'"),
        ((), {"VDKIT_HOST_MEMORY": "0"}, "host_memory is given in MiB"),
        (("--host-connections", "0"), {}, "host-connections"),
    ],
)
def test_limits_that_cannot_be_are_refused_before_anything_is_done(
    simulated_host: SimulatedHost,
    folder: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    settings: dict[str, str],
    told: str,
) -> None:
    command = ("backup", "vm1", "--to", str(tmp_path / "repository"), *arguments)
    with vdkit(simulated_host, folder, *command, **settings) as running:
        _, errors = running.communicate()
    assert running.returncode == 2, errors
    assert told in errors
    assert list(simulated_host.machine("vm1").snapshots()) == []
