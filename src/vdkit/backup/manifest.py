"""The manifest of a restore point: what was saved, of which VM, when, why, and the hashes of its files.

The schema is described member by member in ``docs/reference/repository.md``; this is its only reader and
writer. File names are derived, never taken from the document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from vdkit.backup import names
from vdkit.backup.document import Fields, canonical, digest_of, format_time, is_unchanged, parse
from vdkit.errors import PointInvalid, UsageError, VixError

SCHEMA = 1
#: Bytes of a manifest; one disk takes about 900, so this is room for all disks and 3 MiB of hardware facts.
MAX_MANIFEST = 4 << 20
#: Bytes that the caller's hardware facts may take as JSON.
MAX_HARDWARE = 2 << 20
#: Disks of one VM: vSphere's limits end at 256.
MAX_DISKS = 256
#: Bytes of a disk: vSphere ends at 62 TiB. Work that grows with a capacity is bounded by it.
MAX_CAPACITY = 1 << 47
_CID = re.compile(r"[0-9a-f]{8}")


class Kind(Enum):
    """What a disk of a point holds: everything, or what changed since the parent point."""

    FULL = "full"
    INCREMENTAL = "incremental"


class Consistency(Enum):
    """``CRASH``: as after pulling the plug. ``QUIESCED``: the guest's file systems were at rest."""

    CRASH = "crash"
    QUIESCED = "quiesced"


@dataclass(frozen=True)
class FileRecord:
    """One file of a point: its size in bytes and the SHA-256 of all its bytes, in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class DiskRecord:
    """One disk in a point. Counts are bytes of the virtual disk: ``changed`` what had to be looked at,
    ``read`` what was read for it (more, when ranges are widened to grains or compared by a scan), ``zero``
    what of that was all zero."""

    key: int
    label: str
    capacity: int
    kind: Kind
    reason: str
    cid: int
    change_id: str | None
    file: FileRecord
    map: FileRecord
    changed: int
    read: int
    zero: int
    seconds: float

    @property
    def stored(self) -> int:
        """Bytes of the VMDK."""
        return self.file.size


@dataclass(frozen=True)
class ParentRecord:
    """The point that the incremental disks of this one continue, and the digest of its manifest."""

    id: str
    digest: str


@dataclass(frozen=True)
class Manifest:
    id: str
    sequence: int
    vm: names.VmIdentity
    created: datetime
    finished: datetime
    consistency: Consistency
    parent: ParentRecord | None
    hardware: Mapping[str, object]
    writer: str
    disks: tuple[DiskRecord, ...]

    @property
    def kind(self) -> Kind:
        """Incremental as soon as one disk needs the parent point."""
        incremental = any(d.kind is Kind.INCREMENTAL for d in self.disks)
        return Kind.INCREMENTAL if incremental else Kind.FULL

    def disk(self, key: int) -> DiskRecord | None:
        return next((d for d in self.disks if d.key == key), None)


def check_hardware(hardware: Mapping[str, object]) -> dict[str, object]:
    """The facts as plain JSON data, or UsageError."""
    try:
        data = canonical(dict(hardware))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the VM's hardware facts are not plain JSON data: {error}") from error
    if len(data) > MAX_HARDWARE:
        raise UsageError(f"the VM's hardware facts take {len(data)} bytes, more than {MAX_HARDWARE}")
    plain: dict[str, object] = json.loads(data)
    return plain


def encode(manifest: Manifest) -> bytes:
    document: dict[str, object] = {
        "schema": SCHEMA,
        "id": manifest.id,
        "sequence": manifest.sequence,
        "kind": manifest.kind.value,
        "parent": vars(manifest.parent) if manifest.parent else None,
        "created": format_time(manifest.created),
        "finished": format_time(manifest.finished),
        "consistency": manifest.consistency.value,
        "writer": manifest.writer,
        "vm": {"name": manifest.vm.name, "uuid": manifest.vm.uuid, "hardware": dict(manifest.hardware)},
        "disks": [_encode_disk(disk) for disk in manifest.disks],
    }
    document["digest"] = digest_of(document)
    return json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def _encode_disk(disk: DiskRecord) -> dict[str, object]:
    return {
        "key": disk.key,
        "label": disk.label,
        "capacity": disk.capacity,
        "kind": disk.kind.value,
        "reason": disk.reason,
        "cid": f"{disk.cid:08x}",
        "change_id": disk.change_id,
        "file": vars(disk.file),
        "map": vars(disk.map),
        "changed_bytes": disk.changed,
        "read_bytes": disk.read,
        "zero_bytes": disk.zero,
        "seconds": round(disk.seconds, 3),
    }


def decode(data: bytes, where: str, *, point_id: str, vm_uuid: str) -> tuple[Manifest, str]:
    """The manifest and its digest. ``point_id`` and ``vm_uuid`` are what the file's place says it must be."""
    if len(data) > MAX_MANIFEST:
        raise PointInvalid(f"{where}: {len(data)} bytes, more than the {MAX_MANIFEST} of a manifest")
    document = parse(data, where)
    fields = Fields(document, where)
    if fields.integer("schema") != SCHEMA:
        raise PointInvalid(
            f"{where}: written in schema {document['schema']}, this version knows {SCHEMA}",
            remedy="use the version of vdkit that wrote it, or a newer one",
        )
    digest = fields.sha256("digest")
    if not is_unchanged(document, digest):
        fields.refuse("digest", "does not match the content: the manifest was changed after it was written")
    if fields.text("id") != point_id:
        fields.refuse("id", f"is not {point_id}, which the file's name says")
    vm_fields = fields.inner("vm")
    vm = _identity(vm_fields, vm_uuid)
    hardware = vm_fields.mapping("hardware")
    vm_fields.done()
    kind = fields.choice("kind", ("full", "incremental"))
    manifest = Manifest(
        id=point_id,
        sequence=fields.integer("sequence", low=1),
        vm=vm,
        created=fields.time("created"),
        finished=fields.time("finished"),
        consistency=Consistency(fields.choice("consistency", ("crash", "quiesced"))),
        parent=_parent(fields),
        hardware=hardware,
        writer=fields.text("writer"),
        disks=_disks(fields, point_id),
    )
    fields.done()
    if manifest.kind.value != kind or (manifest.parent is None) != (manifest.kind is Kind.FULL):
        fields.refuse("kind", "does not agree with the disks and the parent")
    return manifest, digest


