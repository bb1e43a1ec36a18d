"""How the simulated host behaves: healthy by default, and one field for each thing that may go wrong.

The fields may be changed while the host runs; they hold from the next call on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vdkit.sim.nfc_faults import NfcFaults

#: The API version of a host that nobody asked for another.
DEFAULT_API_VERSION = "8.0.3.0"
#: Objects in one answer of RetrievePropertiesEx if the client does not ask for fewer.
DEFAULT_PAGE_OBJECTS = 100
#: Seconds without a call after which a real host ends a session.
DEFAULT_IDLE_SECONDS = 1800.0


@dataclass
class Scenario:
    """Faults are named as the API names them, for instance ``vim.fault.FileFault`` or ``NotSupported``.

    Methods are named by their WSDL names, for instance ``RemoveSnapshot_Task``.
    """

    #: The API that the host says it has, and writes its replies for.
    api_version: str = DEFAULT_API_VERSION

    # -- sessions and privileges
    #: No password is right.
    login_refused: bool = False
    #: None keeps sessions for ever.
    session_idle_seconds: float | None = DEFAULT_IDLE_SECONDS
    #: Calls after which a session ends; None for no end.
    session_calls: int | None = None
    #: Log-ins after which the password is another one; sessions that are open go on.
    password_logins: int | None = None
    #: Privileges that the account lacks (``VirtualMachine.State.CreateSnapshot``): NoPermission.
    missing_privileges: frozenset[str] = frozenset()
    #: The free ESXi licence: calls that need more than reading privileges are refused (RestrictedVersion).
    free_licence: bool = False

    # -- the management port
    #: Every request is answered with this HTTP status and a page of HTML, as by a proxy in between.
    proxy_status: int | None = None
    #: After this many requests the management service restarts: connections break, the port refuses new ones
    #: for so many seconds, and the sessions are gone. Once.
    restart_after_requests: int | None = None
    restart_seconds: float = 0.0

    # -- calls and tasks
    #: Seconds that a call takes, by method.
    call_seconds: dict[str, float] = field(default_factory=dict)
    #: Fault raised by the call itself, by method.
    call_errors: dict[str, str] = field(default_factory=dict)
    #: Fault that the task ends with, by method.
    task_errors: dict[str, str] = field(default_factory=dict)
    #: Seconds that a task takes before it does its work, by method; those not named take none.
    task_seconds: dict[str, float] = field(default_factory=dict)
    #: Objects in one answer of RetrievePropertiesEx; None for no limit of the host's own.
    page_objects: int | None = DEFAULT_PAGE_OBJECTS

    #: Names of machines that a storage vMotion moves: a RelocateVM_Task of theirs runs meanwhile.
    relocating: frozenset[str] = frozenset()

    # -- ESXi hosts, by name
    #: Hosts in maintenance mode: no tickets for their machines, which do not start.
    hosts_in_maintenance: frozenset[str] = frozenset()
    #: Hosts that their vCenter has lost.
    hosts_disconnected: frozenset[str] = frozenset()

    # -- snapshots
    #: Seconds that each merge of a consolidation takes.
    consolidation_seconds: float = 0.0
    #: Merges fail: the snapshot is gone, its files stay, the machine needs consolidation.
    consolidation_fails: bool = False
    #: The guest cannot be quiesced: ApplicationQuiesceFault.
    quiesce_fails: bool = False

    # -- change tracking
    #: Fault of QueryChangedDiskAreas (``InvalidArgument`` names startOffset).
    cbt_error: str | None = None
    #: It comes only from this offset on, in bytes: a query that fails half-way.
    cbt_error_offset: int = 0
    #: A disk that has grown past a multiple of 128 GiB is answered for only up to there, as before ESXi 6.0.
    cbt_growth_fault: bool = False
    #: Areas in one answer of QueryChangedDiskAreas; None for the model's own number.
    areas_per_page: int | None = None

    # -- tickets and data
    #: Seconds that a ticket waits to be used.
    ticket_seconds: float = 60.0
    #: Fault of the calls that issue tickets.
    ticket_error: str | None = None
    #: Port that tickets name instead of that of the data port: nobody may listen there.
    ticket_port: int | None = None
    #: HTTP status that every request below ``/folder`` is answered with.
    folder_status: int | None = None
    #: Faults of the data port, for the connections that use tickets issued from now on.
    nfc: NfcFaults | None = None
    #: Bytes of requests that have come to one host's data port and are not yet answered, over all sessions.
    #: Requests beyond that are refused. None: no limit, and nothing is counted.
    nfc_memory_limit: int | None = None
    #: The same for ESXi hosts, by name, that have more or less than the others.
    nfc_memory_limits: dict[str, int] = field(default_factory=dict)
    #: Connections of one host's data port at once.
    nfc_connection_limit: int | None = None
    #: After this many reads over all data ports, the machine that is being read moves to the next host. Once.
    migrate_after_reads: int | None = None
    #: A machine that moves to another host loses its disk sessions; otherwise they go on.
    migration_breaks_sessions: bool = False
