"""Where we run is told from a tree of facts; the modes follow from that, from the disk, and from a list."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdkit.disklib import modes as disklib_modes
from vdkit.disklib.modes import (
    Subject,
    choose_modes,
    consider_modes,
    default_modes,
    list_transport_modes,
    open_in_modes,
    parse_modes,
)
from vdkit.errors import ConnectFailed, HostFileLocked, ModeUnavailable, UsageError, VixError
from vdkit.transports.modes import MODES, ModeName
from vdkit.transports.nfc import Mode
from vdkit.transports.surroundings import Machine, Surroundings, look_around

DMI = "sys/class/dmi/id"
BARE_CPU = "processor\t: 0\nflags\t\t: fpu vme sse2\n"
GUEST_CPU = "processor\t: 0\nflags\t\t: fpu vme hypervisor sse2\n"
PHYSICAL = Surroundings(Machine.PHYSICAL, scsi_disks=("0:0:0:0",))
VMWARE = Surroundings(Machine.VMWARE, "VMware", scsi_disks=("0:0:0:0", "0:0:1:0"))
KVM = Surroundings(Machine.OTHER_HYPERVISOR, "KVM", scsi_disks=())
DOCKER = Surroundings(Machine.VMWARE, "VMware", container="docker", scsi_disks=("0:0:0:0",))
NOWHERE = Surroundings()


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


MACHINES: dict[str, tuple[dict[str, str], Machine, str | None]] = {
    "physical": (
        {f"{DMI}/sys_vendor": "Dell Inc.\n", f"{DMI}/product_name": "R740", "proc/cpuinfo": BARE_CPU},
        Machine.PHYSICAL,
        None,
    ),
    "a laptop of Microsoft's": (
        {
            f"{DMI}/sys_vendor": "Microsoft Corporation",
            f"{DMI}/product_name": "Surface",
            "proc/cpuinfo": BARE_CPU,
        },
        Machine.PHYSICAL,
        None,
    ),
    "bare metal of a cloud": (
        {f"{DMI}/sys_vendor": "Amazon EC2", f"{DMI}/product_name": "m5.metal", "proc/cpuinfo": BARE_CPU},
        Machine.PHYSICAL,
        None,
    ),
    "VMware": (
        {
            f"{DMI}/sys_vendor": "VMware, Inc.\n",
            f"{DMI}/product_name": "VMware20,1",
            "proc/cpuinfo": GUEST_CPU,
        },
        Machine.VMWARE,
        "VMware",
    ),
    "VMware, one string only": ({f"{DMI}/sys_vendor": "VMware, Inc.\n"}, Machine.VMWARE, "VMware"),
    "KVM": (
        {f"{DMI}/sys_vendor": "QEMU", f"{DMI}/product_name": "Standard PC", "proc/cpuinfo": GUEST_CPU},
        Machine.OTHER_HYPERVISOR,
        "KVM",
    ),
    "Hyper-V": (
        {f"{DMI}/sys_vendor": "Microsoft Corporation", f"{DMI}/product_name": "Virtual Machine"},
        Machine.OTHER_HYPERVISOR,
        "Hyper-V",
    ),
    "Xen, by DMI": (
        {f"{DMI}/sys_vendor": "Xen", f"{DMI}/product_name": "HVM domU", "sys/hypervisor/type": "xen\n"},
        Machine.OTHER_HYPERVISOR,
        "Xen",
    ),
    "Xen without DMI": ({"sys/hypervisor/type": "xen\n"}, Machine.OTHER_HYPERVISOR, "Xen"),
    "Xen's own domain": (
        {"sys/hypervisor/type": "xen\n", "proc/xen/capabilities": "control_d\n"},
        Machine.PHYSICAL,
        None,
    ),
    "no name": ({"proc/cpuinfo": GUEST_CPU}, Machine.OTHER_HYPERVISOR, None),
    "ARM, whose flags say nothing": (
        {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\n"},
        Machine.UNKNOWN,
        None,
    ),
    "nothing at all": ({}, Machine.UNKNOWN, None),
}


@pytest.mark.parametrize("name", MACHINES)
def test_the_machine_is_told_from_its_facts(name: str, tmp_path: Path) -> None:
    files, machine, hypervisor = MACHINES[name]
    found = look_around(tree(tmp_path, files))
    assert (found.machine, found.hypervisor, found.container) == (machine, hypervisor, None)
    assert found.text


@pytest.mark.parametrize(
    ("files", "engine"),
    [
        ({".dockerenv": ""}, "docker"),
        ({"run/.containerenv": ""}, "podman"),
        ({"run/systemd/container": "systemd-nspawn\n"}, "systemd-nspawn"),
        ({"proc/1/environ": "PATH=/bin\0container=lxc\0"}, "lxc"),
        ({"proc/1/environ": "container=\0"}, "unknown"),
        ({"proc/1/cgroup": "0::/kubepods.slice/pod1\n"}, "kubernetes"),
        ({"proc/1/cgroup": "4:memory:/docker/0123\n"}, "docker"),
        ({"proc/1/cgroup": "0::/init.scope\n", "proc/1/environ": "HOME=/\0"}, None),
    ],
)
def test_containers_leave_marks(files: dict[str, str], engine: str | None, tmp_path: Path) -> None:
    found = look_around(tree(tmp_path, {f"{DMI}/sys_vendor": "VMware, Inc.", **files}))
    assert (found.machine, found.container) == (Machine.VMWARE, engine)
    assert ("in a container" in found.text) == (engine is not None)


def test_scsi_disks_are_listed_or_known_not_to_be(tmp_path: Path) -> None:
    assert look_around(tmp_path).scsi_disks is None
    folder = tmp_path / "sys/class/scsi_disk"
    folder.mkdir(parents=True)
    assert look_around(tmp_path).scsi_disks == ()
    for name in ("2:0:1:0", "2:0:0:0"):
        (folder / name).mkdir()
    assert look_around(tmp_path).scsi_disks == ("2:0:0:0", "2:0:1:0")


@given(vendor=st.binary(max_size=300), flags=st.binary(max_size=300), group=st.binary(max_size=100))
def test_no_content_of_the_facts_makes_it_fail(
    vendor: bytes, flags: bytes, group: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tree(tmp_path_factory.mktemp("odd"), {f"{DMI}/x": "", "proc/1/x": ""})
    (root / DMI / "sys_vendor").write_bytes(vendor)
    (root / "proc/cpuinfo").write_bytes(flags)
    (root / "proc/1/cgroup").write_bytes(group)
    found = look_around(root)
    assert all(line.isprintable() for line in (found.text, *found.evidence))
    assert choose_modes(None, here=found).mode == "nbdssl"


def test_row_e5_default_modes_work_where_nothing_can_be_told(tmp_path: Path) -> None:
    """RHEL-54377: without /sys/class/scsi_disk, or outside VMware, default modes ended the process."""
    for root in (tmp_path / "no such folder", tmp_path):
        here = look_around(root)
        assert (here.machine, here.scsi_disks) == (Machine.UNKNOWN, None)
        choice = choose_modes(None, here=here)
        assert choice.mode == "nbdssl"
        assert {one.mode for one in choice.considered} == set(MODES)
        assert all(one.reason for one in choice.considered)


def test_row_e5_unreadable_facts_are_unknown_ones(tmp_path: Path) -> None:
    # Folders where files are expected cannot be read by anybody, root included.
    for name in (
        f"{DMI}/sys_vendor",
        "proc/cpuinfo",
        "proc/1/environ",
        "proc/1/cgroup",
        "sys/hypervisor/type",
    ):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "sys/class").mkdir(exist_ok=True)
    (tmp_path / "sys/class/scsi_disk").write_text("a file")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "run").symlink_to("../loop")
    assert look_around(tmp_path) == Surroundings(evidence=("/sys/class/scsi_disk cannot be listed",))


# -- lists ---------------------------------------------------------------------------------------


def test_a_list_is_parsed_in_its_order() -> None:
    assert parse_modes("file:san:hotadd:nbdssl:nbd") == MODES
    assert parse_modes("NBD: nbdssl :nbd") == ("nbd", "nbdssl")


@pytest.mark.parametrize("text", ["", ":", "nbd:", "nbd::nbdssl", "nfs", "nbd,nbdssl", "nbdssl:nbdx"])
def test_what_is_no_list_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError, match="file, san, hotadd, nbdssl, nbd"):
        choose_modes(text)


@pytest.mark.parametrize(
    ("here", "order"),
    [
        (PHYSICAL, "file:san:nbdssl"),
        (VMWARE, "file:san:hotadd:nbdssl"),
        (KVM, "file:nbdssl"),
        (DOCKER, "file:nbdssl"),
        (NOWHERE, "file:nbdssl"),
    ],
    ids=["physical", "vmware", "kvm", "container", "unknown"],
)
def test_the_default_follows_from_where_we_run(here: Surroundings, order: str) -> None:
    assert ":".join(default_modes(here)) == order
    choice = choose_modes(None, here=here)
    assert choice.usable == ("nbdssl",)
    assert [one.mode for one in choice.considered][: len(order.split(":"))] == order.split(":")
    reasons = {one.mode: one.reason for one in choice.considered}
    assert "in clear" in reasons["nbd"]
    assert reasons["hotadd"] and ("VMware" in reasons["hotadd"] or here.machine is Machine.VMWARE)


@given(
    st.sampled_from([PHYSICAL, VMWARE, KVM, DOCKER, NOWHERE]),
    st.lists(st.sampled_from(MODES), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_a_choice_is_usable_and_in_the_order_asked(
    here: Surroundings, asked: list[ModeName], encrypted: bool, physical: bool
) -> None:
    subject = Subject(encrypted=encrypted, physical_mapping=physical)
    text = ":".join(asked)
    works: list[ModeName] = [] if physical else ["nbdssl"] if encrypted else ["nbdssl", "nbd"]
    wanted = tuple(mode for mode in dict.fromkeys(asked) if mode in works)
    if wanted:
        assert choose_modes(text, subject, here=here).usable == wanted
        return
    with pytest.raises(ModeUnavailable) as caught:
        choose_modes(text, subject, here=here)
    assert caught.value.code.number == 13
    for mode in asked:
        assert f"{mode}: " in str(caught.value)


def test_reasons_are_those_of_the_disk_first() -> None:
    mapped = consider_modes("san:hotadd:nbdssl:nbd", Subject(physical_mapping=True), here=VMWARE)
    assert all(not one.usable and "raw device mapping" in one.reason for one in mapped)
    hidden = {one.mode: one.reason for one in consider_modes(None, Subject(encrypted=True), here=VMWARE)}
    assert all("encrypted" in hidden[mode] for mode in ("san", "nbd"))
    on_nfs = {one.mode: one for one in consider_modes(None, Subject(datastore="NFS", ide=True), here=VMWARE)}
    assert "NFS" in on_nfs["san"].reason
    assert "IDE" in on_nfs["hotadd"].reason
    assert on_nfs["nbdssl"].usable
    local = choose_modes(None, Subject(local=True), here=VMWARE)
    assert local.usable == ("file",)


def test_what_is_not_built_is_not_claimed() -> None:
    assert list_transport_modes() == "file:nbdssl:nbd"
    for mode in ("san", "hotadd"):
        with pytest.raises(ModeUnavailable, match="not in this release") as caught:
            choose_modes(mode, here=VMWARE)
        assert "add nbdssl" in str(caught.value)


# -- opening -------------------------------------------------------------------------------------


class Door:
    """Opens in the modes that it is told to, and notes what it was asked."""

    def __init__(self, failures: dict[Mode, VixError]) -> None:
        self.failures, self.asked = failures, list[Mode]()

    def __call__(self, mode: Mode) -> str:
        self.asked.append(mode)
        if mode in self.failures:
            raise self.failures[mode]
        return f"open over {mode}"


def test_the_next_mode_is_tried_when_it_was_the_mode() -> None:
    door = Door({"nbdssl": ModeUnavailable("h:902: no TLS here")})
    opened = open_in_modes("san:nbdssl:nbd", Subject("[ds] a.vmdk"), door, here=KVM)
    assert (opened.device, opened.mode, door.asked) == ("open over nbd", "nbd", ["nbdssl", "nbd"])
    assert [one.mode for one in opened.choice.rejected] == ["san", "nbdssl"]
    assert any("no TLS here" in note for note in opened.notes)
    assert "nbd is used instead" in opened.notes[-1]


def test_without_being_named_clear_text_is_never_used() -> None:
    door = Door({"nbdssl": ModeUnavailable("h:902: no TLS here")})
    for modes in (None, "nbdssl"):
        with pytest.raises(ModeUnavailable, match="no TLS here"):
            open_in_modes(modes, Subject(), door, here=KVM)
    assert set(door.asked) == {"nbdssl"}


def test_a_host_that_wants_encryption_gets_it_unasked() -> None:
    door = Door({"nbd": ModeUnavailable("h:902: disks in TLS only")})
    opened = open_in_modes("nbd", Subject(), door, here=KVM)
    assert (opened.mode, door.asked) == ("nbdssl", ["nbd", "nbdssl"])
    assert "nbdssl is used instead" in opened.notes[-1]
    both = Door({"nbd": ModeUnavailable("tls only"), "nbdssl": ModeUnavailable("clear only")})
    for modes in ("nbd", "nbdssl:nbd"):
        with pytest.raises(ModeUnavailable, match=r"clear only.*tls only|tls only.*clear only"):
            open_in_modes(modes, Subject(), both, here=KVM)


@pytest.mark.parametrize("error", [HostFileLocked("locked"), ConnectFailed("no route"), UsageError("odd")])
def test_what_is_not_the_mode_is_told_at_once(error: VixError) -> None:
    door = Door({"nbdssl": error})
    with pytest.raises(type(error)) as caught:
        open_in_modes("nbdssl:nbd", Subject(), door, here=KVM)
    assert caught.value is error
    assert door.asked == ["nbdssl"]


def test_every_mode_has_a_probe() -> None:
    for mode in MODES:
        (looked_at,) = consider_modes(mode, here=PHYSICAL)
        assert looked_at.mode == mode
    assert set(disklib_modes.PROBES) == {"san", "hotadd"}