def _identity(fields: Fields, vm_uuid: str) -> names.VmIdentity:
    name, uuid = fields.text("name"), fields.text("uuid")
    if uuid != vm_uuid:
        fields.refuse("uuid", f"is not {vm_uuid}, which the folder's name says")
    try:
        return names.VmIdentity(name, uuid)
    except VixError as error:
        raise PointInvalid(f"{fields.where}: {error}") from error


def _parent(fields: Fields) -> ParentRecord | None:
    value = fields.take("parent")
    if value is None:
        return None
    inner = Fields(value, f"{fields.where}: parent")
    parent = ParentRecord(inner.matching("id", names.is_point_id, "a point's id"), inner.sha256("digest"))
    inner.done()
    return parent


def _disks(fields: Fields, point_id: str) -> tuple[DiskRecord, ...]:
    items = fields.items("disks", MAX_DISKS)
    disks = tuple(_disk(item, f"{fields.where}: disk {i}", point_id) for i, item in enumerate(items))
    if not disks:
        fields.refuse("disks", "is empty")
    if len({disk.key for disk in disks}) != len(disks):
        fields.refuse("disks", "names a disk twice")
    return disks


def _disk(item: object, where: str, point_id: str) -> DiskRecord:
    fields = Fields(item, where)
    key = fields.integer("key", high=names.MAX_KEY)
    capacity = fields.integer("capacity", high=MAX_CAPACITY)
    disk = DiskRecord(
        key=key,
        label=fields.text("label"),
        capacity=capacity,
        kind=Kind(fields.choice("kind", ("full", "incremental"))),
        reason=fields.text("reason"),
        cid=int(fields.matching("cid", lambda v: _CID.fullmatch(v) is not None, "8 hexadecimal digits"), 16),
        change_id=fields.optional_text("change_id"),
        file=_file(fields, "file", names.disk_file(key, point_id)),
        map=_file(fields, "map", names.map_file(key, point_id)),
        changed=fields.integer("changed_bytes", high=capacity),
        read=fields.integer("read_bytes"),
        zero=fields.integer("zero_bytes", high=capacity),
        seconds=fields.seconds("seconds"),
    )
    fields.done()
    return disk


def _file(fields: Fields, member: str, expected: str) -> FileRecord:
    inner = fields.inner(member)
    name = inner.text("name")
    if name != expected:
        inner.refuse("name", f"is not {expected}")
    record = FileRecord(name, inner.integer("size", low=1), inner.sha256("sha256"))
    inner.done()
    return record
