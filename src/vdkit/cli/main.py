"""The ``vdkit`` command: what each command does is in its own module; here are the entry and the errors."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from vdkit.cli import (
    backup_commands,
    disk_admin,
    disk_check,
    disk_commands,
    disk_data,
    disk_inspect,
    disk_make,
    host_commands,
    sim_commands,
)
from vdkit.cli.diskoptions import ErrorWithExit
from vdkit.cli.output import flush_output, prepare_output, print_json, print_note, print_text
from vdkit.errors import Cancelled, ExitCode, StoreError, VixError
from vdkit.version import VERSION


class _Commands(TyperGroup):
    """An interrupt is a cancellation with an exit code of its own, not typer's "Aborted" with code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Cancelled("interrupted") from error


app = typer.Typer(
    name="vdkit",
    cls=_Commands,
    help="Read, back up, verify and restore VMware virtual disks. No VDDK, no vSphere lab needed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        print_text(f"vdkit {VERSION}")
        raise typer.Exit


for _disks in (disk_make, disk_commands, disk_check, disk_data, disk_admin, disk_inspect):
    _disks.add_to(app)
host_commands.add_to(app)
backup_commands.add_to(app)
sim_commands.add_to(app)


def run(arguments: list[str] | None = None) -> None:
    """Entry point: every vdkit error becomes one line on standard error and a documented exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    # A service manager's way of saying stop must tidy up like an interrupt from the keyboard.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    prepare_output()
    try:
        try:
            app(args=given)
        finally:
            flush_output()
    except BrokenPipeError:
        sys.exit(ExitCode.FAILED)
    except ErrorWithExit as error:
        sys.exit(_report(error.error, error.exit_code, as_json="--json" in given))
    except VixError as error:
        sys.exit(_report(error, error.exit_code, as_json="--json" in given))


def _report(error: VixError, exit_code: int, *, as_json: bool) -> int:
    print_note(f"vdkit: {error} [{error.code}]")
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
                }
            )
    return exit_code
