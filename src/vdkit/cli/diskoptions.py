"""What the commands on local disks share: options, sizes as people type them, exit codes that others set."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from vdkit.cli.output import print_note
from vdkit.errors import Cancelled, FormatError, NotADisk, UsageError, VixError

DiskArgument = Annotated[Path, typer.Argument(help="A VMDK, or a raw image.", readable=False)]
VmdkArgument = Annotated[
    Path, typer.Argument(help="A VMDK: its descriptor, or its only file.", readable=False)
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option("--allow-path", help="A further folder that descriptors may point into (repeatable)."),
]
JournalOption = Annotated[
    bool,
    typer.Option(
        "--ignore-journal", help="Open an seSparse disk that was not closed properly, without its journal."
    ),
]
FormatOption = Annotated[
    str | None, typer.Option("-f", "--from", metavar="FORMAT", help="raw or vmdk; found out if not given.")
]
AdapterOption = Annotated[str, typer.Option("--adapter", help="ide, buslogic, lsilogic or legacyESX.")]
HardwareOption = Annotated[
    int | None, typer.Option("--hw-version", help="Virtual hardware version to record.", min=1, max=99)
]
SplitOption = Annotated[
    str | None, typer.Option("--split", metavar="SIZE", help="Size of the pieces of a split disk.")
]

#: The types that ``-O`` and ``-t`` name.
TYPES: Final = (
    "raw, monolithicSparse, monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat, streamOptimized, "
    "vmfs or vmfsThin"
)

_SIZE = re.compile(r"(0x[0-9a-fA-F]+|[0-9]{1,20}(?:\.[0-9]{1,6})?)\s*([bBsSkKmMgGtTpP]?)(?:i?[bB])?")
_SHIFTS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_MOST = 1 << 62


def parse_size(text: str, what: str) -> int:
    """Bytes of ``10G``, ``1.5T``, ``512M``, ``0x10000``, ``63s`` (sectors of 512 bytes) or ``4096``."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise _not_a_size(text, what)
    number, unit = found[1], found[2].lower()
    if number.startswith("0x"):
        value = int(number, 16)
        size = value * 512 if unit == "s" else value << _SHIFTS[unit]
    else:
        whole, _, part = number.partition(".")
        factor = 512 if unit == "s" else 1 << _SHIFTS[unit]
        size = int(whole) * factor
        if part:
            if factor == 1:
                raise _not_a_size(text, what)
            size += int(part) * factor // 10 ** len(part)
    if size > _MOST:
        raise _not_a_size(text, what)
    return size


def _not_a_size(text: str, what: str) -> UsageError:
    return UsageError(
        f"{what} {text!r} is no size", remedy="write 4096, 512M, 10G, 1.5T, or 63s for sectors of 512 bytes"
    )


def size_or_none(text: str | None, what: str) -> int | None:
    return None if text is None else parse_size(text, what)


class ErrorWithExit(Exception):
    """An error of a command whose exit codes are those of another program."""

    def __init__(self, error: VixError, exit_code: int) -> None:
        super().__init__(str(error))
        self.error = error
        self.exit_code = exit_code


@contextmanager
def errors_exit_with(code_of: Callable[[VixError], int]) -> Iterator[None]:
    """Errors inside get the exit code that ``code_of`` says; an interruption keeps its own."""
    try:
        yield
    except Cancelled:
        raise
    except VixError as error:
        raise ErrorWithExit(error, code_of(error)) from error


#: What a wrong command line raises; typer shows its own name for it in no other way.
CommandLineError: Final[Any] = typer.BadParameter.__mro__[1]


class UsageExitsWithOne(TyperCommand):
    """For a command whose exit code 2 means something else than a wrong command line."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        try:
            return super().make_context(info_name, args, *rest, **extra)
        except CommandLineError as error:
            error.__dict__["exit_code"] = 1
            raise


def check_no_children(disk: Path, what: str) -> None:
    """Refuse to touch a disk that others in its folder were made from; ``what`` says what becomes of them.

    A disk that cannot be read is only warned of: it must be possible to be rid of it.
    """
    from vdkit.block.local import FolderStore
    from vdkit.vmdk.admin.subject import read_subject, refuse_parent
    from vdkit.vmdk.names import Place

    try:
        subject = read_subject(Place(FolderStore(disk.parent), disk.name), ())
    except NotADisk:
        raise  # the same would be said again, and nothing done
    except FormatError as error:
        print_note(f"warning: whether other disks depend on it cannot be found out: {error.message}")
        return
    refuse_parent(subject, what)
