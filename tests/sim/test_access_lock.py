"""Relocation disabled and enabled: by identity, again and again, around a storage vMotion, after a crash."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyVmomi import vim, vmodl
from simulated_login import logged_in, one_line, the_machine

from vdkit.block.workers import CancelToken
from vdkit.disklib import access as library
from vdkit.disklib.connection import ConnectParams
from vdkit.errors import (
    Cancelled,
    ConnectionLost,
    ControlError,
    HostNotFound,
    NoPrivilege,
    NotSupported,
    ObjectBusy,
    ProtocolError,
    UsageError,
)
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.sim.host import SimulatedHost
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere import access, snapshots, tasks
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.session import Session
from vdkit.wire.vim import internal

OURS, THEIRS = "vdkit test", "another product"
pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def center(simulated_host_factory: HostFactory) -> SimulatedHost:
    return simulated_host_factory(personality="vcenter")


@pytest.fixture
def session(center: SimulatedHost) -> Iterator[Session]:
    with logged_in(center) as session:
        yield session


def held(host: SimulatedHost) -> list[str]:
    """Who keeps the machine from being relocated."""
    assert host.world is not None
    return host.world.disabled.sources(("VirtualMachine", host.machine("vm1").moref), "RelocateVM_Task")


def relocate(session: Session, vm: VirtualMachine) -> None:
    machine = session.managed(vim.VirtualMachine, vm.moref)
    tasks.run(session, "relocate", lambda: machine.RelocateVM_Task(vim.vm.RelocateSpec(), None))


def test_nobody_relocates_it_between_prepare_and_end(session: Session, center: SimulatedHost) -> None:
    vm = the_machine(session)
    relocate(session, vm)
    access.prepare_for_access(session, vm, OURS)
    assert access.is_relocation_disabled(session, vm)
    assert access.with_relocation_disabled(session) == {vm.moref}
    with pytest.raises(Exception, match="disabled by 'vdkit test'"):
        relocate(session, vm)
    # Everything else goes on: a backup makes its snapshot now.
    snapshots.remove(session, vm, snapshots.create(session, vm, "vdkit s", "vdkit:r").moref)
    access.end_access(session, vm, OURS)
    assert not access.is_relocation_disabled(session, vm)
    relocate(session, vm)
    assert center.internal_errors == []


def test_one_identity_counts_once_and_ends_only_its_own(session: Session, center: SimulatedHost) -> None:
    vm = the_machine(session)
    access.prepare_for_access(session, vm, THEIRS)
    access.prepare_for_access(session, vm, OURS)
    access.prepare_for_access(session, vm, OURS)
    assert sorted(held(center)) == [THEIRS, OURS]
    access.end_access(session, vm, OURS)
    assert held(center) == [THEIRS]
    access.end_access(session, vm, OURS)  # nothing is owed any more, and nothing happens
    assert access.is_relocation_disabled(session, vm)
    access.end_access(session, vm, THEIRS)
    assert held(center) == []


def test_it_outlives_its_session_and_is_ended_by_the_same_identity(center: SimulatedHost) -> None:
    """As after a crash: nobody logged out, and another process comes back with the identity."""
    with logged_in(center) as session:
        access.prepare_for_access(session, the_machine(session), OURS)
        center.expire_sessions()
    assert held(center) == [OURS]
    with logged_in(center) as session:
        access.end_access(session, the_machine(session), OURS)
    assert held(center) == []


def after_disabling(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> None:
    """``then`` happens each time the host has disabled something, before its answer is looked at."""
    real = internal.disable_methods

    def disable(*arguments: Any) -> None:
        real(*arguments)
        then()

    monkeypatch.setattr(internal, "disable_methods", disable)


def test_d9_it_is_busy_during_a_storage_vmotion(session: Session, center: SimulatedHost) -> None:
    """Row D9: object is busy, until it returns success; only that call is owed an end."""
    vm = the_machine(session)
    center.scenario.relocating = frozenset({"vm1"})
    for _ in range(3):
        with pytest.raises(ObjectBusy) as caught:
            access.prepare_for_access(session, vm, OURS)
        assert caught.value.code.number == 5
        one_line(caught.value, session.where, vm.moref)
        assert held(center) == []
    center.scenario.relocating = frozenset()
    access.prepare_for_access(session, vm, OURS)
    assert held(center) == [OURS]


def test_d9_a_relocation_that_begins_meanwhile_is_noticed(
    session: Session, center: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began between the look and the call, on a server that lets the call through: nothing stays."""
    vm = the_machine(session)

    def begin() -> None:
        center.scenario.relocating = frozenset({"vm1"})

    after_disabling(monkeypatch, begin)
    with pytest.raises(ObjectBusy, match="moving it to other storage"):
        access.prepare_for_access(session, vm, OURS)
    assert held(center) == []


