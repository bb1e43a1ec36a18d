"""Logging in to the simulated host, staying logged in, and what is said when that fails."""

from __future__ import annotations

import logging
import socket
import threading
import traceback
from pathlib import Path

import pytest

from vdkit.errors import (
    Closed,
    ConnectionLost,
    ConnectionRefused,
    DeadlineExceeded,
    HostNotFound,
    LoginFailed,
    NoPrivilege,
    ProtocolError,
    SessionExpired,
    TrustError,
    UsageError,
    VixError,
)
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.sim.certificates import Certificate, make_certificate
from vdkit.sim.host import SimulatedHost
from vdkit.testing.fixtures import HostFactory, make_host
from vdkit.vsphere import snapshots
from vdkit.vsphere.inventory import list_machines
from vdkit.vsphere.session import Session

NASTY = "p&<>\"'@\\ ü€😀 %41;{}`$"


def login(server: SimulatedHost, **changes: object) -> Session:
    arguments: dict[str, object] = {
        "host": server.host,
        "port": server.port,
        "user": server.user,
        "password": server.password,
        "trust": Trust(sha256=server.thumbprint_sha256),
        "sleep": lambda seconds: None,
        **changes,
    }
    return Session.login(**arguments)  # type: ignore[arg-type]


def one_line(error: VixError, *parts: str) -> None:
    text = str(error)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize("personality", ["esx", "vcenter"])
@pytest.mark.parametrize("pin", ["sha1", "sha256"])
def test_login_by_thumbprint(simulated_host_factory: HostFactory, personality: str, pin: str) -> None:
    host = simulated_host_factory(personality=personality)
    trust = Trust(**{pin: getattr(host, f"thumbprint_{pin}")})
    with login(host, trust=trust) as session:
        assert session.about.is_vcenter == (personality == "vcenter")
        assert len(list_machines(session)) == 1
    session.close()
    with pytest.raises(Closed):
        list_machines(session)


def test_login_by_certificate_and_by_authority(shared_simulated_host: SimulatedHost, tmp_path: Path) -> None:
    host = shared_simulated_host
    pem = host.certificate.pem
    with login(host, trust=Trust(certificate=pem)) as session:
        assert session.about.version
    # It signs itself, for localhost among others: with a file of authorities the name is checked too.
    file = tmp_path / "ca.pem"
    file.write_text(pem)
    with login(host, trust=Trust(ca_file=str(file)), host="localhost") as session:
        assert session.about.version


def test_an_authority_for_another_name_is_refused(tmp_path: Path) -> None:
    certificate = make_certificate("other", names=("other",), addresses=())
    file = tmp_path / "ca.pem"
    file.write_text(certificate.pem)
    with make_host(tmp_path / "ds", certificate, machines=0) as host:
        with pytest.raises(TrustError) as caught:
            login(host, trust=Trust(ca_file=str(file)))
        one_line(caught.value, f":{host.port}", "not trusted", "thumbprint")


def test_ipv6(simulated_host_factory: HostFactory) -> None:
    host = simulated_host_factory(listen="::1")
    for name in ("::1", "[::1]"):
        with login(host, host=name) as session:
            assert session.where == f"[::1]:{host.port}"
            assert list_machines(session)


def test_any_characters_in_user_and_password(simulated_host_factory: HostFactory) -> None:
    host = simulated_host_factory(user="DOM\\us&er@<x>", password=NASTY)
    with login(host) as session:
        assert list_machines(session)
    with pytest.raises(LoginFailed):
        login(host, password=Secret(NASTY + "x"))
    for bad in ("\x01", "\r", "\ud800", "\uffff"):
        with pytest.raises(UsageError, match="control character") as caught:
            login(host, password=Secret("canary" + bad))
        assert "canary" not in str(caught.value)


def test_a_wrong_pin_stops_before_the_password(simulated_host: SimulatedHost) -> None:
    """The host must not have seen a login, even of the right password."""
    for trust in (Trust(sha256="AB" * 32), Trust(sha1="AB" * 20)):
        with pytest.raises(TrustError) as caught:
            login(simulated_host, trust=trust)
        one_line(caught.value, f":{simulated_host.port}", "AB:AB", "vdkit fingerprint")
    assert simulated_host.world is not None
    assert simulated_host.world.sessions.all() == []


def test_a_pin_is_checked_although_an_authority_is_trusted(
    simulated_host: SimulatedHost, tmp_path: Path
) -> None:
    """pyVmomi itself looks at a thumbprint only when the usual verification has failed."""
    file = tmp_path / "ca.pem"
    file.write_text(simulated_host.certificate.pem)
    with pytest.raises(TrustError):
        login(simulated_host, trust=Trust(sha256="AB" * 32, ca_file=str(file)))


