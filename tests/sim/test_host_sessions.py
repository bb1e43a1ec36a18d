"""Logging in and out of the simulated host, expiry, and what an account may not do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pyVim.connect import SmartConnect
from pyVmomi import vim, vmodl
from simclients import envelope, find_vm, logged_in, post, soap_login

from vdkit.sim.clock import ManualClock
from vdkit.sim.host import SimulatedHost

Factory = Callable[..., SimulatedHost]
CURRENT_TIME = envelope(
    '<CurrentTime xmlns="urn:vim25"><_this type="ServiceInstance">ServiceInstance</_this></CurrentTime>'
)


def try_login(host: SimulatedHost, user: str, password: str) -> None:
    pin = host.thumbprint_sha256.replace(":", "")
    SmartConnect(host=host.host, port=host.port, user=user, pwd=password, thumbprint=pin)


@pytest.mark.parametrize(("user", "password"), [("root", "wrong"), ("nobody", None), ("", ""), ("root", "ü")])
def test_a_wrong_password_is_refused(
    user: str, password: str | None, shared_simulated_host: SimulatedHost
) -> None:
    given = shared_simulated_host.password.reveal() if password is None else password
    with pytest.raises(vim.fault.InvalidLogin) as caught:
        try_login(shared_simulated_host, user, given)
    assert caught.value.msg == "Cannot complete login due to an incorrect user name or password."


def test_logging_in_can_be_refused(simulated_host: SimulatedHost) -> None:
    simulated_host.scenario.login_refused = True
    with pytest.raises(vim.fault.InvalidLogin):
        try_login(simulated_host, "root", simulated_host.password.reveal())


def test_the_cookie_is_as_hosts_send_it(shared_simulated_host: SimulatedHost) -> None:
    cookie = soap_login(shared_simulated_host)
    name, _, value = cookie.partition("=")
    assert name == "vmware_soap_session"
    assert value.startswith('"') and value.endswith('"') and len(value) > 40
    for sent in (cookie, cookie.replace('"', ""), f"other=1; {cookie}", f"{cookie}; $Path=/"):
        status, text, _ = post(shared_simulated_host, CURRENT_TIME, {"Cookie": sent})
        assert status == 200, text


def test_without_a_session_only_the_door_is_open(shared_simulated_host: SimulatedHost) -> None:
    for cookie in ({}, {"Cookie": 'vmware_soap_session="0000"'}, {"Cookie": "vmware_soap_session"}):
        status, text, _ = post(shared_simulated_host, CURRENT_TIME, cookie)
        assert status == 500
        assert "The session is not authenticated." in text
        assert "NotAuthenticatedFault" in text
    content = CURRENT_TIME.replace(b"CurrentTime", b"RetrieveServiceContent")
    status, text, _ = post(shared_simulated_host, content)
    assert (status, "HostAgent" in text) == (200, True)


def test_logout_ends_the_session(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service:
        manager = service.RetrieveContent().sessionManager
        session = manager.currentSession
        assert manager.SessionIsActive(session.key, "root")
        assert [one.key for one in manager.sessionList] == [session.key]
        vm = find_vm(service)
        manager.Logout()
        with pytest.raises(vim.fault.NotAuthenticated):
            _ = vm.name


def test_an_idle_session_expires(simulated_host_factory: Factory) -> None:
    clock = ManualClock()
    host = simulated_host_factory(clock=clock)
    host.scenario.session_idle_seconds = 600
    with logged_in(host) as service:
        for _ in range(3):
            clock.advance(599)
            service.CurrentTime()
        clock.advance(601)
        with pytest.raises(vim.fault.NotAuthenticated):
            service.CurrentTime()


def test_all_sessions_can_be_ended(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service:
        simulated_host.expire_sessions()
        with pytest.raises(vim.fault.NotAuthenticated):
            service.CurrentTime()


def test_views_belong_to_their_session(shared_simulated_host: SimulatedHost) -> None:
    with logged_in(shared_simulated_host) as one, logged_in(shared_simulated_host) as other:
        content = one.RetrieveContent()
        view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
        stolen = vim.view.ContainerView(view._moId, other._stub)
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            _ = stolen.view


def test_a_privilege_may_be_missing(simulated_host: SimulatedHost) -> None:
    simulated_host.scenario.missing_privileges = frozenset({"VirtualMachine.State.CreateSnapshot"})
    with logged_in(simulated_host) as service:
        with pytest.raises(vim.fault.NoPermission) as caught:
            find_vm(service).CreateSnapshot("s", None, False, False)
        assert caught.value.privilegeId == "VirtualMachine.State.CreateSnapshot"


def test_the_password_is_in_no_representation(shared_simulated_host: SimulatedHost) -> None:
    assert shared_simulated_host.password.reveal() not in repr(shared_simulated_host) + repr(
        vars(shared_simulated_host)
    )
