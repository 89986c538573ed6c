"""URLs as they are written: what is legal is sent byte for byte, only what is not is percent-encoded.

Signed URLs answer 403 to any other spelling of theirs, also to an equivalent one. So no escape is
decoded, changed in case or resolved (``%26``, ``%c3``, ``%2E%2E``), and an empty query keeps its ``?``.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from yarl import URL as AnyURL

IPv4 = ipaddress.IPv4Address
IPv6 = ipaddress.IPv6Address

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_C0_AND_SPACE: Final = "".join(map(chr, range(0x21)))
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_AUTHORITY: Final = re.compile(r"(\[[^\[\]@]*\]|[^\[\]:@\\]+)(?::([0-9]*))?")
_HOST: Final = re.compile(r"[a-z0-9._-]+")
_LEGAL: Final = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:@/?%]*")  # RFC 3986: pchar, "/", "?", and a "%" as it is
_ILLEGAL: Final = re.compile(rb"[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%]")


@dataclass(frozen=True, slots=True)
class WebURL:
    """An http or https URL that can be requested.

    host:   lower-case ASCII: a name, or an address in its usual spelling (IPv6 without brackets).
    target: path and query exactly as they are sent; starts with ``/``, has no fragment.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> str:
        """Scheme, host and port; the port only where it is not the scheme's own."""
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return self.origin + self.target


def parse_url(text: str, base: WebURL | None = None) -> WebURL | None:
    """An http or https URL with a host and without credentials, or None; relative to `base` if given.

    Bytes of a header that are not UTF-8 (``surrogateescape``) are escaped one by one.
    ``http:path`` is relative to a `base` of the same scheme, as browsers and urllib have it.
    """
    written = text.strip().strip(_C0_AND_SPACE).partition("#")[0]
    scheme = _SCHEME.match(written)
    if scheme is not None:
        name, rest = scheme[1].lower(), written[scheme.end() :]
    elif base is not None:
        name, rest = base.scheme, written
    else:
        return None
    if name not in _DEFAULT_PORTS:
        return None
    if rest.startswith("//"):
        return _absolute(name, rest[2:])
    if base is None or name != base.scheme:
        return None
    return WebURL(base.scheme, base.host, base.port, _relative(_escaped(rest), base.target))


def _absolute(scheme: str, rest: str) -> WebURL | None:
    end = next((at for at, character in enumerate(rest) if character in "/?"), len(rest))
    found = _AUTHORITY.fullmatch(rest[:end])
    if found is None:
        return None
    host = canonical_host(found[1])
    digits = (found[2] or "").lstrip("0")
    port = int(digits) if 0 < len(digits) < 6 else _DEFAULT_PORTS[scheme] if not found[2] else 0
    if host is None or not 0 < port < 65_536:
        return None
    target = _escaped(rest[end:])
    return WebURL(scheme, host, port, target if target.startswith("/") else "/" + target)


def canonical_host(host: str) -> str | None:
    """A URL's host as it is connected to: names in IDNA's ASCII, addresses in their usual spelling; None for neither.

    The brackets of an IPv6 address are left out; one with a zone is not a public host.
    """
    if host.startswith("["):
        try:
            address = IPv6(host[1:-1])
        except ValueError:
            return None
        return None if address.scope_id else str(address)
    name = host.lower()
    if not _HOST.fullmatch(name):
        try:
            name = (AnyURL.build(scheme="http", host=unquote(host, errors="strict")).raw_host or "").lower()
        except (ValueError, UnicodeError, IndexError):
            return None
        if not _HOST.fullmatch(name):
            return None
    literal = literal_address(name)
    return name if literal is None else str(literal)


def literal_address(host: str) -> IPv4 | IPv6 | None:
    """The address that a URL's host spells, also in the odd spellings (``127.1``, ``0x7f000001``); None for a name."""
    if not host or not (host[0].isdigit() or ":" in host) or not host.isascii():
        return None
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4(socket.inet_aton(host.rstrip(".")))
    except (OSError, ValueError):
        return None


def _escaped(text: str) -> str:
    """`text` with only those bytes percent-encoded that RFC 3986 allows in no path and no query."""
    if _LEGAL.fullmatch(text):
        return text
    try:
        content = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character: replaced, as browsers do
        content = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    return _ILLEGAL.sub(lambda found: b"%%%02X" % found[0][0], content).decode("ascii")


def _relative(reference: str, base: str) -> str:
    """The target that a reference without scheme and host names (RFC 3986, section 5.2)."""
    base_path = base.partition("?")[0]
    path, mark, query = reference.partition("?")
    if not path:
        return base_path + mark + query if mark else base
    if not path.startswith("/"):
        path = base_path[: base_path.rindex("/") + 1] + path
    return without_dots(path) + mark + query


def without_dots(path: str) -> str:
    """A path with ``.`` and ``..`` resolved; their escaped spellings are names like any other."""
    if "/." not in path:
        return path
    first, *segments = path.split("/")
    kept = [first]
    for segment in segments:
        if segment == ".." and len(kept) > 1:
            kept.pop()
        if segment not in (".", ".."):
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/".join(kept) if len(kept) > 1 else "/"
