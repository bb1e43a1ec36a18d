"""The network transports in combination: each row ends with the right bytes or with the right error.

Rows are made so that any two values meet (``pairwise``), and every fault meets every transport, both ways of
access, and both of its forms: it passes after the first failure, or it stays. The table below says how each
ends. A disk is opened as every command opens it: log in, find the machine, ask for a ticket, open, and open
again after a failure.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import pytest
from simulated_login import one_line, the_machine

from pairwise import Row, all_pairs
from vdkit.block.device import WritableDevice
from vdkit.disklib import remote
from vdkit.disklib.remote import Retry, open_remote
from vdkit.errors import (
    ConnectionLost,
    ConnectionRefused,
    DeadlineExceeded,
    HostError,
    HostOutOfMemory,
    LoginFailed,
    ProtocolError,
    SessionExpired,
    TicketRefused,
    TrustError,
    VixError,
)
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.sim import diskaccess
from vdkit.sim.certificates import make_certificate
from vdkit.sim.host import SimulatedHost
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.testing.fixtures import HostFactory
from vdkit.testing.relay import Relay
from vdkit.transports.nfc import DEFAULT_WINDOW, Timeouts
from vdkit.vsphere.session import Session

KIB = 1 << 10
#: What is moved: data that does not shrink, beside zeroes that do, at odd places of a disk of 64 MiB.
PIECES = ((0, 384 * KIB), (5120 * KIB + 512, 200 * KIB), (65_024 * KIB, 512 * KIB))
DATA = [random.Random(offset).randbytes(length // 2) + bytes(length // 2) for offset, length in PIECES]
HALVES = (slice(0, 1), slice(1, 3))
#: Small ones, so that a window means something.
REQUEST = 128 * KIB
#: Bytes after which a broken line breaks, in whichever direction the data goes: before the first request is
#: done, or when some are, so that what is left becomes less each time.
BREAKS_EARLY = 100_000
BREAKS_LATE = 300_000
#: Messages after which a host falls silent: the disk is open, and nothing comes.
SILENT_AFTER = 11
PATIENT = Timeouts(connect=30, request=60, read=60, write=60, close=10)
IMPATIENT = Timeouts(connect=30, request=60, read=0.4, write=0.4, close=0.4)
ATTEMPTS = 4
OTHER = make_certificate("somebody.else")

#: Name and password of each kind of account; XML and URLs have opinions about some of these characters.
ACCOUNTS = {
    "plain": ("root", "secret"),
    "cookie": ("root", "secret"),
    "odd": ("CORP\\sauv egarde@vsphere.local", "p@ss: wörd\\ <&>\"'€ %41"),
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and how it ends when it passes and when it stays; None for the right bytes."""

    passing: type[VixError] | None
    staying: type[VixError] | None
    nfc: NfcFaults | None = None
    timeouts: Timeouts = PATIENT
    #: Part of the message.
    says: str = ""


FAULTS: dict[str, Fault] = {
    "none": Fault(None, None),
    "cut": Fault(None, ConnectionLost),
    "reset": Fault(None, ConnectionLost),
    "cut again and again": Fault(None, None),
    "port closed": Fault(None, ConnectionRefused),
    "slow": Fault(None, None, NfcFaults(delay=0.001, slow_reads=0.005, slow_reads_every=3)),
    "stuck": Fault(None, DeadlineExceeded, NfcFaults(silent_after_messages=SILENT_AFTER), IMPATIENT),
    "error record": Fault(
        HostError, HostError, NfcFaults(read_error=(13, "medium"), write_error=(13, "medium")), says="medium"
    ),
    "out of memory": Fault(
        None,
        HostOutOfMemory,
        NfcFaults(read_error=(5, "Failed to allocate"), write_error=(5, "Failed to allocate")),
        says="Failed to allocate",
    ),
    "out of memory early": Fault(None, HostOutOfMemory, NfcFaults(classic_error_at=36)),
    "interleaved": Fault(None, None, NfcFaults(chunks_reversed=True, newest_first=True, chunk_size=16 * KIB)),
    "broken record": Fault(ProtocolError, ProtocolError, NfcFaults(bad_magic=True)),
    "ticket refused": Fault(None, TicketRefused, NfcFaults(ticket_refused=True)),
    "ticket expired": Fault(None, TicketRefused),
    "session expired": Fault(None, LoginFailed),
    "wrong certificate": Fault(TrustError, TrustError),
    "second certificate": Fault(TrustError, TrustError, NfcFaults(second_certificate=OTHER)),
}

