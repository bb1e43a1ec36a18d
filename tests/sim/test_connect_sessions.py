"""Sessions that others opened, that end, that cannot be renewed; a management service that goes away."""

from __future__ import annotations

import logging
import threading
import traceback
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyVmomi import vim, vmodl
from simclients import soap_login
from simulated_login import one_line

from vdkit.disklib.configuration import parse_configuration
from vdkit.disklib.connection import ConnectParams, connect, connection_of
from vdkit.disklib.hosted import CreateParams
from vdkit.disklib.remote import Retry, open_remote
from vdkit.errors import (
    Closed,
    ConnectFailed,
    ConnectionLost,
    ConnectionRefused,
    ControlError,
    DeadlineExceeded,
    LoginFailed,
    ProtocolError,
    SessionExpired,
    UsageError,
    VixError,
)
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.sim import certificates
from vdkit.sim.clock import ManualClock
from vdkit.sim.host import SimulatedHost
from vdkit.sim.scenario import Scenario
from vdkit.testing.fixtures import HostFactory
from vdkit.testing.relay import Relay
from vdkit.vsphere import snapshots
from vdkit.vsphere.faults import translate
from vdkit.vsphere.inventory import find_machine, list_machines
from vdkit.vsphere.session import Session


def trust_of(host: SimulatedHost) -> Trust:
    return Trust(sha256=host.thumbprint_sha256)


def login(host: SimulatedHost, **changes: object) -> Session:
    options: dict[str, object] = {"sleep": lambda seconds: None, **changes}
    return Session.login(
        host.host,
        host.port,
        host.user,
        host.password,
        trust_of(host),
        **options,  # type: ignore[arg-type]
    )


def adopt(host: SimulatedHost, cookie: str) -> Session:
    return Session.from_cookie(
        host.host, host.port, Secret(cookie), trust_of(host), sleep=lambda seconds: None
    )


def open_sessions(host: SimulatedHost) -> int:
    assert host.world is not None
    return len(host.world.sessions.all())


# -- a cookie ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("personality", ["esx", "vcenter"])
def test_a_session_of_somebody_else_is_used_and_never_ended(
    simulated_host_factory: HostFactory, personality: str
) -> None:
    host = simulated_host_factory(personality=personality)
    header = soap_login(host)
    value = header.partition("=")[2]
    for given in (header, value, value.strip('"'), f"{header}; Path=/; HttpOnly; Secure"):
        with adopt(host, given) as session:
            assert session.user == host.user
            assert session.about.is_vcenter == (personality == "vcenter")
            vm = find_machine(session, "vm1")
            with connection_of(session, vm).open(vm.disks[0].file) as disk:
                disk.read_into(0, bytearray(512))
        assert open_sessions(host) == 1
    params = ConnectParams(
        host.host, "", Secret(""), trust_of(host), "vm1", port=host.port, cookie=Secret(header)
    )
    assert header not in repr(params)
    with connect(params) as connection:
        assert connection.vm is not None
    assert open_sessions(host) == 1


def test_a_cookie_that_is_none_or_has_ended(simulated_host: SimulatedHost) -> None:
    for bad in ("", "two words", "x" * 5000, 'evil"\r\nX: y'):
        with pytest.raises(UsageError) as caught:
            adopt(simulated_host, bad)
        assert not bad or bad not in str(caught.value)
    with pytest.raises(SessionExpired) as unknown:
        adopt(simulated_host, f"canary-{4711}")
    one_line(unknown.value, f":{simulated_host.port}", "get a new cookie")
    session = adopt(simulated_host, soap_login(simulated_host))
    simulated_host.expire_sessions()
    for _ in range(2):
        with pytest.raises(SessionExpired) as ended:
            list_machines(session)
        one_line(ended.value, "handed over as a cookie", "cannot be renewed")
    session.close()
    text = "".join(traceback.format_exception(unknown.value)) + repr(session) + repr(vars(session))
    assert "canary-4711" not in text


# -- renewal -----------------------------------------------------------------------------------------


