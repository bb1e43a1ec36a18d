"""How the simulated host behaves: healthy by default, and one field for each thing that may go wrong.

The fields may be changed while the host runs; they hold from the next call on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vdkit.sim.nfc_faults import NfcFaults

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
    api_version: str = "8.0.3.0"

    # -- sessions and privileges
    #: No password is right.
    login_refused: bool = False
    #: None keeps sessions for ever.
    session_idle_seconds: float | None = DEFAULT_IDLE_SECONDS
    #: Privileges that the account lacks (``VirtualMachine.State.CreateSnapshot``): NoPermission.
    missing_privileges: frozenset[str] = frozenset()

    # -- calls and tasks
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
    #: Areas in one answer of QueryChangedDiskAreas; None for the model's own number.
    areas_per_page: int | None = None

    # -- tickets and data
    #: Seconds that a ticket waits to be used.
    ticket_seconds: float = 60.0
    #: Fault of the calls that issue tickets.
    ticket_error: str | None = None
    #: HTTP status that every request below ``/folder`` is answered with.
    folder_status: int | None = None
    #: Faults of the data port, for the connections that use tickets issued from now on.
    nfc: NfcFaults | None = None
    #: Bytes of requests that have come to one host's data port and are not yet answered, over all sessions.
    #: Requests beyond that are refused. None: no limit, and nothing is counted.
    nfc_memory_limit: int | None = None
    #: Connections of one host's data port at once.
    nfc_connection_limit: int | None = None
