"""Names in a repository: folders of VMs, ids of restore points, files of a point.

Every file of a point carries the point's id, and every name can be derived: a manifest cannot lead anywhere.
``docs/reference/repository.md`` describes the layout.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from vdkit.errors import UsageError

#: What the name of a file ends with as long as it is not part of a complete point.
PARTIAL = ".partial"
#: The mark of a repository, in its top folder.
FORMAT_FILE = "repository.json"
#: In the folder of a VM: who writes to it.
LOCK_FILE = "lock"

MAX_NAME = 1024
MAX_KEY = 1 << 31
_SAFE_LENGTH = 64
_POINT = r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}"
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_POINT_ID = re.compile(_POINT)
_UUID_ONLY = re.compile(_UUID)
_FOLDER = re.compile(rf"(?:[A-Za-z0-9_][A-Za-z0-9._-]*)-({_UUID})")
_POINT_FILE = re.compile(
    rf"(?:disk-[0-9]{{1,10}}\.)?({_POINT})\.(?:json|vmdk|map\.json)(?:{re.escape(PARTIAL)})?"
)


@dataclass(frozen=True)
class VmIdentity:
    """Whose points these are: the name people use and the UUID that stays (vCenter's instance UUID)."""

    name: str
    uuid: str

    def __post_init__(self) -> None:
        check_text("the VM's name", self.name)
        if not _UUID_ONLY.fullmatch(self.uuid):
            raise UsageError(
                f"the UUID {self.uuid!r} of VM {self.name!r} is not 8-4-4-4-12 lower-case hexadecimal digits"
            )


def check_text(what: str, text: str) -> None:
    """Refuse what could not be stored and read back as it is."""
    if not text or len(text) > MAX_NAME:
        raise UsageError(f"{what} must be 1 to {MAX_NAME} characters long, not {len(text)}")
    if not is_unicode(text):
        raise UsageError(f"{what} {text!r} is not valid Unicode")


def is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON can carry and no file or terminal can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def folder_name(vm: VmIdentity) -> str:
    """A folder name that every file system takes; the UUID keeps it unique."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", vm.name)[:_SAFE_LENGTH].lstrip(".-") or "vm"
    return f"{safe}-{vm.uuid}"


def folder_uuid(folder: str) -> str | None:
    """The UUID of the VM whose folder this is; None for any other name."""
    match = _FOLDER.fullmatch(folder)
    return match[1] if match else None


def new_point_id(created: datetime) -> str:
    """Time in UTC, to be read and sorted by people, and four random bytes."""
    return f"{created.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def is_point_id(text: str) -> bool:
    return _POINT_ID.fullmatch(text) is not None


def manifest_file(point_id: str) -> str:
    return f"{point_id}.json"


def disk_file(key: int, point_id: str) -> str:
    return f"disk-{key}.{point_id}.vmdk"


def map_file(key: int, point_id: str) -> str:
    return f"disk-{key}.{point_id}.map.json"


def point_of_file(name: str) -> str | None:
    """The id of the point that a file of a VM's folder belongs to, finished or partial."""
    match = _POINT_FILE.fullmatch(name)
    return match[1] if match else None


def point_of_manifest(name: str) -> str | None:
    """The id if ``name`` is the manifest of a complete point."""
    point_id = name.removesuffix(".json")
    return point_id if point_id != name and is_point_id(point_id) else None
