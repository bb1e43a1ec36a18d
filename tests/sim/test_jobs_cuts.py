"""The data port cut after random byte counts under whole jobs: they go on, and every byte is right."""

from __future__ import annotations

import random
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from job_helpers import Guest, Listener, content_of, new_repository, point_content, session_of, snapshots_left

from vdkit.disklib.local import open_local
from vdkit.jobs.backup import backup_machine
from vdkit.jobs.restore import restore_machine
from vdkit.sim.host import SimulatedHost
from vdkit.testing.fixtures import HostFactory
from vdkit.testing.relay import Relay

#: Fewer in a row than a disk puts up with.
CUTS = 7


class BrokenLine(Listener):
    """The way to the data port: a relay that cuts after some bytes; after each loss another one."""

    def __init__(
        self, host: SimulatedHost, running: ExitStack, direction: str, largest: int, *, reset: bool
    ) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._host = host
        self._running = running
        self._direction = direction
        self._reset = reset
        self._largest = largest
        self._dice = random.Random(f"{direction} {reset}")
        self.left = CUTS
        self._next()

    def _next(self) -> None:
        # Many early, in the handshakes; some in the middle of the data.
        self.left -= 1
        after = self._dice.randrange(1, self._dice.choice([3000, self._largest])) if self.left else None
        relay = Relay(self._host.host, self._host.nfc_port, reset=self._reset, **{self._direction: after})
        self._running.enter_context(relay)
        self._host.scenario.ticket_port = relay.port

    def warning(self, text: str) -> None:
        super().warning(text)
        # Two workers may tell of one loss at once.
        with self._lock:
            if self.left:
                self._next()


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("reset", [False, True])
def test_a_backup_read_over_a_line_that_breaks(
    simulated_host_factory: HostFactory, tmp_path: Path, reset: bool
) -> None:
    host = simulated_host_factory()
    host.power_on_all()
    guest = Guest(host)
    guest.scribble(60)
    repository = new_repository(tmp_path / "repo")
    with ExitStack() as running, session_of(host) as session:
        line = BrokenLine(host, running, "cut_to_client", 4_000_000, reset=reset)
        point = backup_machine(session, "vm1", repository, line, sleep=lambda seconds: None).point
    assert line.left == 0
    assert all("127.0.0.1:" in text and "trying again" in text for text in line.warnings)
    assert point_content(repository, point) == guest.now()
    assert snapshots_left(host) == []


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize(("direction", "largest"), [("cut_to_client", 6000), ("cut_to_server", 4_000_000)])
def test_a_restore_written_over_a_line_that_breaks(
    simulated_host_factory: HostFactory, tmp_path: Path, direction: str, largest: int
) -> None:
    host = simulated_host_factory()
    host.power_on_all()
    guest = Guest(host)
    guest.scribble(60)
    repository = new_repository(tmp_path / "repo")
    with session_of(host) as session:
        point = backup_machine(session, "vm1", repository, Listener()).point
        with ExitStack() as running:
            line = BrokenLine(host, running, direction, largest, reset=False)
            restore_machine(session, repository, point, "back", line, sleep=lambda seconds: None)
    assert len(line.warnings) >= 2
    with open_local(tmp_path / "simulated-host-1" / "back" / "back.vmdk") as disk:
        assert content_of(disk) == guest.now()
