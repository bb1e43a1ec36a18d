"""Call after call of a backup to a vCenter goes wrong, in one of several ways.

A point that is there is right; what is left over has been told, and is taken away by ``cleanup``; the next
backup is right.
"""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from job_helpers import Guest, Listener, new_repository, point_content, session_of

from vdkit.backup import verify
from vdkit.errors import ConnectionLost, VixError
from vdkit.jobs.backup import backup_machine
from vdkit.jobs.cleanup import Choice, clean_up
from vdkit.net.trust import Trust
from vdkit.sim.host import SimulatedHost
from vdkit.sim.https import HttpRequest, HttpResponse
from vdkit.sim.site import Site
from vdkit.sim.snapshot import DiskSpec
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere import snapshots
from vdkit.vsphere.session import Session

#: ``refused``: a fault, nothing is done. ``unheard``: it breaks before. ``unanswered``: it breaks after.
#: ``restarted``: as that, and the service knows no session and no task any more. ``gone``: from then on.
WAYS = ("refused", "unheard", "unanswered", "restarted", "gone")

#: Calls from one that goes wrong to the next: with 1, all of them do, which has been tried and takes long.
STEP = 2


@dataclass
class Trouble:
    """Between the client and the host."""

    host: SimulatedHost | None = None
    at: int = 0
    way: str = ""
    calls: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, at: int, way: str) -> None:
        self.at, self.way, self.calls = at, way, 0

    def serve(self, site: Site, request: HttpRequest) -> HttpResponse:
        with self.lock:
            self.calls += 1
            number = self.calls
        if not self.at or number < self.at or (number > self.at and self.way != "gone"):
            return SERVE(site, request)
        if self.way == "refused":
            return HttpResponse(500, body=FAULT)
        if self.way in ("unanswered", "restarted"):
            SERVE(site, request)
        if self.way == "restarted":
            assert self.host is not None
            assert self.host.world is not None
            settle(self.host)
            self.host.world.sessions.close_all()
            self.host.world.tasks.forget()
        raise ConnectionLost("the connection breaks here")


SERVE = Site.serve
FAULT = b"""<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><soapenv:Fault>
<faultcode>ServerFaultCode</faultcode><faultstring>A general system error occurred</faultstring>
<detail><RuntimeFaultFault xmlns="urn:vim25" xsi:type="SystemError"><reason>planned</reason>
</RuntimeFaultFault></detail></soapenv:Fault></soapenv:Body></soapenv:Envelope>"""


def impatient(host: SimulatedHost) -> Session:
    """A host that is gone stays gone here."""
    trust = Trust(sha256=host.thumbprint_sha256)
    return Session.login(
        host.host, host.port, host.user, host.password, trust, patience=2.0, sleep=lambda seconds: None
    )


def settle(host: SimulatedHost) -> None:
    """Work that was asked for goes on after whoever asked has gone; until it has ended."""
    assert host.world is not None
    deadline = time.monotonic() + 30
    while any(not task.done for task in list(host.world.tasks._tasks.values())):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_each_call_of_a_backup_goes_wrong_once(
    simulated_host_factory: HostFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "REMOVE_BUSY_DEADLINE", 0.0)
    trouble = Trouble()
    monkeypatch.setattr(Site, "serve", lambda site, request: trouble.serve(site, request))
    host = simulated_host_factory(machines=0, personality="vcenter")
    machine = host.inventory.create_machine("vm1", "datastore1", [DiskSpec(capacity=1 << 20)])
    host.power_on_all()
    guest, repository = Guest(host), new_repository(tmp_path / "repo")
    key = ("VirtualMachine", machine.moref)
    trouble.host = host
    assert host.world is not None
    wanted: dict[str, bytes] = {}
    died = 0
    for at in itertools.count(0, STEP):
        guest.scribble(2, 20_000)
        now, told = guest.now(), ""
        try:
            with impatient(host) as session:
                trouble.start(at, WAYS[at // STEP % len(WAYS)])
                try:
                    told = " ".join(backup_machine(session, "vm1", repository, Listener()).warnings)
                finally:
                    through = trouble.calls < at
                    trouble.start(0, "")
        except VixError as error:
            told = " ".join([str(error), *getattr(error, "__notes__", ())])
            died += 1
        settle(host)
        for point in repository.points():
            if point.id not in wanted:
                wanted[point.id] = now
                assert point_content(repository, point) == now
        left = [*machine.snapshots(), *host.world.disabled.sources(key, "RelocateVM_Task")]
        assert not left or "could not be removed" in told or "stays disabled" in told, (at, left, told)
        if left or machine.consolidation_needed:
            with session_of(host) as session:
                choice = Choice(repositories=(repository,))
                assert clean_up(session, Listener(), choice=choice, remove=True).remaining == 0
        assert list(machine.snapshots()) == [], at
        assert host.world.disabled.sources(key, "RelocateVM_Task") == []
        assert not machine.consolidation_needed
        if through and at:
            break
    assert died > 3
    assert at > 20, "hardly any call was met"
    assert verify(repository).ok
    assert {point.id for point in repository.points()} == set(wanted)
    assert host.internal_errors == []
