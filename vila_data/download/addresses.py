"""IP address policy: a DNS resolver that refuses private and otherwise disallowed addresses.

A public crawler must not be talked into reaching the machine or network that it runs
in: every name is resolved here, each of its addresses is checked, and the connection
goes to the checked addresses, so a second, different resolution has no effect.
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

from vila_data.download.urls import IPv4, IPv6, canonical_host

Lookup = Callable[[str, int], list[str]]

_LOOKUP_THREADS: Final = 64
_CACHE_SIZE: Final = 4096
_FOUND_S: Final = 60.0
_NOT_FOUND_S: Final = 30.0

_REFUSED_4: Final = tuple(
    ipaddress.IPv4Network(network)
    for network in (  # all of IANA's special-purpose registry, and multicast
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; contains the metadata service 100.100.100.200
        "127.0.0.0/8",
        "168.63.129.16/32",  # not in the registry: a cloud's platform service
        "169.254.0.0/16",  # link-local; contains the metadata service 169.254.169.254
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_GLOBAL_6: Final = ipaddress.IPv6Network("2000::/3")  # all routed unicast; the registry's other blocks are outside
_REFUSED_6: Final = tuple(
    ipaddress.IPv6Network(network)
    for network in (  # what the special-purpose registry has within 2000::/3
        "2001::/23",  # protocol assignments: Teredo, 2001:1::, benchmarking, AMT, AS112, ORCHID, DRIP
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_CARRIERS: Final = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96")))  # IPv4-mapped, NAT64
_LOW_32: Final = 0xFFFF_FFFF


class AddressRefused(OSError):
    """The name has an address that is not on the public internet."""


def is_public(address: IPv4 | IPv6) -> bool:
    """Whether an address may be connected to; an IPv6 form that carries an IPv4 address is checked as that one."""
    if isinstance(address, IPv4):
        return not any(address in network for network in _REFUSED_4)
    if address.scope_id is not None:
        return False
    if any(address in network for network in _CARRIERS):
        return is_public(IPv4(int(address) & _LOW_32))
    return address in _GLOBAL_6 and not any(address in network for network in _REFUSED_6)


class AddressPolicy:
    """Public addresses, and the hosts (``host`` or ``host:port``) that are allowed whatever their address."""

    def __init__(self, allow_private_hosts: Iterable[str]) -> None:
        self._allowed = frozenset(map(_allowed, allow_private_hosts))

    def exempt(self, host: str, port: int) -> bool:
        """Whether the host is allowed by name."""
        name = host.lower().rstrip(".")
        return name in self._allowed or f"{name}:{port}" in self._allowed or f"[{name}]:{port}" in self._allowed

    def permits(self, host: str, port: int, addresses: Iterable[str]) -> bool:
        """Whether every address of the host may be connected to."""
        return self.exempt(host, port) or all(is_public(ipaddress.ip_address(address)) for address in addresses)


def _allowed(entry: str) -> str:
    """An entry of allow_private_hosts with its host as URLs have it; IPv6 in brackets only before a port."""
    host, colon, port = entry.rpartition(":")
    if not (colon and port.isdigit() and (":" not in host or host.startswith("["))):
        host, port = entry, ""
    name = canonical_host(f"[{host}]" if ":" in host and not host.startswith("[") else host) or host.lower()
    name = name.rstrip(".")
    if not port:
        return name
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


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
            raise OSError(f"{host} has no address of the requested family")
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
            raise OSError(f"{host} is not a host name") from error
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