def test_the_loop_waits_with_growing_pauses_until_it_is_over(center: SimulatedHost) -> None:
    pauses: list[float] = []
    said: list[str] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 8:
            center.scenario.relocating = frozenset()

    center.scenario.relocating = frozenset({"vm1"})
    trust = Trust(sha256=center.thumbprint_sha256)
    with Session.login(center.host, center.port, center.user, center.password, trust, sleep=sleep) as session:
        vm = the_machine(session)
        access.wait_for_access(session, vm, OURS, tell=said.append, chance=lambda: 1.0)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert len(said) == 1
    assert "vm1" in said[0]
    assert held(center) == [OURS]


def test_the_loop_ends_at_its_deadline_and_when_it_is_cancelled(
    session: Session, center: SimulatedHost
) -> None:
    vm = the_machine(session)
    center.scenario.relocating = frozenset({"vm1"})
    with pytest.raises(ObjectBusy, match="it still was after 0 s") as caught:
        access.wait_for_access(session, vm, OURS, deadline=0.05)
    assert caught.value.remedy
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        access.wait_for_access(session, vm, OURS, cancel=token)
    assert held(center) == []


def test_the_block_ends_what_it_began_whatever_happens(session: Session, center: SimulatedHost) -> None:
    vm = the_machine(session)
    with access.access(session, vm, OURS) as really:
        assert really
        assert held(center) == [OURS]
    assert held(center) == []
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), access.access(session, vm, OURS):
            raise error
        assert held(center) == []


def test_a_failing_end_hides_no_other_failure(session: Session, center: SimulatedHost) -> None:
    vm = the_machine(session)
    lost = frozenset({"Global.EnableMethods"})
    with pytest.raises(RuntimeError) as caught, access.access(session, vm, OURS):
        center.scenario.missing_privileges = lost
        raise RuntimeError("the block")
    assert "stays disabled under 'vdkit test'" in caught.value.__notes__[0]
    center.scenario.missing_privileges = frozenset()
    with pytest.raises(NoPrivilege) as alone, access.access(session, vm, OURS):
        center.scenario.missing_privileges = lost
    one_line(alone.value, "stays disabled", "vdkit cleanup vm1")


def test_a_missing_privilege_is_named_or_told(session: Session, center: SimulatedHost) -> None:
    vm = the_machine(session)
    center.scenario.missing_privileges = frozenset({"Global.DisableMethods"})
    with pytest.raises(NoPrivilege, match=r"Global\.DisableMethods"):
        access.prepare_for_access(session, vm, OURS)
    said: list[str] = []
    with access.access(session, vm, OURS, without=said.append) as really:
        assert not really
    assert len(said) == 1
    assert "Global.DisableMethods" in said[0]


def test_a_standalone_host_is_not_a_vcenter(simulated_host_factory: HostFactory) -> None:
    host = simulated_host_factory()
    with logged_in(host) as session:
        vm = the_machine(session)
        for call in (access.prepare_for_access, access.end_access):
            with pytest.raises(NotSupported, match="is not a vCenter") as caught:
                call(session, vm, OURS)
            assert caught.value.code.number == 6
        said: list[str] = []
        with access.access(session, vm, OURS, without=said.append) as really:
            assert not really
        assert "is not a vCenter" in said[0]


@pytest.mark.parametrize("identity", ["", "x" * 51, "line\nfeed"])
def test_an_identity_that_no_vcenter_takes_is_refused(session: Session, identity: str) -> None:
    with pytest.raises(UsageError, match="1 to 50"):
        access.prepare_for_access(session, the_machine(session), identity)


