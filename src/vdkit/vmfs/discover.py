"""From devices to volumes: which partitions of which LUNs belong together.

Source of facts: our notes on VMFS, sections 1.1, 1.5 and 1.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vdkit.block.device import BlockDevice
from vdkit.block.forward import close_all
from vdkit.errors import Ambiguous, NotADisk
from vdkit.vmfs.lvm import LogicalVolume, Member, bare_member, partition, read_member
from vdkit.vmfs.partitions import find_partitions
from vdkit.vmfs.superblock import MAGIC, MAGIC_LOCAL, OFFSET
from vdkit.vmfs.volume import Volume


@dataclass(slots=True)
class Candidate:
    """A volume of which members were found."""

    uuid: str
    members: list[Member] = field(default_factory=list)

    def open(self) -> Volume:
        """Takes over the devices, which are closed if it fails. Raises what opening a volume raises."""
        try:
            return Volume(LogicalVolume(self.members))
        except BaseException:
            close_all([member.device for member in self.members])
            raise


def volumes_on(devices: Sequence[BlockDevice]) -> list[Candidate]:
    """What is on the devices, by volume. Raises CorruptDisk, UnsupportedVersion, read errors."""
    found: dict[str, Candidate] = {}
    for device in devices:
        for number, offset, length in find_partitions(device):
            part = partition(device, offset, length)
            member = read_member(part, offset)
            if member is not None:
                key = f"{member.volume_uuid}/{member.snapshot_id}"
                found.setdefault(key, Candidate(member.volume_uuid)).members.append(member)
            elif _bare(part):
                key = f"{device.name}/{number}"
                found[key] = Candidate(key, [bare_member(part, offset)])
    return list(found.values())


def open_volume(devices: Sequence[BlockDevice]) -> Volume:
    """The one volume that all the devices make. Takes them over, and closes them if it fails.

    Raises NotADisk, Ambiguous, MissingParent for a member that is not among them, UnsupportedVersion,
    CorruptDisk.
    """
    names = ", ".join(device.name for device in devices)
    try:
        candidates = volumes_on(devices)
        if not candidates:
            raise NotADisk(f"{names}: no VMFS found", remedy="name the LUN itself, or a partition of it")
        barren = _barren(devices, candidates)
        if barren:
            raise NotADisk(
                f"{', '.join(barren)}: no VMFS found", remedy="name only the LUNs that carry the volume"
            )
        if len(candidates) > 1:
            raise Ambiguous(
                f"{names}: {len(candidates)} volumes: {', '.join(c.uuid for c in candidates)}",
                remedy="name the LUNs of one volume",
            )
    except BaseException:
        close_all(devices)
        raise
    return candidates[0].open()


def _barren(devices: Sequence[BlockDevice], candidates: Sequence[Candidate]) -> list[str]:
    """Devices without a member."""
    found = {member.device.name for candidate in candidates for member in candidate.members}
    return [device.name for device in devices if device.name not in found]


def _bare(device: BlockDevice) -> bool:
    if device.capacity < OFFSET + 4:
        return False
    raw = bytearray(4)
    device.read_into(OFFSET, raw)
    return int.from_bytes(raw, "little") in (MAGIC, MAGIC_LOCAL)