FIELDS: dict[str, tuple[Any, ...]] = {
    "personality": ("esx", "vcenter"),
    "address": ("127.0.0.1", "::1", "[::1]", "localhost"),
    "account": tuple(ACCOUNTS),
    "mode": ("nbd", "nbdssl"),
    "compression": ("none", "zlib", "skipz", "fastlz", "auto"),
    "window": (1, 8, DEFAULT_WINDOW),
    "access": ("read", "write"),
    "fault": tuple(FAULTS),
    "stays": (False, True),
}


def possible(row: Row) -> bool:
    """What a broken line leaves of the acknowledgements of writes is a matter of chance: not of a table."""
    return row["fault"] != "cut again and again" or row["access"] == "read"


def matrix() -> list[Row]:
    """The pairwise rows, and every fault with every transport, access and form; other fields take turns."""
    rows = all_pairs(FIELDS, possible)
    core = ("mode", "access", "fault", "stays")
    there = {tuple(row[name] for name in core) for row in rows}
    turns = {name: values for name, values in FIELDS.items() if name not in core}
    for number, values in enumerate(product(*(FIELDS[name] for name in core))):
        row: Row = dict(zip(core, values, strict=True))
        if values not in there and possible(row):
            rows.append(row | {name: choice[number % len(choice)] for name, choice in turns.items()})
    return rows


def outcome(row: Row) -> type[VixError] | None:
    """What the table says, and the three things that depend on more than the fault."""
    fault = FAULTS[str(row["fault"])]
    if row["fault"] == "session expired" and row["account"] == "cookie":
        return SessionExpired  # somebody else's session: nobody here can log in again
    if row["fault"] == "second certificate" and row["mode"] == "nbd":
        return None  # data in clear has no second TLS session
    if row["fault"] == "broken record" and row["access"] == "write":
        return None  # a fault of reads only
    return fault.staying if row["stays"] else fault.passing


class Scene:
    """A host in the state that a row asks for."""

    def __init__(self, host: SimulatedHost, row: Row, running: ExitStack) -> None:
        self.host, self.row, self.fault = host, row, FAULTS[str(row["fault"])]
        self._running = running
        self.failures = 0

    def arrange(self) -> None:
        """Before the disk is opened."""
        self.host.scenario.nfc = self.fault.nfc
        match self.row["fault"]:
            case "cut" | "reset" | "cut again and again" as how:
                side = {"read": "cut_to_client", "write": "cut_to_server"}[str(self.row["access"])]
                after = BREAKS_LATE if how == "cut again and again" else BREAKS_EARLY
                self._through(reset=how == "reset", **{side: after})
            case "port closed":
                with Relay(self.host.host, self.host.nfc_port, listen=self.host.host) as gone:
                    self.host.scenario.ticket_port = gone.port
            case "ticket expired":
                self.host.scenario.ticket_seconds = 0.0

    def _through(self, **options: Any) -> None:
        relay = Relay(self.host.host, self.host.nfc_port, listen=self.host.host, **options)
        self.host.scenario.ticket_port = self._running.enter_context(relay).port

    def half_way(self) -> None:
        """Between the two halves of the work."""
        if self.row["fault"] == "session expired":
            self.host.scenario.login_refused = bool(self.row["stays"])
            self.host.expire_sessions()
            self.host.break_data_connections()

    def failed(self, error: VixError, seconds: float) -> None:
        """Told of each failure that will be tried again."""
        self.failures += 1
        if self.row["stays"]:
            return
        if isinstance(error, HostError) and self.host.scenario.nfc:
            # The session goes on, and with it the faults that it began with.
            self.host.break_data_connections()
        self.host.scenario.nfc = None
        self.host.scenario.ticket_seconds = 60.0
        self.host.scenario.ticket_port = None


@contextmanager
def logged_in(host: SimulatedHost, row: Row) -> Iterator[Session]:
    pinned = OTHER.sha256 if row["fault"] == "wrong certificate" else host.thumbprint_sha256
    address, trust = str(row["address"]), Trust(sha256=pinned)
    with ExitStack() as running:
        if row["account"] == "cookie":
            other = running.enter_context(host_session(host, host.host, row))
            cookie = Secret(other.stub.GetSessionId())
            session = Session.from_cookie(address, host.port, cookie, trust, sleep=_at_once)
        else:
            session = host_session(host, address, row, trust)
        yield running.enter_context(session)


