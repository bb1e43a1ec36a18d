"""Reads the start of machines' disks within a host's budget; run as a program, in a process of its own.

It prints the hash of each. The password comes through standard input.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from vdkit.block.workers import WorkerScope
from vdkit.disklib.remote import open_remote
from vdkit.disklib.resuming import ResumingDisk
from vdkit.net.budget import HostBudgets
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.vsphere.inventory import list_machines
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.session import Session

MIB = 1 << 20
#: Bytes at the start of every disk that are written and read.
USED = 4 * MIB


def opened(session: Session, vm: VirtualMachine, budgets: HostBudgets, **options: Any) -> ResumingDisk:
    return open_remote(session, vm, vm.disks[0].file, mode="nbd", budget=budgets, **options)


def hash_of(disk: ResumingDisk) -> str:
    """All of the used part in one call, so that the window is what limits it."""
    data = bytearray(USED)
    view = memoryview(data)
    disk.read_many([(offset, view[offset : offset + MIB]) for offset in range(0, USED, MIB)])
    return hashlib.sha256(data).hexdigest()


def main(host: str, port: str, user: str, thumbprint: str, folder: str, *names: str) -> None:
    password = Secret(sys.stdin.readline().rstrip("\n"))
    hashes: dict[str, str] = {}

    def read(vm: VirtualMachine) -> None:
        with opened(session, vm, HostBudgets(folder=Path(folder))) as disk:
            hashes[vm.name] = hash_of(disk)

    with (
        Session.login(host, int(port), user, password, Trust(sha256=thumbprint)) as session,
        WorkerScope("read") as scope,
    ):
        for vm in list_machines(session):
            if vm.name in names:
                scope.spawn(read, vm)
    print(" ".join(hashes[name] for name in names))


if __name__ == "__main__":
    main(*sys.argv[1:])
