"""Releases of ESXi whose change tracking is known to lose changes.

Sources: VMware knowledge base 2136854 (Broadcom 317933): on ESXi 6.0 before the patch of November 2015
changes made while a snapshot is consolidated are lost; 2090639 (Broadcom 310751): before ESXi 6.0, growing a
disk past a multiple of 128 GiB makes the answers wrong.
"""

from __future__ import annotations

from typing import Any, Final

from pyVmomi import vim

from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.properties import of_one
from vdkit.vsphere.session import Session

#: The first build of ESXi 6.0 that keeps changes during consolidation (patch ESXi600-201511001).
FIXED_CONSOLIDATION_BUILD: Final = 3247720
GROWTH_BOUNDARY: Final = 128 << 30


def host_product(session: Session, vm: VirtualMachine) -> tuple[str, str]:
    """Version and build of the ESXi host that runs the machine; empty where the server does not tell."""
    if not session.about.is_vcenter:
        return session.about.version, session.about.build
    what = f"look at the host of {vm.name}"
    host: Any = of_one(session, vim.VirtualMachine, vm.moref, ("runtime.host",), what).get("runtime.host")
    if host is None:
        return "", ""
    product = of_one(session, vim.HostSystem, host._GetMoId(), ("summary.config.product",), what)
    about = product.get("summary.config.product")
    return (about.version or "", about.build or "") if about is not None else ("", "")


def losing_changes(version: str, build: str, *, capacity: int, since_capacity: int | None) -> str | None:
    """Why the answers of such a host cannot be believed, or None.

    Capacities of the disk are bytes: now, and when the id was saved.
    """
    major = _major(version)
    if major is None:
        return None
    if version.startswith("6.0") and build.isdigit() and int(build) < FIXED_CONSOLIDATION_BUILD:
        return (
            f"ESXi {version} build {build} loses changes while it consolidates a snapshot "
            f"(VMware KB 2136854, fixed in build {FIXED_CONSOLIDATION_BUILD})"
        )
    # Nobody knows what size it had: whatever reaches past a boundary may have grown past it.
    before = 0 if since_capacity is None else since_capacity
    if major < 6 and capacity // GROWTH_BOUNDARY > before // GROWTH_BOUNDARY:
        return (
            f"ESXi {version} answers wrongly for a disk that grew past a multiple of 128 GiB "
            "(VMware KB 2090639)"
        )
    return None


def faults_of(version: str, build: str) -> tuple[str, ...]:
    """What is known to be wrong with the change tracking of such a host, for people."""
    major = _major(version)
    if major is None:
        return ()
    if major < 6:
        return (
            f"ESXi {version} answers wrongly for a disk that grew past a multiple of 128 GiB (VMware KB "
            "2090639): after a disk has grown the next backup is a full one",
        )
    reason = losing_changes(version, build, capacity=0, since_capacity=0)
    return () if reason is None else (f"{reason}: no incremental backup is made",)


def _major(version: str) -> int | None:
    head = version.split(".", 1)[0]
    return int(head) if head.isdigit() else None
