"""Addresses of VMFS: vectors from real volumes, and every form that a fixture can write."""

from __future__ import annotations

import pytest

from vdkit.testing.vmfsdirectory import name_hash
from vdkit.testing.vmfslayout import (
    block_address,
    descriptor_address,
    large_address,
    pointer_address,
    sub_block_address,
)
from vdkit.vmfs.addresses import Address, Kind, decode_5, decode_6


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0x0048000000000001, Address(Kind.BLOCK, 0, 0, 9)),
        (0x0718000000008001, Address(Kind.BLOCK, 0, 1, 227)),
        (0x0100000000000482, Address(Kind.SUB_BLOCK, 0, 18, 1)),
        (0x01800004, Address(Kind.DESCRIPTOR, 0, 0, 6)),
        (0, Address(Kind.NONE)),
    ],
)
def test_what_real_volumes_of_vmfs_6_hold(value: int, expected: Address) -> None:
    assert decode_6(value) == expected


def test_a_journal_block_of_a_real_heartbeat() -> None:
    """The file block 1531 of a VMFS-5 volume that a host had mounted."""
    assert decode_5(0x17EC1, dense=True) == Address(Kind.BLOCK, 1531)
    assert decode_6(0x04000016) == Address(Kind.JOURNAL, 0, 2, 1)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("block", [0, 9, 511, 512, (1 << 26) - 1])
def test_blocks(block: int, shared: bool) -> None:
    for mask in (0, 1):
        found = decode_5(block_address(5, block, mask=mask, shared=shared), dense=True)
        assert found == Address(Kind.BLOCK, block, zeroed=0xFF if mask else 0, shared=shared)
    for mask in (0, 1, 0x80, 0x5A, 0xFF):
        found = decode_6(block_address(6, block, mask=mask, shared=shared))
        assert found == Address(Kind.BLOCK, 0, block // 512, block % 512, mask, shared)
        assert decode_6(large_address(block, mask=mask, shared=shared)) == Address(
            Kind.LARGE_BLOCK, block, zeroed=mask, shared=shared
        )


@pytest.mark.parametrize(("cluster", "resource"), [(0, 0), (18, 1), (0x3FFFFF, 63), (5, 16), (7, 48)])
def test_resources(cluster: int, resource: int) -> None:
    expected = Address(Kind.SUB_BLOCK, 0, cluster, resource)
    assert decode_5(sub_block_address(5, cluster, resource), dense=True) == expected
    assert decode_6(sub_block_address(6, cluster, resource)) == expected
    assert decode_6(sub_block_address(6, cluster, resource) | 1 << 5) == expected._replace(shared=True)
    few = resource % 16
    assert decode_5(sub_block_address(5, cluster, few, dense=False), dense=False) == Address(
        Kind.SUB_BLOCK, 0, cluster, few
    )
    for kind in (3, 5):
        assert decode_5(pointer_address(5, kind, cluster, few), dense=True) == Address(
            Kind(kind), 0, cluster, few
        )
        assert decode_6(pointer_address(6, kind, cluster, resource)) == Address(
            Kind(kind), 0, cluster, resource
        )


def test_descriptors_have_32_bits_in_both() -> None:
    for cluster, resource in ((0, 0), (3, 1023), (0xFFFF, 1)):
        value = descriptor_address(cluster, resource)
        expected = Address(Kind.DESCRIPTOR, 0, cluster, resource)
        assert decode_5(value, dense=True) == decode_6(value) == expected


def test_no_value_is_without_an_answer() -> None:
    for kind in range(8):
        for rest in (0, (1 << 61) - 1, 0x0123456789ABCDE):
            assert decode_6(rest << 3 | kind).kind == kind
            assert decode_5((rest << 3 | kind) & 0xFFFFFFFF, dense=True).kind == kind


@pytest.mark.parametrize(
    ("name", "low", "bucket"),
    [
        ("file1", 0xD2B970EB, 0x10FC),
        ("file100", 0x12C8B7E1, 0x20FF),
        ("ajVm", 0xAC9E62CB, 0x26F7),
        ("alBt", 0x02874A77, 0x26F7),
    ],
)
def test_the_hash_that_hosts_give_to_names(name: str, low: int, bucket: int) -> None:
    found = name_hash(name.encode())
    assert (found & 0xFFFFFFFF, found % 16001) == (low, bucket)
