"""Which addresses may be connected to, and the resolver that refuses the others.

A public crawler must not be talked into reaching the machine or network that it runs
in: every name is resolved here, every address of it is judged, and the connection
goes to the addresses that were judged, so a name that resolves anew is caught.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult

IPv4 = ipaddress.IPv4Address
IPv6 = ipaddress.IPv6Address
Lookup = Callable[[str, int], list[str]]

_LOOKUP_THREADS: Final = 64
_CACHE_SIZE: Final = 4096
_FOUND_S: Final = 60.0
_NOT_FOUND_S: Final = 30.0

_REFUSED_4: Final = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; holds the metadata service 100.100.100.200
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's platform service
        "169.254.0.0/16",  # link-local; holds the metadata service 169.254.169.254
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_GLOBAL_6: Final = ipaddress.IPv6Network("2000::/3")  # all unicast that is routed; fd00:ec2::254 lies outside
_REFUSED_6: Final = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001:2::/48",  # benchmarking
        "2001:10::/28",  # ORCHID
        "2001:20::/28",
        "2001:db8::/32",  # documentation
        "3fff::/20",
    )
)
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR: Final = ipaddress.IPv6Network("2002::/16")
_TEREDO: Final = ipaddress.IPv6Network("2001::/32")
_LOW_32: Final = 0xFFFF_FFFF


class AddressRefused(OSError):
    """The name has an address that is not on the public internet."""


def is_public(address: IPv4 | IPv6) -> bool:
    """Whether an address may be connected to; IPv6 forms that carry an IPv4 address are judged by it too."""
    if isinstance(address, IPv4):
        return not any(address in network for network in _REFUSED_4)
    if address.scope_id is not None:
        return False
    carried = _carried(address)
    if carried:
        return all(is_public(inner) for inner in carried)
    return address in _GLOBAL_6 and not any(address in network for network in _REFUSED_6)


def _carried(address: IPv6) -> list[IPv4]:
    """IPv4 addresses within an IPv6 address: mapped, NAT64, 6to4, Teredo (server and client)."""
    bits = int(address)
    if address in _MAPPED or address in _NAT64:
        return [IPv4(bits & _LOW_32)]
    if address in _SIX_TO_FOUR:
        return [IPv4(bits >> 80 & _LOW_32)]
    if address in _TEREDO:
        return [IPv4(bits >> 64 & _LOW_32), IPv4(~bits & _LOW_32)]
    return []


def literal_address(host: str) -> IPv4 | IPv6 | None:
    """The address that a URL's host spells, also in the odd spellings (``127.1``, ``0x7f000001``); None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    if not host or not host[0].isdigit() or not host.isascii():
        return None
    try:
        return IPv4(socket.inet_aton(host.rstrip(".")))
    except (OSError, ValueError):
        return None


class AddressPolicy:
    """Public addresses, and the hosts (``host`` or ``host:port``) that are allowed whatever their address."""

    def __init__(self, allow_private_hosts: Iterable[str]) -> None:
        self._allowed = frozenset(entry.lower().rstrip(".") for entry in allow_private_hosts)

    def exempt(self, host: str, port: int) -> bool:
        """Whether the host is allowed by name."""
        name = host.lower().rstrip(".")
        return name in self._allowed or f"{name}:{port}" in self._allowed or f"[{name}]:{port}" in self._allowed

    def permits(self, host: str, port: int, addresses: Iterable[str]) -> bool:
        """Whether every address of the host may be connected to."""
        return self.exempt(host, port) or all(is_public(ipaddress.ip_address(address)) for address in addresses)


def system_lookup(host: str, port: int) -> list[str]:
    """Numeric addresses of a name, as the system resolves it.

    Raises:
        OSError, UnicodeError: the name has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class GuardedResolver(AbstractResolver):
    """aiohttp's resolver: looks a name up in its own threads and refuses names with any private address.

    Answers, also that there is none, are kept for a short time; at most 4,096 of them.
    """

    def __init__(self, policy: AddressPolicy, lookup: Lookup = system_lookup, keep_s: float = _FOUND_S) -> None:
        self._policy = policy
        self._lookup = lookup
        self._keep_s = keep_s
        self._threads = ThreadPoolExecutor(_LOOKUP_THREADS, thread_name_prefix="vila-dns")
        self._cache: OrderedDict[str, tuple[float, asyncio.Future[list[str]]]] = OrderedDict()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of `host` that may be connected to.

        Raises:
            AddressRefused: at least one of its addresses is not public.
            OSError: it has no address.
        """
        addresses = await self._addresses(host, port)
        if not self._policy.permits(host, port, addresses):
            raise AddressRefused(f"{host} has an address that is not public")
        results = [_result(host, address, port) for address in addresses]
        wanted = [result for result in results if family in (socket.AF_UNSPEC, result["family"])]
        if not wanted:
            raise OSError(f"{host} has no address of the wanted family")
        return wanted

    async def _addresses(self, host: str, port: int) -> list[str]:
        now = time.monotonic()
        known = self._cache.get(host)
        if known is None or known[0] < now:
            loop = asyncio.get_running_loop()
            answer = asyncio.ensure_future(loop.run_in_executor(self._threads, self._lookup, host, port))
            answer.add_done_callback(lambda done: self._keep(host, done))
            known = (now + self._keep_s, answer)
            self._cache[host] = known
            while len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        try:
            addresses = await asyncio.shield(known[1])
        except (UnicodeError, ValueError) as error:
            raise OSError(f"{host} is no host name") from error
        if not addresses:
            raise OSError(f"{host} has no address")
        return addresses

    def _keep(self, host: str, answer: asyncio.Future[list[str]]) -> None:
        """Shorten the life of an answer that there is no address."""
        if answer.cancelled():
            self._cache.pop(host, None)
        elif answer.exception() is not None and host in self._cache:
            self._cache[host] = (time.monotonic() + _NOT_FOUND_S, self._cache[host][1])

    async def close(self) -> None:
        """Drop the threads; a lookup under way ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _result(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=flags)
