"""The reference pages that follow from the source, so that they cannot say something else.

``errors.md`` comes from the classes of ``vdkit.errors``; ``limits.md`` from the named constants of the
package that carry a ``#:`` comment and whose name says that they bound or size something; the second half of
``commands.md`` is the help of the commands.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from vdkit import errors

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
PAGES = ROOT / "docs" / "reference"
_HOW = "This page is written by `scripts/reference` from the source; change it there.\n"

_HELP_MARK = "<!-- Below this line scripts/reference writes what the commands print themselves. -->"

#: A constant belongs on the page when its name says that it bounds or sizes something.
_LIMIT_NAME = re.compile(r"^(MAX|MIN|DEFAULT)_|_(LIMIT|MAX|MIN|TIMEOUT|SIZE|WINDOW|SECONDS)$")
#: Codes whose meaning the class of an error does not say by itself.
_EXIT_MEANINGS = {
    "OK": "done",
    "FAILED": "something went wrong that has no code of its own; or the work was done, with warnings",
    "USAGE": "the command line or an argument is wrong, or asks for something impossible",
    "SOURCE_INCOMPLETE": "a backup was made, but some disks of the machine are not in it",
    "VERIFY_FAILED": "stored bytes differ from what the manifest says",
    "FORMAT": "a disk or descriptor is damaged, unknown or unsupported",
    "STORE": "a file or folder could not be read, written or found",
    "TRANSPORT": "moving bytes to or from a host failed",
    "TRUST": "the certificate is not the pinned or trusted one",
    "CONTROL": "vCenter or ESXi refused or failed a call",
    "NO_REPOSITORY": "there is no repository at the place named",
    "LOCKED": "somebody else holds the lock",
    "LOGIN": "user name or password refused",
    "CHANGE_TRACKING": "changed blocks cannot be told: tracking is off, or was reset",
    "INTERRUPTED": "stopped by the user",
}
#: What a person is most likely to meet, with the class that says so and the remedy that the message gives.
SITUATIONS = (
    ("a VMDK that was cut short, or whose tables point outside it", errors.CorruptDisk, "restore it"),
    ("a file that is no disk", errors.NotADisk, "check the path"),
    ("a disk of a version that vdkit does not know", errors.UnsupportedVersion, "convert it first"),
    (
        "a descriptor that points outside its folder: absolute, `..`, a device, a link",
        errors.OutsideStore,
        "`--allow-path FOLDER`, once you have looked at it",
    ),
    ("a disk that is its own parent", errors.ChainError, "mend the descriptor's `parentFileNameHint`"),
    ("a disk whose parent is not there", errors.MissingParent, "bring the file back"),
    ("a parent that was changed after the child was made", errors.CidMismatch, "take the right parent"),
    ("no space left, for a repository or a disk", errors.DiskFull, "free space or choose another place"),
    ("another certificate than the pinned one", errors.TrustError, "`vdkit fingerprint HOST`, and compare"),
    ("a wrong user name or password", errors.LoginFailed, "check both"),
    ("a machine that the host does not have", errors.ObjectNotFound, "`vdkit vms`; near names are told"),
    ("TCP 443 or 902 closed", errors.ConnectionRefused, "let the port named through the firewall"),
    ("a host name that does not resolve", errors.HostNotFound, "check its spelling"),
    (
        "change tracking was reset since the last point",
        errors.TrackingReset,
        "`--level full`, or `--on-reset`",
    ),
    ("a second backup of a machine into one repository", errors.RepositoryLocked, "wait until it has ended"),
    ("a folder that is no repository", errors.RepositoryMissing, "check the path"),
    ("stored bytes that were changed", errors.VerifyFailed, "another point; take a full backup now"),
)


def exit_codes() -> dict[str, int]:
    return {name: value for name, value in vars(errors.ExitCode).items() if name.isupper()}


def error_tree(root: type[errors.VixError] = errors.VixError, depth: int = 0) -> Iterator[tuple[int, type]]:
    """Every class of the tree with its depth, in the order of the source."""
    yield depth, root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from error_tree(child, depth + 1)


def drawing_remarks() -> dict[str, str]:
    """What the drawing in the docstring of ``vdkit.errors`` says beside a class."""
    found = {}
    for line in inspect.getdoc(errors).splitlines():
        match = re.match(r"[\s│├└─]*([A-Z]\w+)\s+\d+\s+[A-Z_]+(?:\s+(\S.*))?$", line)
        if match:
            found[match[1]] = match[2] or ""
    return found


def errors_page() -> str:
    lines = [
        "# Errors and exit codes\n",
        _HOW,
        "Every error is a `vdkit.errors.VixError`. It owns a number and name of the VIX error space, the "
        "exit code with which the command ends, and whether the same call may well succeed when tried again. "
        "Its text is one line that names the thing, the place and, where there is one, the remedy.\n",
        "## Exit codes\n",
        "Stable: a script may depend on them. A code that is not in this table means failure.\n",
        "| code | name | meaning |",
        "| ---: | --- | --- |",
    ]
    lines += [f"| {value} | `{name}` | {_EXIT_MEANINGS[name]} |" for name, value in exit_codes().items()]
    lines += [
        "",
        "## What you are most likely to meet\n",
        "Each of these is one line on standard error that names the thing and the place; a test provokes "
        "every one of them and compares it with this table.\n",
        "| what | exit code | class | remedy |",
        "| --- | ---: | --- | --- |",
    ]
    lines += [
        f"| {what} | {kind.exit_code} | `{kind.__name__}` | {remedy} |" for what, kind, remedy in SITUATIONS
    ]
    lines += [
        "",
        "## Classes\n",
        "Indentation is inheritance: catching a class catches those below it.\n",
        "| class | VIX number | VIX name | exit code | retry | when |",
        "| --- | ---: | --- | ---: | --- | --- |",
    ]
    remarks = drawing_remarks()
    for depth, kind in error_tree():
        indent = "&nbsp;&nbsp;" * depth
        retry = "yes" if kind.retryable else ""
        lines.append(
            f"| {indent}`{kind.__name__}` | {kind.code.number} | `VIX_E_{kind.code.name}` | {kind.exit_code} "
            f"| {retry} | {remarks.get(kind.__name__, '')} |"
        )
    return "\n".join(lines) + "\n"


def _commented_constants(text: str) -> Iterator[tuple[str, str]]:
    """``(name, comment)`` of the public module constants that stand under a ``#:`` comment."""
    lines = text.splitlines()
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        for target in targets:
            if not isinstance(target, ast.Name) or not _LIMIT_NAME.search(target.id):
                continue
            comment: list[str] = []
            above = node.lineno - 2
            while above >= 0 and lines[above].startswith("#:"):
                comment.insert(0, lines[above].removeprefix("#:").strip())
                above -= 1
            if comment and not target.id.startswith("_"):
                yield target.id, " ".join(comment)


