"""Where this program runs: on a physical machine, in a virtual one and whose, in a container.

Only readable facts are used: the DMI strings and the hypervisor entry of sysfs, the processor's flags, what
container engines leave behind. Nothing is executed and nothing needs a privilege. A fact that is missing or
unreadable, be it all of sysfs, is a fact that is not known; it is never an error.

Sources: the kernel's documentation of sysfs (class/dmi, hypervisor) and of /proc/cpuinfo, systemd's container
interface, the documented markers of Docker and Podman, and the DMI strings that hypervisors are known by.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

#: Bytes that are read of any of these files: all of them are short but for the processors' flags.
_MOST_READ: Final = 64 << 10
#: Characters of a name that are kept.
_LONGEST_WORD: Final = 60


class Machine(Enum):
    """What kind of machine the kernel runs on."""

    PHYSICAL = "physical"
    VMWARE = "vmware"
    OTHER_HYPERVISOR = "other-hypervisor"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where we run, and the facts that say so."""

    machine: Machine = Machine.UNKNOWN
    hypervisor: str | None = None
    """Its name, where there is one and it is known."""
    container: str | None = None
    """The engine's name, or ``unknown``; None outside a container."""
    scsi_disks: tuple[str, ...] | None = None
    """SCSI disks that are visible here (``0:0:0:0``); None if the kernel lists none at all."""
    evidence: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """For people: ``a virtual machine on VMware, in a container (docker)``."""
        match self.machine:
            case Machine.PHYSICAL:
                text = "a physical machine"
            case Machine.VMWARE:
                text = "a virtual machine on VMware"
            case Machine.OTHER_HYPERVISOR:
                text = f"a virtual machine on {self.hypervisor or 'a hypervisor without a name'}"
            case Machine.UNKNOWN:
                text = "a machine of unknown kind"
        return text if self.container is None else f"{text}, in a container ({self.container})"


#: A vendor's DMI string, what the product's name must begin with, and the hypervisor; the first that fits.
_VENDORS: Final = (
    ("VMware", "", "VMware"),
    ("QEMU", "", "KVM"),
    ("Red Hat", "KVM", "KVM"),
    ("Red Hat", "RHEV", "KVM"),
    ("oVirt", "", "KVM"),
    ("OpenStack Foundation", "", "KVM"),
    ("Nutanix", "AHV", "KVM"),
    ("Google", "Google Compute Engine", "KVM"),
    ("Amazon EC2", "", "KVM"),
    ("Xen", "", "Xen"),
    ("Microsoft Corporation", "Virtual Machine", "Hyper-V"),
    ("innotek GmbH", "VirtualBox", "VirtualBox"),
    ("Oracle Corporation", "VirtualBox", "VirtualBox"),
    ("Parallels", "", "Parallels"),
    ("BHYVE", "", "bhyve"),
)
#: Paths that container engines leave behind, and their names.
_MARKERS: Final = (
    (".dockerenv", "docker"),
    ("run/.containerenv", "podman"),
    ("var/run/secrets/kubernetes.io", "kubernetes"),
)
#: Parts of the control groups of a container's first process, and the engines that name them so.
_GROUPS: Final = (
    ("/kubepods", "kubernetes"),
    ("/docker", "docker"),
    ("/libpod", "podman"),
    ("/containerd", "containerd"),
    ("/lxc", "lxc"),
)


def look_around(root: Path = Path("/")) -> Surroundings:
    """The surroundings as the files below ``root`` tell them. Never fails."""
    evidence: list[str] = []
    machine, hypervisor = _machine(root, evidence)
    container = _container(root, evidence)
    disks = _scsi_disks(root)
    if disks is None:
        evidence.append("/sys/class/scsi_disk cannot be listed")
    return Surroundings(machine, hypervisor, container, disks, tuple(evidence))


def _machine(root: Path, evidence: list[str]) -> tuple[Machine, str | None]:
    dmi = root / "sys/class/dmi/id"
    vendor, product = _word(_read(dmi / "sys_vendor")), _word(_read(dmi / "product_name"))
    if vendor:
        evidence.append(f"DMI: {vendor}, {product or 'no product name'}")
    name = _by_dmi(vendor, product)
    if name == "VMware":
        return Machine.VMWARE, name
    if name is not None:
        return Machine.OTHER_HYPERVISOR, name
    kind = _word(_read(root / "sys/hypervisor/type"))
    if kind:
        evidence.append(f"/sys/hypervisor/type: {kind}")
        if kind == "xen" and "control_d" in (_read(root / "proc/xen/capabilities") or ""):
            # Xen's first domain has the machine's own hardware.
            evidence.append("/proc/xen/capabilities: control_d")
            return Machine.PHYSICAL, None
        return Machine.OTHER_HYPERVISOR, {"xen": "Xen"}.get(kind, kind)
    flags = _processor_flags(root)
    if flags is None:
        return Machine.UNKNOWN, None
    if "hypervisor" in flags:
        evidence.append("/proc/cpuinfo: the flag hypervisor")
        return Machine.OTHER_HYPERVISOR, None
    evidence.append("/proc/cpuinfo: no flag hypervisor")
    return Machine.PHYSICAL, None


def _by_dmi(vendor: str, product: str) -> str | None:
    if vendor == "Amazon EC2" and product.endswith(".metal"):
        return None
    for known, prefix, name in _VENDORS:
        if vendor.startswith(known) and product.startswith(prefix):
            return name
    return None


def _processor_flags(root: Path) -> frozenset[str] | None:
    """The first processor's flags; None where the kernel tells none, as on ARM."""
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == "flags":
            return frozenset(value.split())
    return None


def _container(root: Path, evidence: list[str]) -> str | None:
    for path, name in _MARKERS:
        if _exists(root / path):
            evidence.append(f"/{path} exists")
            return name
    told = _word(_read(root / "run/systemd/container"))
    if told:
        evidence.append(f"/run/systemd/container: {told}")
        return told
    for entry in (_read(root / "proc/1/environ") or "").split("\0"):
        if entry.startswith("container="):
            evidence.append("/proc/1/environ: container is set")
            return _word(entry.partition("=")[2]) or "unknown"
    groups = _read(root / "proc/1/cgroup") or ""
    for part, name in _GROUPS:
        if part in groups:
            evidence.append(f"/proc/1/cgroup: {part}")
            return name
    return None


def _scsi_disks(root: Path) -> tuple[str, ...] | None:
    try:
        return tuple(sorted(entry.name for entry in (root / "sys/class/scsi_disk").iterdir()))
    except OSError:
        return None


def _word(text: str | None) -> str:
    """What is shown to people: one short line without characters that a terminal would obey."""
    return "".join(c for c in (text or "")[:_LONGEST_WORD] if c.isprintable())


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _read(path: Path) -> str | None:
    """The beginning of a file as text on one line or several; None if it cannot be read, or is empty."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_READ)
    except OSError:
        return None
    return raw.decode("utf-8", "replace").strip() or None