def test_a_broken_connection_in_the_call_costs_an_attempt(
    session: Session, center: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doing it twice is doing it once, so an answer that got lost is asked for again."""
    vm = the_machine(session)
    calls = []

    def lose_the_first() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionLost("the answer got lost")

    after_disabling(monkeypatch, lose_the_first)
    access.prepare_for_access(session, vm, OURS)
    assert len(calls) == 2
    assert held(center) == [OURS]


def test_an_interruption_while_it_is_disabled_leaves_nothing(
    session: Session, center: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = the_machine(session)

    def interrupt() -> None:
        raise KeyboardInterrupt

    after_disabling(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt), access.access(session, vm, OURS):
        pass
    assert held(center) == []


def test_a_refused_second_call_keeps_what_the_first_one_did(session: Session, center: SimulatedHost) -> None:
    vm = the_machine(session)
    access.prepare_for_access(session, vm, OURS)
    center.scenario.missing_privileges = frozenset({"Global.DisableMethods"})
    with pytest.raises(NoPrivilege):
        access.prepare_for_access(session, vm, OURS)
    assert held(center) == [OURS]


def test_a_second_look_that_fails_leaves_nothing(
    session: Session, center: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host has disabled it by then, so its refusal to say more is no reason to owe nothing."""
    vm = the_machine(session)
    real, looks = tasks.running, []

    def running(session: Session, vm: VirtualMachine) -> list[tasks.Running]:
        looks.append(held(center))
        if len(looks) == 2:
            raise ControlError("look at the tasks of vm1: a general system error occurred") from (
                vmodl.fault.SystemError()
            )
        return real(session, vm)

    monkeypatch.setattr(tasks, "running", running)
    with pytest.raises(ControlError, match="general system error"):
        access.prepare_for_access(session, vm, OURS)
    assert looks == [[], [OURS]]
    assert held(center) == []


def test_an_answer_that_is_not_the_hosts_is_no_refusal(
    session: Session, center: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = the_machine(session)

    def garble() -> None:
        raise ProtocolError("the answer is not that of a vSphere host") from ValueError("a page of a proxy")

    after_disabling(monkeypatch, garble)
    with pytest.raises(ProtocolError):
        access.prepare_for_access(session, vm, OURS)
    assert held(center) == []


# -- in the shape of VixDiskLib ------------------------------------------------------------------------


def params_of(host: SimulatedHost, *, name: str | None = None) -> ConnectParams:
    return ConnectParams(
        host=name or host.host,
        user=host.user,
        password=host.password,
        trust=Trust(sha256=host.thumbprint_sha256),
        vm="vm1",
        port=host.port,
    )


def test_the_library_prepares_and_ends(center: SimulatedHost) -> None:
    params = params_of(center)
    library.prepare_for_access(params, OURS)
    assert held(center) == [OURS]
    library.end_access(params, OURS)
    assert held(center) == []
    center.scenario.relocating = frozenset({"vm1"})
    with pytest.raises(ObjectBusy):
        library.prepare_for_access(params, OURS)


def test_d2_end_access_with_a_name_that_does_not_resolve(center: SimulatedHost) -> None:
    """Row D2: an error, no crash."""
    for call in (library.prepare_for_access, library.end_access):
        with pytest.raises(HostNotFound) as caught:
            call(params_of(center, name="no-such-vcenter.invalid"), OURS)
        one_line(caught.value, "no-such-vcenter.invalid")
        assert caught.value.code.number == 14008


def test_d2_a_name_that_stops_resolving_leaves_an_error_too(
    session: Session, center: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    vm = the_machine(session)
    access.prepare_for_access(session, vm, OURS)

    def lost(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    with monkeypatch.context() as patch:
        patch.setattr(internal, "enable_methods", lost)
        with pytest.raises(HostNotFound):
            access.end_access(session, vm, OURS)
    access.end_access(session, vm, OURS)
    assert held(center) == []


def test_cleanup_counts_what_it_leaves_alone(center: SimulatedHost, session: Session) -> None:
    assert library.cleanup(None) == library.Cleaned(0, 0)
    assert library.cleanup(params_of(center)) == library.Cleaned(0, 0)
    snapshots.create(session, the_machine(session), "vdkit left", "vdkit:dead.1")
    assert library.cleanup(params_of(center)) == library.Cleaned(0, 1)


def test_no_secret_is_in_an_error(center: SimulatedHost) -> None:
    params = params_of(center)
    wrong = ConnectParams(
        host=params.host,
        user=params.user,
        password=Secret("canary-5150"),
        trust=params.trust,
        vm="vm1",
        port=params.port,
    )
    with pytest.raises(Exception) as caught:
        library.end_access(wrong, OURS)
    assert "canary-5150" not in repr(caught.value) + str(caught.value)
