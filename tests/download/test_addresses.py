"""No address within a machine or a private network is connected to, in whatever form it comes."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vila_data.download.addresses import AddressPolicy, AddressRefused, GuardedResolver, is_public
from vila_data.download.urls import literal_address

V4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
PRIVATE = st.sampled_from(
    [
        ipaddress.ip_network(n)
        for n in ("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16", "100.64.0.0/10")
    ]
).flatmap(lambda net: st.integers(0, net.num_addresses - 1).map(lambda i: net[i]))


def in_v6(prefix: str, v4: ipaddress.IPv4Address, shift: int, invert: bool = False) -> ipaddress.IPv6Address:
    bits = int(v4) ^ (0xFFFFFFFF if invert else 0)
    return ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | bits << shift)


@given(V4)
def test_nothing_is_public_that_the_standard_library_calls_private(address: ipaddress.IPv4Address) -> None:
    special = (
        address.is_private, address.is_loopback, address.is_link_local, address.is_multicast, address.is_reserved,
        address.is_unspecified,
    )  # fmt: skip
    if any(special):
        assert not is_public(address)


@given(st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address))
def test_the_same_for_ipv6(address: ipaddress.IPv6Address) -> None:
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert not is_public(address)


@given(PRIVATE)
def test_private_addresses_stay_private_in_every_ipv6_clothing(address: ipaddress.IPv4Address) -> None:
    assert not is_public(address)
    public = ipaddress.IPv4Address("93.184.216.34")
    assert not is_public(in_v6("::ffff:0:0", address, 0))
    assert not is_public(in_v6("::", address, 0))
    assert not is_public(in_v6("64:ff9b::", address, 0))
    assert not is_public(in_v6("64:ff9b:1::", address, 0))
    assert not is_public(in_v6("2002::", address, 80))
    server_private = int(in_v6("2001::", address, 64)) | int(public) ^ 0xFFFFFFFF
    client_private = int(in_v6("2001::", public, 64)) | int(address) ^ 0xFFFFFFFF
    assert not is_public(ipaddress.IPv6Address(server_private))
    assert not is_public(ipaddress.IPv6Address(client_private))


@pytest.mark.parametrize(
    "text",
    ["93.184.216.34", "8.8.8.8", "1.1.1.1", "172.15.255.255", "172.32.0.0", "100.63.255.255", "2606:2800:220:1::1",
     "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)  # fmt: skip
def test_the_internet_is_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    ["169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fe80::1%eth0", "ff02::1",
     "::", "::1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "64:ff9b::a9fe:a9fe", "::ffff:169.254.169.254"],
)  # fmt: skip
def test_metadata_services_and_special_addresses_are_not(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


# IANA's special-purpose address registries and multicast; of NAT64 and IPv4-mapped what carries private IPv4
REGISTRY = [
    "0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32", "192.0.0.170/32",
    "192.0.0.171/32", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16",
    "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "255.255.255.255/32",
    "::1/128", "::/128", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001::/32", "2001:1::/32",
    "2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32", "2001:4:112::/48",
    "2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
    "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "224.0.0.0/4", "64:ff9b::a00:0/104",
    "64:ff9b::7f00:0/104", "::ffff:10.0.0.0/104", "::ffff:192.168.0.0/112",
]  # fmt: skip


@pytest.mark.parametrize("block", REGISTRY)
def test_special_purpose_blocks_are_refused_to_both_ends(block: str) -> None:
    network = ipaddress.ip_network(block)
    assert (
        not is_public(network[0]) and not is_public(network[-1]) and not is_public(network[network.num_addresses // 2])
    )


@given(V4)
def test_odd_spellings_are_read_as_the_system_reads_them(address: ipaddress.IPv4Address) -> None:
    whole = int(address)
    for spelling in (str(address), str(whole), hex(whole), f"0{whole:o}", f"{whole >> 24}.{whole & 0xFFFFFF}"):
        assert literal_address(spelling) == address


@pytest.mark.parametrize(
    "name", ["example.org", "1.example.org", "127.0.0.1.nip.io", "", "localhost", "0xyz", "1e100.net"]
)
def test_names_are_no_literals(name: str) -> None:
    assert literal_address(name) is None


def test_allowed_hosts_are_exempt_by_name_and_port_only() -> None:
    policy = AddressPolicy(["Cache.local", "127.0.0.1:8080", "[::1]:80"])
    assert policy.exempt("cache.local", 1) and policy.exempt("CACHE.local.", 2)
    assert policy.exempt("127.0.0.1", 8080) and not policy.exempt("127.0.0.1", 8081)
    assert policy.exempt("::1", 80) and not policy.exempt("::1", 81)
    assert not policy.permits("other.local", 80, ["127.0.0.1"])
    spelled = AddressPolicy(["127.1:80", "Bücher.test", "[0:0::1]"])
    assert spelled.exempt("127.0.0.1", 80) and spelled.exempt("xn--bcher-kva.test", 9) and spelled.exempt("::1", 9)


async def test_a_name_that_resolves_anew_is_judged_anew() -> None:
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])
    resolver = GuardedResolver(AddressPolicy([]), lambda host, port: next(answers), keep_s=-1)
    (first,) = await resolver.resolve("rebind.test", 80)
    assert first["host"] == "93.184.216.34"
    assert first["flags"] & socket.AI_NUMERICHOST, "the connection must go to the address that was judged"
    with pytest.raises(AddressRefused):
        await resolver.resolve("rebind.test", 80)
    await resolver.close()


async def test_one_private_address_among_public_ones_refuses_the_name() -> None:
    resolver = GuardedResolver(AddressPolicy([]), lambda host, port: ["93.184.216.34", "::ffff:10.0.0.1"])
    with pytest.raises(AddressRefused):
        await resolver.resolve("mixed.test", 80)
    await resolver.close()


async def test_answers_and_failures_are_asked_for_once() -> None:
    asked: list[str] = []

    def lookup(host: str, port: int) -> list[str]:
        asked.append(host)
        if host == "none.test":
            raise socket.gaierror(socket.EAI_NONAME, "no")
        return ["93.184.216.34"]

    resolver = GuardedResolver(AddressPolicy([]), lookup)
    for _ in range(3):
        await resolver.resolve("some.test", 80)
        with pytest.raises(OSError):
            await resolver.resolve("none.test", 80)
    assert sorted(asked) == ["none.test", "some.test"]
    await resolver.close()
