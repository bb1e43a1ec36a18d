"""Row D8: the library never ends, nor changes, the process of its caller. Only the command line may exit."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "vdkit"
#: Calls that end a process or change what all of it depends on: module and name.
FORBIDDEN = {
    ("sys", "exit"),
    ("os", "_exit"),
    ("os", "abort"),
    ("os", "kill"),
    ("os", "killpg"),
    ("os", "chdir"),
    ("os", "umask"),
    ("os", "putenv"),
    ("signal", "signal"),
    ("signal", "raise_signal"),
    ("signal", "alarm"),
    ("signal", "pthread_sigmask"),
    ("faulthandler", "enable"),
    ("logging", "basicConfig"),
    ("socket", "setdefaulttimeout"),
    ("resource", "setrlimit"),
}
NAMES = {"SystemExit", "exit", "quit", "KeyboardInterrupt"}


def endings(source: str) -> list[str]:
    """What in the text of a module would end the process or change it as a whole."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in FORBIDDEN:
                found.append(f"{node.lineno}: {module}.{name}")
            case ast.ImportFrom(module=str(module), names=names):
                found += [
                    f"{node.lineno}: {module}.{one.name}" for one in names if (module, one.name) in FORBIDDEN
                ]
            case ast.Raise(exc=ast.Name(id=name) | ast.Call(func=ast.Name(id=name))) if name in NAMES:
                found.append(f"{node.lineno}: raise {name}")
            case ast.Call(func=ast.Name(id="exit" | "quit" as name)):
                found.append(f"{node.lineno}: {name}()")
            case _:
                pass
    return found


def test_row_d8_only_the_command_line_ends_a_process() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "cli"
        for line in endings(path.read_text(encoding="utf-8"))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "source",
    ["import sys\nsys.exit(1)", "from os import _exit", "raise SystemExit", "raise SystemExit(3)", "exit()"],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert endings(source)


CALLER = """
import os, signal, socket, threading
before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), os.getcwd(), os.umask(0o22)
os.umask(before[3])
import vdkit
from vdkit.disklib.connection import ConnectParams, connect
from vdkit.errors import VixError
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust

closed = socket.socket()
closed.bind(("127.0.0.1", 0))
port = closed.getsockname()[1]
closed.close()

def params(host, port):
    return ConnectParams(host=host, port=port, user="u", password=Secret("p"),
                         trust=Trust(sha256=":".join(["AB"] * 32)), vm="moref=vm-1", timeout=5)

raised = []
for act in (
    lambda: connect().open("no such disk.vmdk"),
    lambda: connect(params("127.0.0.1", port)),
    lambda: connect(params("no.such.host.invalid", 443)),
    lambda: connect().check_repair(__file__),
):
    try:
        act()
    except VixError as error:
        raised.append(type(error).__name__)
after = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), os.getcwd(), os.umask(0o22)
assert before == after, (before, after)
assert threading.active_count() == 1, threading.enumerate()
assert len(raised) == 4, raised
print("still here")
"""


def test_row_d8_a_caller_outlives_every_failure(tmp_path: Path) -> None:
    """The release notes: an application's exit code was lost because a library ended the process."""
    script = tmp_path / "caller.py"
    script.write_text(CALLER, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout) == (0, "still here\n"), done.stderr
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["caller.py"]
