"""Repository, full and incremental backup, restore, verify: knows devices, not VMware."""

from vdkit.backup.engine import Phase, backup_disk, previous_disk
from vdkit.backup.hashing import content_sha256
from vdkit.backup.level import (
    Decision,
    Level,
    Method,
    PreviousDisk,
    ResetPolicy,
    Tracking,
    choose_level,
)
from vdkit.backup.manifest import Consistency, DiskRecord, Kind, Manifest
from vdkit.backup.names import VmIdentity
from vdkit.backup.repository import Point, Repository
from vdkit.backup.restore import open_checked, open_point, restore_disk
from vdkit.backup.verify import Damage, VerifyProgress, VerifyReport, verify
from vdkit.backup.writer import PointWriter, begin_point

__all__ = [
    "Consistency",
    "Damage",
    "Decision",
    "DiskRecord",
    "Kind",
    "Level",
    "Manifest",
    "Method",
    "Phase",
    "Point",
    "PointWriter",
    "PreviousDisk",
    "Repository",
    "ResetPolicy",
    "Tracking",
    "VerifyProgress",
    "VerifyReport",
    "VmIdentity",
    "backup_disk",
    "begin_point",
    "choose_level",
    "content_sha256",
    "open_checked",
    "open_point",
    "previous_disk",
    "restore_disk",
    "verify",
]