def test_a_password_that_was_changed_is_tried_once_and_by_one_thread(
    simulated_host: SimulatedHost, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with login(simulated_host) as session:
        assert simulated_host.world is not None
        attempts: list[str] = []
        world = simulated_host.world
        simulated_host.scenario.login_refused = True
        compare = world.open_session

        def counted(user: str, client: object) -> object:
            attempts.append(user)
            return compare(user, client)  # type: ignore[arg-type]

        world.open_session = counted  # type: ignore[method-assign,assignment]
        refused = _refusals(simulated_host)
        simulated_host.expire_sessions()
        errors: list[VixError] = []

        def look() -> None:
            try:
                list_machines(session)
            except VixError as error:
                errors.append(error)

        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        look()
        assert len(errors) == 9
        for error in errors:
            assert type(error) is LoginFailed
            one_line(error, "not renewed", "password of 'root' been changed", "not tried again")
            assert simulated_host.password.reveal() not in "".join(traceback.format_exception(error))
        assert refused() == 1
        assert attempts == []
    assert simulated_host.password.reveal() not in caplog.text


def test_many_threads_renew_an_expired_session_once(simulated_host: SimulatedHost) -> None:
    """Hosts answer callers without a session with a cookie that opens nothing: it must not push out the one
    that another thread has just logged in with, which would then be logged in for again, and never end."""
    world = simulated_host.world
    assert world is not None
    with login(simulated_host) as session:
        for _ in range(15):
            opened = world.sessions.opened
            simulated_host.expire_sessions()
            begin = threading.Barrier(8)
            failed: list[VixError] = []

            def look(begin: threading.Barrier, failed: list[VixError]) -> None:
                begin.wait()
                try:
                    session.call("ask the time", session._current_time)
                    session.touch()
                    session.call("ask", lambda: session.content.sessionManager.currentSession.key)
                except VixError as error:
                    failed.append(error)

            threads = [threading.Thread(target=look, args=(begin, failed)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failed
            assert world.sessions.opened == opened + 1
    assert open_sessions(simulated_host) == 0


def test_a_session_that_is_closed_under_a_call_is_not_opened_again(simulated_host: SimulatedHost) -> None:
    """The call of another thread finds the session logged out: to it, that looks like an expired one."""
    world = simulated_host.world
    assert world is not None
    session = login(simulated_host)

    def call() -> object:
        # Here another thread ends the session, after this call had begun.
        session.close()
        return session.stub.InvokeAccessor(
            session.content.sessionManager, vim.SessionManager._GetPropertyInfo("sessionList")
        )

    opened = world.sessions.opened
    with pytest.raises(Closed):
        session.call("list the sessions", call)
    assert world.sessions.opened == opened
    assert open_sessions(simulated_host) == 0
    session.close()


@pytest.mark.parametrize("secret", ["canary-4711", "e"])
def test_a_host_that_repeats_the_password(simulated_host: SimulatedHost, secret: str) -> None:
    """In a fault, or in the answer of something that is no host; the error keeps its kind."""
    scenario = simulated_host.scenario
    trust, port = trust_of(simulated_host), simulated_host.port
    for fault, kind in (
        (vim.fault.InvalidLogin(msg=f"Cannot log in with {secret}."), LoginFailed),
        (vmodl.fault.SystemError(msg=f"bad value {secret}", reason=secret), ControlError),
    ):
        scenario.call_errors["Login"] = fault  # type: ignore[assignment]
        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(VixError) as caught,
        ):
            patch.setattr("vdkit.sim.soap.dispatch.fault_named", lambda named: named)
            Session.login(simulated_host.host, port, "root", Secret(secret), trust)
        assert type(caught.value) is kind
        seen: BaseException | None = caught.value
        while seen is not None:
            assert secret != "canary-4711" or secret not in f"{seen!r} {seen}"
            seen = seen.__cause__ or seen.__context__


def _refusals(host: SimulatedHost) -> object:
    """Counts the log-ins that the host refuses from now on."""
    assert host.world is not None
    manager = host.world.find(vim.SessionManager(host.world.manager_id("ha-sessionmgr", "SessionManager")))
    assert manager is not None
    original = type(manager).log_in  # type: ignore[attr-defined]
    count = [0]

    def log_in(self: object, call: object) -> object:
        count[0] += 1
        return original(self, call)

    log_in.__dict__.update(original.__dict__)
    manager.log_in = log_in.__get__(manager)  # type: ignore[attr-defined]
    return lambda: count[0]


def test_two_hours_of_reading_and_the_session_still_works_at_the_end(
    simulated_host_factory: HostFactory,
) -> None:
    """The host's clock goes on for two hours without a call; the end of the job logs in again by itself."""
    clock = ManualClock()
    host = simulated_host_factory(clock=clock)
    with login(host) as session:
        vm = find_machine(session, "vm1")
        taken = snapshots.create(session, vm, "vdkit long", "vdkit:long")
        with open_remote(session, vm, vm.disks[0].file, retry=Retry(sleep=lambda s: None)) as disk:
            for _ in range(8):
                disk.read_into(0, bytearray(1 << 20))
                clock.advance(900.0)
        assert open_sessions(host) <= 1
        snapshots.remove(session, find_machine(session, "vm1"), taken.moref)
        assert list(host.machine("vm1").snapshots()) == []


# -- the service is away -----------------------------------------------------------------------------


def test_a_restart_is_waited_out_by_what_reads_and_told_by_what_changes(
    simulated_host_factory: HostFactory,
) -> None:
    host = simulated_host_factory(personality="vcenter")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            host.scenario.proxy_status = None

    with login(host, sleep=pause) as session:
        vm = list_machines(session)[0]
        host.scenario.proxy_status = 503
        assert list_machines(session) == [vm]
        assert pauses == [0.5, 1.0, 2.0, 4.0]
        host.scenario.proxy_status = 503
        machine = session.managed(vim.VirtualMachine, vm.moref)
        with pytest.raises(ConnectFailed) as caught:
            session.call("rename vm1", lambda: machine.Rename_Task("other"))
        one_line(caught.value, "rename vm1", "503", "starting or overloaded")
        assert len(pauses) == 4
        host.scenario.proxy_status = None
        assert host.machine("vm1").name == "vm1"


def test_patience_ends(simulated_host: SimulatedHost) -> None:
    pauses: list[float] = []
    with login(simulated_host, sleep=pauses.append, patience=20.0) as session:
        simulated_host.scenario.proxy_status = 503
        with pytest.raises(ConnectFailed, match="not available"):
            list_machines(session)
        assert 0 < sum(pauses) <= 20.0
        simulated_host.scenario.proxy_status = None


def test_a_whole_restart(simulated_host_factory: HostFactory) -> None:
    scenario = Scenario(restart_after_requests=12, restart_seconds=0.2)
    host = simulated_host_factory(scenario=scenario)
    with Session.login(host.host, host.port, host.user, host.password, trust_of(host)) as session:
        for _ in range(10):
            assert len(list_machines(session)) == 1


@pytest.mark.parametrize(
    ("status", "kind", "part"),
    [
        (407, ProtocolError, "without a proxy"),
        (403, ProtocolError, "proxy or firewall"),
        (502, ConnectFailed, "does not reach the host"),
        (503, ConnectFailed, "management service is not available"),
        (504, ConnectFailed, "does not reach the host"),
        (200, ProtocolError, "vSphere host"),
    ],
)
def test_what_a_proxy_answers(
    simulated_host: SimulatedHost, status: int, kind: type[VixError], part: str
) -> None:
    simulated_host.scenario.proxy_status = status
    with pytest.raises(kind) as caught:
        login(simulated_host)
    assert type(caught.value) is kind
    one_line(caught.value, f"{simulated_host.host}:{simulated_host.port}", part)


def test_a_data_port_that_vcenter_named_and_nobody_answers(simulated_host_factory: HostFactory) -> None:
    """Row 21 of our users' threads: which host, which port, and that vCenter chose it."""
    host = simulated_host_factory(personality="vcenter", scenario=Scenario(ticket_port=1))
    with login(host) as session:
        vm = find_machine(session, "vm1")
        session_host = session.host
        with pytest.raises(ConnectionRefused) as caught:
            open_remote(session, vm, vm.disks[0].file, retry=Retry(attempts=1, sleep=lambda s: None))
        one_line(caught.value, f"{session_host}:1", "TCP port 1", "firewall")


def test_the_host_that_vcenter_named_is_told_from_vcenter(simulated_host_factory: HostFactory) -> None:
    scenario = Scenario(ticket_port=1)
    host = simulated_host_factory(personality="vcenter", hosts=2, scenario=scenario)
    with login(host) as session:
        vm = find_machine(session, "vm1")
        with pytest.raises(ConnectionRefused) as caught:
            open_remote(session, vm, vm.disks[0].file, retry=Retry(attempts=1, sleep=lambda s: None))
        text = str(caught.value)
        one_line(caught.value, ":1: ", f"({session.where} named 127.0.0.", "as the place of the disk")
        assert text.count("as the place of the disk") == 1


def test_a_vcenter_at_an_ipv4_address_names_a_host_at_an_ipv6_address(
    simulated_host_factory: HostFactory,
) -> None:
    host = simulated_host_factory(personality="vcenter")
    with Relay(host.host, host.nfc_port, listen="::1") as relay, login(host) as session:
        assert host.world is not None
        (moref, port), *_ = host.world.data_ports.items()
        for address in ("::1", "[::1]"):
            host.world.data_ports[moref] = replace(port, address=address, port=relay.port)
            vm = find_machine(session, "vm1")
            with open_remote(session, vm, vm.disks[0].file) as disk:
                disk.read_into(0, bytearray(512))
    assert relay.passed_to_server > 1000


@pytest.mark.parametrize(
    ("field", "part"),
    [("hosts_in_maintenance", "maintenance"), ("hosts_disconnected", "not connected to vCenter")],
)
def test_a_host_that_is_in_maintenance_or_lost(
    simulated_host_factory: HostFactory, field: str, part: str
) -> None:
    host = simulated_host_factory(personality="vcenter")
    name = host.inventory.places.hosts[0].name
    setattr(host.scenario, field, frozenset({name}))
    with login(host) as session:
        vm = find_machine(session, "vm1")
        with pytest.raises(ControlError) as caught:
            open_remote(session, vm, vm.disks[0].file)
        one_line(caught.value, "vm1", part)


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        (
            vim.fault.InvalidLogin(msg="The maximum number of sessions has been exceeded."),
            "limit of sessions",
        ),
        (vmodl.fault.SystemError(msg="Too many sessions", reason="x"), "limit of sessions"),
        (vim.fault.InvalidLogin(msg="The account of the user is locked."), "is locked"),
        (vim.fault.InvalidLogin(msg="incorrect user name or password"), "that they have locked"),
    ],
)
def test_refusals_that_only_words_tell_apart(fault: Exception, part: str) -> None:
    error = translate(fault, where="vc:443", what="log in as 'x'")
    assert type(error) is LoginFailed
    one_line(error, "vc:443", part)


