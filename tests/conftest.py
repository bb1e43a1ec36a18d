"""What every test may lean on: outside programs that must agree, and a check that nothing is left behind."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent

#: Witnesses that are neither a command nor an importable module, and where Debian puts them.
WITNESS_FOLDERS = {
    "govmomi": Path("/usr/share/gocode/src/github.com/vmware/govmomi"),
    "VMDKstream": Path("/usr/lib/python3/dist-packages/VMDKstream.py"),
}

# The machines that run this are shared: a slow example says nothing about the code. Derandomised, so that a
# failure can be repeated and a pass means the same everywhere.
_COMMON = {
    "derandomize": True,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("default", max_examples=50, **_COMMON)
settings.register_profile("ci", max_examples=100, print_blob=True, **_COMMON)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") == "true" else "default")
)


def pytest_configure(config: pytest.Config) -> None:
    # mke2fs and its kin live where a user's PATH may not look.
    known = os.environ.get("PATH", os.defpath).split(os.pathsep)
    extra = [folder for folder in ("/usr/local/sbin", "/usr/sbin", "/sbin") if folder not in known]
    os.environ["PATH"] = os.pathsep.join([*known, *extra])


def _has_witness(tool: str) -> bool:
    if tool in WITNESS_FOLDERS:
        return WITNESS_FOLDERS[tool].exists()
    if shutil.which(tool) is not None:
        return True
    try:
        return importlib.util.find_spec(tool) is not None
    except ModuleNotFoundError:
        return False


def pytest_runtest_setup(item: pytest.Item) -> None:
    """``@pytest.mark.witness("qemu-img", "dissect.hypervisor")`` names what a test needs to run."""
    wanted = [tool for mark in item.iter_markers("witness") for tool in mark.args]
    missing = sorted({tool for tool in wanted if not _has_witness(tool)})
    if not missing:
        return
    reason = f"witness missing: {', '.join(missing)}; scripts/system-packages installs it"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _descriptors() -> dict[int, str]:
    """Open descriptors of this process and what they are; the listing's own one is gone again."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:
            continue
    return found


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fails the test when it leaves a thread running or a descriptor open.

    Lifetimes are structured: at the end of a test nothing needs waiting for, so nothing is waited for.
    """
    threads = set(threading.enumerate())
    descriptors = _descriptors()
    yield
    left = [thread.name for thread in threading.enumerate() if thread not in threads]
    assert not left, f"threads left running: {', '.join(left)}"
    # A kept exception may hold the frame of a device: only what a collection cannot free counts.
    gc.collect()
    opened = [f"{fd} -> {what}" for fd, what in _descriptors().items() if descriptors.get(fd) != what]
    assert not opened, f"descriptors left open: {', '.join(opened)}"


@pytest.fixture(autouse=True)
def _faults_leave_nothing(request: pytest.FixtureRequest) -> None:
    if request.path.is_relative_to(TESTS / "faults"):
        request.getfixturevalue("no_leaks")
