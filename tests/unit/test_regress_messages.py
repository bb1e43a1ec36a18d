"""What the commands say of bad input: one line, with the name that was given, and what to do about it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from vdkit.cli.main import run


def failed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and the one line of a command that fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        run([str(a) for a in arguments])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("vdkit: "), error
    assert isinstance(left.value.code, int)
    return left.value.code, error


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    run_well("create", tmp_path / "disk.vmdk", "10M")
    return tmp_path / "disk.vmdk"


def run_well(*arguments: object) -> int:
    """The exit code of a command that says its piece on standard output."""
    with pytest.raises(SystemExit) as left:
        run([str(a) for a in arguments])
    return int(left.value.code or 0)


def test_a_wrong_command_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in (
        (["create", "a.vmdk", "-1"], 2),
        (["frobnicate"], 2),
        (["info"], 2),
        (["info", "--nonsense"], 2),
        (["--nonsense"], 2),
        (["sim", "guest"], 2),
        (["create", "a.vmdk", "1M", "--hw-version", "200"], 2),
        (["check", "--nonsense"], 1),
    ):
        found, text = failed(capsys, *arguments)
        assert found == code and "--help" in text, text


@pytest.mark.parametrize("command", ["info", "check", "map", "inspect"])
def test_a_file_that_is_missing_or_empty_has_a_remedy(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = failed(capsys, command, tmp_path / "no.vmdk")
    assert code == (1 if command == "check" else 6)
    assert "no.vmdk" in text and "check the path" in text
    if command == "inspect":  # which shows whatever there is
        return
    (tmp_path / "empty.vmdk").touch()
    code, text = failed(capsys, command, tmp_path / "empty.vmdk")
    assert code == (1 if command == "check" else 5)
    assert "an empty file; check the path" in text


def test_no_python_in_the_remedy_of_a_stream_that_breaks_off(
    disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = disk.with_name("stream.vmdk")
    raw = disk.with_name("disk.raw")
    raw.write_bytes(os.urandom(1 << 20))
    run_well("convert", raw, stream, "-O", "streamOptimized")
    stream.write_bytes(stream.read_bytes()[:700_000])
    code, text = failed(capsys, "info", stream)
    assert code == 5 and "--repair" in text


def test_messages_have_the_name_that_was_asked_for(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first name of a file that is being made is nobody's business."""
    done = subprocess.run(
        [sys.executable, "-m", "vdkit", "create", "big.vmdk", "1G", "-t", "monolithicFlat"],
        cwd=disk.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    assert done.returncode == 6 and done.stderr.count("\n") == 1
    assert "big-flat.vmdk: " in done.stderr and "vdkit-partial" not in done.stderr
    assert "too large" in done.stderr and "free space" not in done.stderr
    assert sorted(path.name for path in disk.parent.iterdir()) == ["disk.vmdk"]


def test_a_repair_does_not_call_a_chain_well_that_is_not(
    disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = disk.with_name("child.vmdk")
    run_well("create", child, "--parent", disk)
    disk.rename(disk.with_name("away"))
    assert run_well("check", child) == 2
    assert run_well("check", child, "--repair", "--in-place") == 2
    text = capsys.readouterr().out
    assert "nothing to mend in it" in text and "does not exist" in text
    assert "no errors were found" not in text


def test_a_repair_names_the_consent_that_a_changed_parent_needs(
    disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = disk.with_name("child.vmdk")
    run_well("create", child, "--parent", disk)
    with disk.open("r+b") as file:  # as if a guest had written to the parent
        data = file.read(4096)
        at = data.index(b"CID=") + 4
        file.seek(at)
        file.write(b"0badf00d")
    code, text = failed(capsys, "check", child, "--repair", "--in-place")
    assert code == 1 and "fix_cid" in text
    assert run_well("check", child, "--repair", "--in-place", "--fix-cid") == 0


def test_a_disk_that_a_product_has_in_use_is_only_read(
    disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, before = disk.with_name("other.vmdk"), disk.read_bytes()
    run_well("create", other, "10M")
    (disk.parent / "disk.vmdk.lck").mkdir()
    (disk.parent / "disk.vmdk.lck" / "M12345.lck").touch()
    for arguments in (
        ["write", disk, 0],
        ["delete", disk, "--force"],
        ["meta", disk, "note", "text"],
        ["convert", other, disk, "--overwrite"],
        ["resize", disk, "20M"],
    ):
        code, text = failed(capsys, *arguments)
        assert code == 11 and "disk.vmdk.lck" in text, text
    assert disk.read_bytes() == before
    assert run_well("compare", disk, other) == 0


@pytest.mark.parametrize("kind", ["monolithicFlat", "twoGbMaxExtentSparse", "vmfs"])
def test_a_lost_descriptor_is_made_anew_in_a_folder(disk: Path, kind: str) -> None:
    lost = disk.with_name("lost.vmdk")
    raw = disk.with_name("disk.raw")
    raw.write_bytes(os.urandom(3 << 20))
    run_well("convert", raw, lost, "-O", kind)
    lost.unlink()
    assert run_well("check", lost) == 2
    assert run_well("check", lost, "--repair", "--in-place") == 0
    assert run_well("compare", lost, raw) == 0
    assert run_well("check", "--undo-repair", f"{lost}.undo") == 0
    assert not lost.exists()


def test_what_is_no_disk_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.vmdk"
    text.write_text("hello\n")
    for command in (["delete", text], ["write", text, 0]):
        code, said = failed(capsys, *command)
        assert code == 5 and "not a VMDK descriptor" in said and "name a disk's descriptor" in said
    assert text.exists()


def test_a_parent_is_not_replaced_under_its_children(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, child, before = disk.with_name("other.vmdk"), disk.with_name("child.vmdk"), disk.read_bytes()
    run_well("create", other, "10M")
    run_well("create", child, "--parent", disk)
    code, text = failed(capsys, "convert", other, disk, "--overwrite")
    assert code == 2 and "child.vmdk" in text and "--force" in text
    assert disk.read_bytes() == before
    run_well("delete", child)
    assert run_well("convert", other, disk, "--overwrite") == 0
