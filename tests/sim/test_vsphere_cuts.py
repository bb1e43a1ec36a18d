"""The management connection is cut anywhere: a clear error or a result, and no thread left behind."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_login import logged_in

from vdkit.errors import TransportError, VixError
from vdkit.net.trust import Trust
from vdkit.sim.host import SimulatedHost
from vdkit.testing.relay import Relay
from vdkit.vsphere.inventory import list_machines
from vdkit.vsphere.session import Session


def visit(host: SimulatedHost, relay: Relay) -> int:
    trust = Trust(sha256=host.thumbprint_sha256)
    with Session.login(
        relay.host, relay.port, host.user, host.password, trust, timeout=20, sleep=lambda seconds: None
    ) as session:
        return len(list_machines(session))


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("side", ["cut_to_server", "cut_to_client"])
def test_cuts(shared_simulated_host: SimulatedHost, side: str, reset: bool) -> None:
    host = shared_simulated_host
    before = set(threading.enumerate())

    @settings(max_examples=12)
    @given(st.integers(1, 12_000))
    def run(cut: int) -> None:
        with Relay(host.host, host.port, reset=reset, **{side: cut}) as relay:
            try:
                assert visit(host, relay) == 1
            except VixError as error:
                text = str(error)
                assert "\n" not in text
                assert f"127.0.0.1:{relay.port}" in text
                assert isinstance(error, TransportError), text
                assert host.password.reveal() not in text

    run()
    ours = [t.name for t in set(threading.enumerate()) - before if t.name.startswith("vdkit")]
    assert ours == []


def test_a_connection_that_is_never_cut_too_early(shared_simulated_host: SimulatedHost) -> None:
    with Relay(shared_simulated_host.host, shared_simulated_host.port) as relay:
        assert visit(shared_simulated_host, relay) == 1


def test_many_threads_renew_one_session(simulated_host: SimulatedHost) -> None:
    wrong: list[object] = []
    with logged_in(simulated_host) as session:
        ready = threading.Barrier(5)

        def ask() -> None:
            ready.wait(30)
            for _ in range(6):
                try:
                    if len(list_machines(session)) != 1:
                        wrong.append("count")
                except VixError as error:
                    wrong.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        ready.wait(30)
        for _ in range(5):
            simulated_host.expire_sessions()
        for thread in threads:
            thread.join()
    assert wrong == []