def limits() -> Iterator[tuple[str, str, int | float, str]]:
    """``(module, constant, value, comment)`` over the whole package, by module."""
    for path in sorted(SOURCE.rglob("*.py")):
        found = list(_commented_constants(path.read_text(encoding="utf-8")))
        if not found:
            continue
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        loaded = importlib.import_module(module)
        for name, comment in found:
            value = getattr(loaded, name)
            if isinstance(value, int | float):
                yield module, name, value, comment


def _shown(name: str, value: int | float, comment: str) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if "byte" not in comment.lower() and not re.search(r"SIZE|BYTES|BUFFER|CAPACITY|REQUEST$", name):
        return str(value)
    for unit, size in (
        ("EiB", 1 << 60),
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ):
        if value >= size and value % size == 0:
            return f"{value} ({value // size} {unit})"
    return str(value)


def limits_page() -> str:
    lines = [
        "# Limits\n",
        _HOW,
        "Whatever is read from a file or a peer is bounded by a named constant before it is believed. What "
        "lies beyond is refused with an error that names the thing and the limit, mostly "
        "[`LimitExceeded` or `ProtocolError`](errors.md). Values are bytes, seconds or counts, as the text "
        "says; a size in bytes is shown in binary units as well.\n",
        "| constant | value | bounds |",
        "| --- | ---: | --- |",
    ]
    for module, name, value, comment in limits():
        text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", comment).replace("|", "\\|").replace("``", "`")
        lines.append(f"| `{module}.{name}` | {_shown(name, value, comment)} | {text} |")
    return "\n".join(lines) + "\n"


def _command_paths() -> list[tuple[str, ...]]:
    """Every command and subcommand, in the order in which the help lists them."""
    from typer.main import get_command

    from vdkit.cli.main import make_app

    found: list[tuple[str, ...]] = []
    todo = [((), get_command(make_app()))]
    while todo:
        path, command = todo.pop(0)
        if path:
            found.append(path)
        children = getattr(command, "commands", {}).items()
        todo = [((*path, name), child) for name, child in children if not child.hidden] + todo
    return found


def _help_of(path: tuple[str, ...]) -> str:
    program = Path(sys.executable).with_name("vdkit")
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    done = subprocess.run(
        [program, *path, "--help"], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def commands_page() -> str:
    """The page's own text down to its mark, then the help of every command."""
    head, mark, _ = (PAGES / "commands.md").read_text(encoding="utf-8").partition(_HELP_MARK)
    parts = [head + mark]
    for path in _command_paths():
        parts.append(f"\n\n## vdkit {' '.join(path)}\n\n```text\n{_help_of(path)}\n```")
    return "".join(parts) + "\n"


PAGE_WRITERS = {"errors.md": errors_page, "limits.md": limits_page, "commands.md": commands_page}


def main(arguments: list[str]) -> int:
    stale = []
    for name, write in PAGE_WRITERS.items():
        path = PAGES / name
        text = write()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if stale:
        verb = "out of date" if "--check" in arguments else "written"
        sys.stdout.write(f"{verb}: {', '.join(stale)}\n")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
