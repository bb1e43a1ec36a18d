"""Check and repair of VMDKs: what is wrong, what a repair would do, and the repair, with an undo file."""

from vdkit.vmdk.check.check import check_disk
from vdkit.vmdk.check.options import Duplicates, RepairReport
from vdkit.vmdk.check.repair import repair_disk
from vdkit.vmdk.check.report import (
    CheckExit,
    CheckProgress,
    CheckReport,
    FileReport,
    Finding,
    Severity,
    Verdict,
    check_exit_code,
)
from vdkit.vmdk.check.undo import undo_repair

__all__ = [
    "CheckExit",
    "CheckProgress",
    "CheckReport",
    "Duplicates",
    "FileReport",
    "Finding",
    "RepairReport",
    "Severity",
    "Verdict",
    "check_disk",
    "check_exit_code",
    "repair_disk",
    "undo_repair",
]