def host_session(host: SimulatedHost, address: str, row: Row, trust: Trust | None = None) -> Session:
    user, password = ACCOUNTS[str(row["account"])]
    trust = trust or Trust(sha256=host.thumbprint_sha256)
    return Session.login(address, host.port, user, Secret(password), trust, sleep=_at_once)


def _at_once(seconds: float) -> None:
    """Nobody waits here."""


def work(scene: Scene) -> None:
    """Move the pieces in two halves and compare with what the host's model has."""
    row, host = scene.row, scene.host
    writing = row["access"] == "write"
    if not writing:
        with on_the_host(host, writable=True) as disk:
            disk.write_many(list(zip([offset for offset, _ in PIECES], DATA, strict=True)))
    scene.arrange()
    retry = Retry(attempts=ATTEMPTS, sleep=_at_once, jitter=lambda: 0.0, notify=scene.failed)
    with logged_in(host, row) as session:
        vm = the_machine(session)
        with open_remote(
            session,
            vm,
            vm.disks[0].file,
            writable=writing,
            mode=row["mode"],  # type: ignore[arg-type]
            compression=row["compression"],  # type: ignore[arg-type]
            retry=retry,
            timeouts=scene.fault.timeouts,
        ) as disk:
            found = [bytearray(length) for _, length in PIECES]
            for half in HALVES:
                offsets = [offset for offset, _ in PIECES[half]]
                if writing:
                    disk.write_many(list(zip(offsets, DATA[half], strict=True)))
                else:
                    disk.read_many(list(zip(offsets, map(memoryview, found[half]), strict=True)))
                if half is HALVES[0]:
                    scene.half_way()
    if writing:
        with on_the_host(host, writable=False) as disk:
            disk.read_many(list(zip([offset for offset, _ in PIECES], map(memoryview, found), strict=True)))
    assert [bytes(piece) for piece in found] == DATA


@contextmanager
def on_the_host(host: SimulatedHost, *, writable: bool) -> Iterator[WritableDevice]:
    """The machine's disk as the model has it, past everything that is tested here."""
    machine = host.machine("vm1")
    datastore, name = host.inventory.resolve(machine.disk(2000).file)
    opening = diskaccess.open_for_writing if writable else diskaccess.open_for_reading
    with opening(machine, datastore, name) as disk:
        yield disk  # type: ignore[misc]


def name_of(row: Row) -> str:
    return " ".join(str(row[name]) for name in FIELDS).replace("[", "(").replace("]", ")")


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("row", matrix(), ids=name_of)
def test_matrix(row: Row, simulated_host_factory: HostFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    # How much is in flight is chosen by what the host says; here it is said.
    sized = partial(remote.open_nfc, window=row["window"], request_size=REQUEST, sleep=_at_once)
    monkeypatch.setattr(remote, "open_nfc", sized)
    user, password = ACCOUNTS[str(row["account"])]
    listen = "127.0.0.1" if row["address"] == "localhost" else str(row["address"])
    host = simulated_host_factory(personality=row["personality"], listen=listen, user=user, password=password)
    wanted = outcome(row)
    with ExitStack() as running:
        scene = Scene(host, row, running)
        if wanted is None:
            work(scene)
        else:
            with pytest.raises(wanted) as caught:
                work(scene)
            assert type(caught.value) is wanted
            one_line(caught.value, str(row["address"]).strip("[]"), scene.fault.says)
            assert password not in str(caught.value)
        if wanted is None:
            # What would have stayed was met, and what is no failure was none.
            failing = outcome({**row, "stays": True}) is not None or row["fault"] == "cut again and again"
            assert (scene.failures > 0) == failing
    assert host.internal_errors == []


def test_every_fault_meets_everything() -> None:
    rows = matrix()
    for name in FIELDS.keys() - {"fault"}:
        values = FIELDS[name]
        met = {(row["fault"], row[name]) for row in rows}
        wanted = {(fault, value) for fault, value in product(FAULTS, values)}
        if name == "access":
            wanted = {(fault, value) for fault, value in wanted if possible({"fault": fault, name: value})}
        assert met >= wanted, name