def test_wrong_password_is_one_line_without_secrets(
    simulated_host: SimulatedHost, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = Secret("canary-" + str(4711))
    with pytest.raises(LoginFailed) as caught:
        login(simulated_host, password=wrong)
    one_line(caught.value, f"{simulated_host.host}:{simulated_host.port}", "'root'", "password")
    printed = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caplog.text
    assert "canary-4711" not in printed


def test_no_secret_in_a_session(simulated_host: SimulatedHost) -> None:
    with login(simulated_host) as session:
        assert simulated_host.password.reveal() not in repr(session) + str(vars(session))


def test_closed_port_unknown_name_and_silent_host() -> None:
    trust, secret = Trust(sha1="AB" * 20), Secret("x")
    with pytest.raises(ConnectionRefused) as refused:
        Session.login("127.0.0.1", 1, "root", secret, trust)
    one_line(refused.value, "127.0.0.1:1", "TCP 1")
    with pytest.raises(HostNotFound) as unknown:
        Session.login("no-such-host.invalid", 443, "root", secret, trust)
    one_line(unknown.value, "no-such-host.invalid:443", "check the name")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(DeadlineExceeded) as late:
            Session.login("127.0.0.1", port, "root", secret, trust, timeout=0.2)
        one_line(late.value, f"127.0.0.1:{port}", f"TCP {port}")


def test_a_port_that_is_not_https() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1)
                connection.sendall(b"220 something else\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with pytest.raises((ProtocolError, ConnectionLost)) as caught:
                Session.login(
                    "127.0.0.1", server.getsockname()[1], "root", Secret("x"), Trust(sha1="AB" * 20)
                )
            one_line(caught.value, f":{server.getsockname()[1]}")
        finally:
            thread.join()


def test_an_expired_session_is_renewed_for_reads_and_changes(simulated_host: SimulatedHost) -> None:
    with login(simulated_host) as session:
        vm = list_machines(session)[0]
        simulated_host.expire_sessions()
        assert list_machines(session) == [vm]
        simulated_host.expire_sessions()
        taken = snapshots.create(session, vm, "vdkit x", snapshots.tag("r"))
        simulated_host.expire_sessions()
        snapshots.remove(session, vm, taken.moref)
        assert snapshots.list_snapshots(session, vm) == ()


def test_a_session_that_cannot_be_renewed_names_the_reason(simulated_host: SimulatedHost) -> None:
    with login(simulated_host) as session:
        simulated_host.expire_sessions()
        simulated_host.scenario.login_refused = True
        with pytest.raises(LoginFailed) as caught:
            list_machines(session)
        one_line(caught.value, f":{simulated_host.port}", "password")


def test_a_broken_connection_is_read_again(simulated_host: SimulatedHost) -> None:
    with login(simulated_host) as session:
        assert list_machines(session)
        simulated_host.break_connections()
        assert list_machines(session)


def test_the_session_is_kept_alive_while_nothing_is_asked(simulated_host: SimulatedHost) -> None:
    called = threading.Event()
    with login(simulated_host, keep_alive=0.01) as session:
        real = session._current_time

        def noticed() -> object:
            try:
                return real()
            finally:
                called.set()

        session._current_time = noticed  # type: ignore[method-assign]
        assert called.wait(30)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vdkit session")]


def test_a_host_that_went_away_does_not_stop_closing(
    tmp_path: Path, simulated_certificate: Certificate, no_leaks: None
) -> None:
    with make_host(tmp_path / "ds", simulated_certificate, machines=1) as host:
        session = login(host)
    session.close()
    session.close()


def test_a_missing_privilege_is_named(simulated_host: SimulatedHost) -> None:
    privilege = "VirtualMachine.State.CreateSnapshot"
    simulated_host.scenario.missing_privileges = frozenset({privilege})
    with login(simulated_host) as session:
        vm = list_machines(session)[0]
        with pytest.raises(NoPrivilege) as caught:
            snapshots.create(session, vm, "vdkit x", snapshots.tag("r"))
        one_line(caught.value, privilege, vm.moref, "role")


def test_session_expired_is_what_remains_when_the_host_forgets_at_once(simulated_host: SimulatedHost) -> None:
    simulated_host.scenario.call_errors = {"CreateContainerView": "vim.fault.NotAuthenticated"}
    with login(simulated_host) as session, pytest.raises(SessionExpired) as caught:
        list_machines(session)
    one_line(caught.value, f":{simulated_host.port}", "log in again")
