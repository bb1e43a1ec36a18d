"""The ``vdkit`` command: what each command does is in its own module; here are the entry and the errors."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import typer
from typer.core import TyperGroup

from vdkit.cli.diskoptions import CommandLineError, ErrorWithExit
from vdkit.cli.output import flush_output, prepare_output, print_json, print_note, print_text
from vdkit.errors import Cancelled, ExitCode, StoreError, UsageError, VixError
from vdkit.version import VERSION


class _Commands(TyperGroup):
    """An interrupt is a cancellation with an exit code of its own, not typer's "Aborted" with code 1."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        with _one_line():
            return super().make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _one_line():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Cancelled("interrupted") from error


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """A wrong command line is an error like any other, not typer's block of four lines."""
    try:
        yield
    except CommandLineError as error:
        text = error.format_message() if not type(error).__name__.startswith("NoArgs") else ""
        if not text:  # no arguments at all: typer shows the help
            raise
        where = "vdkit" if error.ctx is None else error.ctx.command_path
        wrong = UsageError(text.removesuffix("."), remedy=f"see {where} --help")
        raise ErrorWithExit(wrong, error.exit_code) from error


#: Where the commands are, in the order in which the help lists them.
COMMANDS = {
    "disk_make": ("create", "convert"),
    "disk_commands": ("info", "map", "compare", "measure"),
    "disk_check": ("check",),
    "disk_data": ("read", "write"),
    "disk_admin": ("resize", "shrink", "defragment", "rename", "delete", "attach", "meta"),
    "disk_inspect": ("inspect",),
    "vmfs_commands": ("vmfs",),
    "host_commands": ("vms", "fingerprint"),
    "mode_commands": ("modes",),
    "doctor_commands": ("doctor", "tracking"),
    "backup_commands": ("backup", "points", "verify", "restore"),
    "cleanup_commands": ("cleanup",),
    "sim_commands": ("sim",),
}


def make_app(modules: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line with the commands of some modules: making all of them takes longer than most run."""
    app = typer.Typer(
        name="vdkit",
        cls=_Commands,
        help="Read, back up, verify and restore VMware virtual disks. No VDDK, no vSphere lab needed.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    for module in modules:
        importlib.import_module(f"vdkit.cli.{module}").add_to(app)
    return app


def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        print_text(f"vdkit {VERSION}")
        raise typer.Exit


def _needed(given: list[str]) -> Iterable[str]:
    """The modules that a command line needs: one, if it begins with a command that there is."""
    first = given[0] if given else ""
    if first == "--version":
        return ()
    return [module for module, names in COMMANDS.items() if first in names] or COMMANDS


def run(arguments: list[str] | None = None) -> None:
    """Entry point: every vdkit error becomes one line on standard error and a documented exit code.

    What could not be tidied up after it (a snapshot that stayed, say) is told in lines of its own.
    """
    given = sys.argv[1:] if arguments is None else arguments
    # A service manager's way of saying stop must tidy up like an interrupt from the keyboard.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    prepare_output()
    try:
        try:
            make_app(_needed(given))(args=given)
        finally:
            flush_output()
    except BrokenPipeError:
        sys.exit(ExitCode.FAILED)
    except ErrorWithExit as error:
        sys.exit(_report(error.error, error.exit_code, as_json="--json" in given))
    except VixError as error:
        sys.exit(_report(error, error.exit_code, as_json="--json" in given))


def _report(error: VixError, exit_code: int, *, as_json: bool) -> int:
    left = _left_behind(error)
    print_note(f"vdkit: {error} [{error.code}]")
    for text in left:
        print_note(f"also: {text}")
    if as_json:
        with contextlib.suppress(BrokenPipeError, StoreError):
            print_json(
                {
                    "message_type": "exit_error",
                    "error": type(error).__name__,
                    "message": error.message,
                    "remedy": error.remedy,
                    "vix_code": error.code.number,
                    "exit_code": exit_code,
                    **({"notes": left} if left else {}),
                }
            )
    return exit_code


def _left_behind(error: BaseException) -> list[str]:
    """What could not be tidied up after the failure: layers below add it to the error as notes.

    An interrupt has become another error on its way here, and its notes are those of its cause.
    """
    notes: list[str] = []
    one: BaseException | None = error
    while one is not None:
        notes += [" ".join(note.split()) for note in getattr(one, "__notes__", [])]
        one = one.__cause__
    return list(dict.fromkeys(notes))