def test_an_expired_certificate_says_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = certificates.datetime

    class Later(real.datetime):  # type: ignore[name-defined,misc]
        @classmethod
        def now(cls, tz: object = None) -> object:
            return real.datetime.now(real.UTC) + real.timedelta(days=30)

    shifted = SimpleNamespace(datetime=Later, timedelta=real.timedelta, UTC=real.UTC)
    with monkeypatch.context() as patched:
        patched.setattr(certificates, "datetime", shifted)
        future = certificates.make_certificate()
    file = tmp_path / "ca.pem"
    file.write_text(future.pem)
    with SimulatedHost([], certificate=future) as host, pytest.raises(VixError) as caught:
        Session.login("localhost", host.port, host.user, host.password, Trust(ca_file=str(file)))
    one_line(caught.value, "not yet valid", "clocks")


def test_any_user_and_password_clone_a_disk(simulated_host_factory: HostFactory, tmp_path: Path) -> None:
    """Row E11 of VDDK 6.0's release notes: an at-sign in the password broke Clone."""
    user, password = "DOM\\us er@x", "p@ss:/?#[]&<>\"' %41;{}`$ü€😀"
    host = simulated_host_factory(user=user, password=password)
    machine = host.machine("vm1")
    machine.power_on()
    machine.disk(2000).guest().write_from(0, b"\xa5" * (1 << 20))
    machine.power_off()
    params = ConnectParams(host.host, user, Secret(password), trust_of(host), "vm1", port=host.port)
    with connect(params) as source, connect() as local:
        assert source.vm is not None
        target = tmp_path / "clone.vmdk"
        local.clone(target, source, source.vm.disks[0].file, CreateParams())
        with local.open(target) as disk:
            found = bytearray(1 << 20)
            disk.read_into(0, found)
    assert bytes(found) == b"\xa5" * (1 << 20)


# -- configuration -----------------------------------------------------------------------------------


def test_a_configuration_bounds_the_waits_and_says_what_has_no_effect(simulated_host: SimulatedHost) -> None:
    text = (
        "vixDiskLib.nfc.RequestTimeoutMs=250\nvixDiskLib.nfc.AcceptTimeoutMs=1000\n"
        "vixDiskLib.ssl.verifyCertificates=0\n"
    )
    configuration = parse_configuration(text)
    host = simulated_host
    wrong = Trust(sha256="AB" * 32)
    with pytest.raises(VixError, match="not the expected one"):
        connect(
            ConnectParams(host.host, host.user, host.password, wrong, "vm1", port=host.port),
            configuration=configuration,
        )
    params = ConnectParams(host.host, host.user, host.password, trust_of(host), "vm1", port=host.port)
    with connect(params, configuration=configuration) as connection:
        assert any("verified all the same" in note for note in connection.notes)
        host.scenario.call_seconds = {"CurrentTime": 1.5}
        assert connection.session is not None
        with pytest.raises((DeadlineExceeded, ConnectionLost)) as caught:
            connection.session.call("ask the time", connection.session._current_time)
        one_line(caught.value, f":{host.port}", "ask the time")
        host.scenario.call_seconds = {}
