"""Every way in which an origin can misbehave, in one part: each is a counted fate, nothing else is lost."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import socket
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trustme
from PIL import Image

from tests.download.origin import Handler, Origin, Request, answers, head, in_turn, jpeg, missing, pair, part
from vila_data.core.records import Record
from vila_data.core.store import Store
from vila_data.download.config import DownloadConfig
from vila_data.download.fetch import Network
from vila_data.download.part import download_part

GOOD = jpeg()
LIMIT = 300_000


def header_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(
        b"IDAT", pixels
    ) + chunk(b"IEND", b"")  # fmt: skip


async def endless(request: Request) -> None:
    await request.raw(head(200, {"Transfer-Encoding": "chunked", "Content-Type": "image/jpeg"}))
    while True:
        await request.raw(b"10000\r\n" + bytes(65_536) + b"\r\n")


async def drip(request: Request) -> None:
    await request.raw(head(200, {"Content-Length": "100000"}))
    while True:
        await request.raw(b"x")
        await asyncio.sleep(0.05)


async def stall(request: Request) -> None:
    await request.raw(head(200, {"Content-Length": "100000"}) + b"x")
    await asyncio.Event().wait()


async def silence(request: Request) -> None:
    await asyncio.Event().wait()


async def header_flood(request: Request) -> None:
    await request.raw(
        b"HTTP/1.1 200 X\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(2000)) + b"\r\n"
    )


async def long_header(request: Request) -> None:
    await request.raw(b"HTTP/1.1 200 X\r\nX-Long: " + b"a" * 5_000_000 + b"\r\n\r\n")


async def garbage(request: Request) -> None:
    await request.raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


async def reset_in_body(request: Request) -> None:
    await request.raw(head(200, {"Content-Length": str(len(GOOD))}) + GOOD[:100])
    request.reset()


async def short_body(request: Request) -> None:
    await request.raw(head(200, {"Content-Length": str(len(GOOD))}) + GOOD[:100])
    request.writer.close()


async def wide_header(request: Request) -> None:
    line = b"X-Wide: " + b"a" * (65_536 - 10) + b"\r\n"
    await request.raw(b"HTTP/1.1 200 X\r\n" + line + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD)


async def early_hints(request: Request) -> None:
    await request.raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
    await asyncio.sleep(0.02)
    await request.raw(b"HTTP/1.1 100 Continue\r\n\r\n" + repeated(GOOD, len(GOOD), len(GOOD)))


async def interim_flood(request: Request) -> None:
    await request.raw(b"HTTP/1.1 100 C\r\n\r\n" * 1000 + repeated(GOOD, len(GOOD)))


async def dripped_head(request: Request) -> None:
    head_bytes = repeated(b"", len(GOOD), len(GOOD))
    for at in range(0, len(head_bytes), 5):
        await request.raw(head_bytes[at : at + 5])
        await asyncio.sleep(0.001)
    await request.raw(GOOD)


def repeated(body: bytes, *lengths: object) -> bytes:
    lines = "".join(
        f"{name}: {n}\r\n" for name, n in zip(("Content-Length", "content-length") * 9, lengths, strict=False)
    )
    return b"HTTP/1.1 200 X\r\nContent-Type: image/jpeg\r\n" + lines.encode() + b"X-After: 1\r\n\r\n" + body


def lengths(*values: object) -> Handler:
    async def handler(request: Request) -> None:
        await request.raw(repeated(GOOD, *values))

    return handler


def packed(data: bytes, codec: str) -> bytes:
    return pa.compress(data, codec=codec, asbytes=True)


def redirects(to: str, status: int = 302) -> Handler:
    return answers(b"", status, Location=to)


BOMB = gzip.compress(bytes(30_000_000))
FORBIDS = b"User-agent: *\nDisallow: /image\n"
LONG_ROBOTS = gzip.compress(FORBIDS + b"Allow: /x\n" * 100_000)
CUT_JPEG = jpeg(900, 700, 5, 95)[:5_000]

# host name: (handler of /image, robots.txt handler or None, expected error, expected http_code, requests for /image)
Case = tuple[Handler, "Handler | None", "str | None", "int | None", int]
OUTSIDE = {
    "private.test": ["10.0.0.8"],
    "mixed.test": ["93.184.216.34", "192.168.0.9"],
    "metadata.test": ["fd00:ec2::254"],
}


def cases(port: int, closed: int) -> dict[str, Case]:
    robots = answers(b"User-agent: *\nDisallow: /image\n")
    found: dict[str, tuple[object, ...]] = {
        "loopback-redirect": (redirects(f"http://127.0.0.1:{port}/image"), None, "address_refused", 302, 1),
        "metadata-redirect": (redirects("http://169.254.169.254/latest/"), None, "address_refused", 302, 1),
        "name-redirect": (redirects("http://private.test/image", 307), None, "address_refused", 307, 1),
        "file-redirect": (redirects("file:///etc/passwd"), None, "bad_url", 302, 1),
        "loop": (redirects("/image"), None, "too_many_redirects", 302, 6),
        "good-redirect": (redirects(f"http://plain.test:{port}/other", 301), None, None, 200, 1),
        "endless": (endless, None, "too_large", 200, 1),
        "announced": (answers(bytes(LIMIT + 1)), None, "too_large", 200, 1),
        "drip": (drip, None, "timeout", 200, 2),
        "stall": (stall, None, "timeout", 200, 2),
        "silence": (silence, None, "timeout", None, 2),
        "pixels": (answers(header_png(50_000, 50_000)), None, "too_many_pixels", 200, 1),
        "cut": (answers(CUT_JPEG), None, "truncated_image", 200, 1),
        "html": (answers(b"<html>gone</html>", Content_Type="image/jpeg"), None, "not_an_image", 200, 1),
        "svg": (answers(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), None, "not_an_image", 200, 1),
        "empty": (answers(b""), None, "not_an_image", 200, 1),
        "bomb": (answers(BOMB, Content_Encoding="gzip"), None, "too_large", 200, 1),
        "gzipped": (answers(gzip.compress(GOOD), Content_Encoding="gzip"), None, None, 200, 1),
        "deflated": (answers(zlib.compress(GOOD), Content_Encoding="deflate"), None, None, 200, 1),
        "raw-deflated": (answers(zlib.compress(GOOD)[2:-4], Content_Encoding="deflate"), None, None, 200, 1),
        "brotli": (answers(GOOD, Content_Encoding="br"), None, "bad_response", 200, 1),
        "brotli-good": (answers(packed(GOOD, "brotli"), Content_Encoding="br"), None, None, 200, 1),
        "brotli-bomb": (answers(packed(bytes(3_000_000), "brotli"), Content_Encoding="br"), None, "too_large", 200, 1),
        "brotli-cut": (answers(packed(GOOD, "brotli")[:-9], Content_Encoding="br"), None, "connection_lost", 200, 2),
        "zstandard": (answers(packed(GOOD, "zstd"), Content_Encoding="Zstd"), None, None, 200, 1),
        "coding-none": (answers(GOOD, Content_Encoding="none"), None, None, 200, 1),
        "coding-utf8": (answers(GOOD, Content_Encoding="UTF-8"), None, None, 200, 1),
        "coding-binary": (answers(GOOD, Content_Encoding="binary"), None, None, 200, 1),
        "coding-type": (answers(GOOD, Content_Encoding="image/jpeg"), None, None, 200, 1),
        "coding-identity": (answers(GOOD, Content_Encoding="Identity"), None, None, 200, 1),
        "coding-empty": (answers(GOOD, Content_Encoding=""), None, None, 200, 1),
        "coding-aws": (answers(gzip.compress(GOOD), Content_Encoding="aws-chunked, GZIP"), None, None, 200, 1),
        "coding-twice": (answers(GOOD, Content_Encoding="gzip, gzip"), None, "bad_response", 200, 1),
        "wide-header": (wide_header, None, None, 200, 1),
        "lengths-equal": (lengths(len(GOOD), len(GOOD)), None, None, 200, 1),
        "lengths-three": (lengths(len(GOOD), len(GOOD), len(GOOD)), None, None, 200, 1),
        "lengths-listed": (lengths(f"{len(GOOD)}, {len(GOOD)}"), None, None, 200, 1),
        "lengths-differ": (lengths(len(GOOD), len(GOOD) - 1), None, "bad_response", None, 1),
        "lengths-differ-listed": (lengths(f"{len(GOOD)}, 1"), None, "bad_response", None, 1),
        "early-hints": (early_hints, None, None, 200, 1),
        "interim-flood": (interim_flood, None, "bad_response", None, 1),
        "dripped-head": (dripped_head, None, None, 200, 1),
        "broken-gzip": (answers(GOOD, Content_Encoding="gzip"), None, "bad_response", 200, 1),
        "flood": (header_flood, None, "bad_response", None, 1),
        "long-header": (long_header, None, "bad_response", None, 1),
        "garbage": (garbage, None, "bad_response", None, 1),
        "busy": (in_turn(answers(b"", 429, Retry_After="0"), answers(GOOD)), None, None, 200, 2),
        "dated": (
            in_turn(answers(b"", 429, Retry_After="Mon, 01 Jan 2024 00:00:00 GMT"), answers(GOOD)),
            None,
            None,
            200,
            2,
        ),
        "busy-long": (answers(b"", 429, Retry_After="3600"), None, "http_status", 429, 1),
        "down-once": (in_turn(answers(b"", 503), answers(GOOD)), None, None, 200, 2),
        "down": (answers(b"", 500), None, "http_status", 500, 2),
        "gone": (missing, None, "http_status", 404, 1),
        "forbidden": (answers(b"", 403), None, "http_status", 403, 1),
        "partial": (answers(GOOD, 206), None, "http_status", 206, 1),
        "reset": (reset_in_body, None, "connection_lost", 200, 2),
        "reset-once": (in_turn(reset_in_body, answers(GOOD)), None, None, 200, 2),
        "short": (short_body, None, "connection_lost", 200, 2),
        "robots": (answers(GOOD), robots, "robots_txt", None, 0),
        "robots-redirect": (answers(GOOD), redirects(f"http://robots.test:{port}/robots.txt"), "robots_txt", None, 0),
        "robots-us": (answers(GOOD), answers(b"User-agent: vila-data\nDisallow: /\n"), "robots_txt", None, 0),
        "robots-other": (answers(GOOD), answers(b"User-agent: otherbot\nDisallow: /\n"), None, 200, 1),
        "robots-down": (answers(GOOD), answers(b"", 503), "robots_txt", None, 0),
        "robots-lost": (answers(GOOD), reset_in_body, "robots_txt", None, 0),
        "robots-short": (answers(GOOD), short_body, "robots_txt", None, 0),
        "robots-silent": (answers(GOOD), silence, "robots_txt", None, 0),
        "robots-stalled": (answers(GOOD), stall, "robots_txt", None, 0),
        "robots-garbage": (answers(GOOD), garbage, "robots_txt", None, 0),
        "robots-down-once": (answers(GOOD), in_turn(answers(b"", 503), missing), None, 200, 1),
        "robots-endless": (answers(GOOD), endless, None, 200, 1),
        "robots-private": (answers(GOOD), redirects("http://169.254.169.254/robots.txt"), "robots_txt", None, 0),
        "robots-loop": (answers(GOOD), redirects("/robots.txt"), None, 200, 1),
        "robots-forbidden": (answers(GOOD), answers(b"", 403), None, 200, 1),
        "robots-busy": (answers(GOOD), answers(b"", 429), None, 200, 1),
        "robots-gzip": (answers(GOOD), answers(gzip.compress(FORBIDS), Content_Encoding="gzip"), "robots_txt", None, 0),
        "robots-br": (answers(GOOD), answers(packed(FORBIDS, "brotli"), Content_Encoding="br"), "robots_txt", None, 0),
        "robots-gzip-file": (answers(GOOD), answers(gzip.compress(FORBIDS)), "robots_txt", None, 0),
        "robots-gzip-long": (answers(GOOD), answers(LONG_ROBOTS, Content_Encoding="gzip"), "robots_txt", None, 0),
        "robots-utf16": (answers(GOOD), answers(FORBIDS.decode().encode("utf-16")), "robots_txt", None, 0),
        "robots-version": (answers(GOOD), answers(b"User-agent: vila-data/1.0\nDisallow: /\n"), "robots_txt", None, 0),
        "robots-stars": (
            answers(GOOD),
            answers(b"User-agent: *\nDisallow: /*i*m*a*g*e*" + b"*" * 99),
            "robots_txt",
            None,
            0,
        ),
        "none": (answers(GOOD, X_Robots_Tag="none"), None, "opted_out", 200, 1),
        "noimageindex": (answers(GOOD, X_Robots_Tag="noimageindex"), None, "opted_out", 200, 1),
        "google-noindex": (answers(GOOD, X_Robots_Tag="googlebot: noindex, none"), None, None, 200, 1),
        "noai": (answers(GOOD, X_Robots_Tag="noai"), None, "opted_out", 200, 1),
        "noindex": (answers(GOOD, X_Robots_Tag="nofollow, NoIndex"), None, "opted_out", 200, 1),
        "our-noai": (answers(GOOD, X_Robots_Tag="vila-data: noimageai"), None, "opted_out", 200, 1),
        "their-noai": (answers(GOOD, X_Robots_Tag="otherbot: nofollow, noai"), None, None, 200, 1),
        "both-noai": (answers(GOOD, X_Robots_Tag="otherbot: nofollow, *: noai"), None, "opted_out", 200, 1),
        "valued": (answers(GOOD, X_Robots_Tag="max-image-preview: large, noai"), None, "opted_out", 200, 1),
        "nofollow": (answers(GOOD, X_Robots_Tag="nofollow"), None, None, 200, 1),
    }
    return {f"{name}.test": case for name, case in found.items()}  # type: ignore[misc]


BAD_URLS = [  # as in metadata that is scraped
    "", "not a url", "ftp://plain.test/a.jpg", "http://", "http://user:pw@plain.test/a.jpg", "http://[::1",
    "data:image/png;base64,AA", "http://plain.test:99999/a", "file:///etc/passwd", "http://\udcff/",
]  # fmt: skip
REFUSED_HOSTS = [
    "127.0.0.1", "127.1", "0x7f000001", "2130706433", "017700000001", "0.0.0.0", "169.254.169.254", "100.100.100.200",
    "①②⑦.0.0.1", "%31%32%37.0.0.1", "127.0.0.1.",
    "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b:1::808:808]", "[2001:1::1]", "[2001:30::1]", "[2001:4:112::1]", "[fd00:ec2::254]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
]  # fmt: skip


@pytest.fixture(scope="module")
def closed_port() -> Iterator[int]:
    with socket.socket() as held:  # bound, never listening: connections are refused
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, closed_port: int) -> Iterator[dict[str, object]]:
    stranger, known = trustme.CA(), trustme.CA()
    import ssl

    contexts = []
    for authority, name in ((stranger, "tls-bad.test"), (known, "tls-good.test"), (known, "another.test")):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        contexts.append(context)
    client = ssl.create_default_context()
    known.configure_trust(client)
    with Origin() as plain, Origin(contexts[0]) as bad, Origin(contexts[1]) as good, Origin(contexts[2]) as other:
        table = cases(plain.port, closed_port)
        plain.routes = {
            name: {"/image": case[0], **({"/robots.txt": case[1]} if case[1] else {})} for name, case in table.items()
        }
        plain.routes["plain.test"] = {"*": answers(GOOD)}
        for origin, name in ((bad, "tls-bad.test"), (good, "tls-good.test"), (other, "tls-name.test")):
            origin.routes = {name: {"*": answers(GOOD)}}
        expected: list[tuple[str, str | None, int | None]] = []
        for number, (name, case) in enumerate(table.items()):
            expected.append((f"http://{name}:{plain.port}/image", case[2], case[3]))
            expected.append((f"http://plain.test:{plain.port}/{number}.jpg", None, 200))  # a healthy one beside each
        assert len(set(BAD_URLS)) == 10
        expected += [(url, "bad_url", None) for url in BAD_URLS]
        expected += [(f"http://{host}:{plain.port}/image", "address_refused", None) for host in REFUSED_HOSTS]
        expected += [(f"http://{name}/image", "address_refused", None) for name in OUTSIDE]
        expected += [
            ("http://nowhere.test/image", "dns", None),
            (f"http://closed.test:{closed_port}/image", "connect", None),
            (f"https://tls-bad.test:{bad.port}/image", "tls", None),
            (f"https://tls-name.test:{other.port}/image", "tls", None),
            (f"https://tls-good.test:{good.port}/image", None, 200),
            (f"http://plain.test:{plain.port}/0.jpg", None, 200),  # a second time
        ]
        out = tmp_path_factory.mktemp("out")
        records = [pair(number, url) for number, (url, _, _) in enumerate(expected)]
        receipt = download_part(
            Store(str(out)), part(len(records)), records, config(plain, bad, good, other, closed_port), "inputs",
            network=Network(lookup, client, backoff_s=0.01),
        )  # fmt: skip
        rows = pq.read_table(out / part(0).images_table()).to_pylist()
        yield {"expected": expected, "rows": rows, "receipt": receipt, "plain": plain, "table": table, "out": out}


def config(plain: Origin, bad: Origin, good: Origin, other: Origin, closed: int) -> DownloadConfig:
    names = [*cases(0, 0), "plain.test"]
    allowed = [f"{name}:{plain.port}" for name in names] + [f"closed.test:{closed}"]
    allowed += [f"tls-bad.test:{bad.port}", f"tls-good.test:{good.port}", f"tls-name.test:{other.port}"]
    return DownloadConfig(
        timeout_s=3,
        idle_timeout_s=1.5,
        retries=1,
        max_bytes=LIMIT,
        allow_private_hosts=allowed,
        contact="ops@example.org",
    )


def lookup(host: str, port: int) -> list[str]:
    if host == "nowhere.test":
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return OUTSIDE.get(host, ["127.0.0.1"])


def test_every_url_has_the_fate_that_its_origin_earns(outcome: dict) -> None:
    found = [(row["url"], row["error"], row["http_code"]) for row in outcome["rows"]]
    expected = [(url.replace("\udcff", "\ufffd" * 3), error, code) for url, error, code in outcome["expected"]]
    assert found == expected
    assert len({error for _, error, _ in expected}) >= 15, "this test is about many fates"


def test_each_origin_was_asked_as_often_as_it_may_be(outcome: dict) -> None:
    seen = outcome["plain"].seen
    assert {name: seen[name, "/image"] for name in outcome["table"]} == {
        n: case[4] for n, case in outcome["table"].items()
    }
    asked = {host: count for (host, path), count in seen.items() if path == "/robots.txt"}
    again = {
        f"robots-{name}.test" for name in ("down", "lost", "short", "silent", "stalled", "down-once")
    }  # retries: 1
    assert {host for host, count in asked.items() if count == 2} - {"robots.test"} == again
    assert asked["robots-loop.test"] == 6
    assert max(count for host, count in asked.items() if host != "robots-loop.test") == 2


def test_counts_sum_and_nothing_else_is_lost(outcome: dict) -> None:
    counts = outcome["receipt"].counts
    fates = Counter("ok" if error is None else f"failed:{error}" for _, error, _ in outcome["expected"])
    assert counts["images"] == dict(fates)
    assert counts["records"] == {"ok": len(outcome["expected"])}
    stored = [row for row in outcome["rows"] if row["status"] == "ok"]
    assert all(row["sha256"] and row["bytes"] and row["offset"] and row["width"] == 400 for row in stored)
    tar = (outcome["out"] / part(0).images_tar()).read_bytes()
    assert all(tar[row["offset"] : row["offset"] + row["bytes"]] == GOOD for row in stored)


def test_the_agent_is_named_with_its_contact(outcome: dict) -> None:
    assert len(outcome["plain"].agents) == 1
    (agent,) = outcome["plain"].agents
    assert agent.startswith("vila-data/") and agent.endswith(" (+ops@example.org)")


CHILD = """
import json, sys
from vila_data.core.layout import Part
from vila_data.core.records import ImageRef, Record
from vila_data.core.store import Store
from vila_data.download.config import DownloadConfig
from vila_data.download.part import download_part
urls, warm, out = json.loads(sys.argv[1])
config = DownloadConfig(allow_private_hosts=["127.0.0.1"], max_bytes=20_000_000, retries=0, per_host=64)
def peak():  # of this program alone: ru_maxrss would start from the parent's
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
def go(urls, index):
    records = (Record(f"r{i}", "pair", ("t",), (ImageRef(url, 0),)) for i, url in enumerate(urls))
    return download_part(Store(out), Part("c", index, "f", "l", 0, 1, 1, "i"), records, config, "x").counts["images"]
go(warm, 0)
before = peak()
counts = go(urls, 1)
print(json.dumps([counts, before, peak()]))
"""


def test_bombs_cost_bounded_memory(tmp_path: Path) -> None:
    with Origin() as origin:
        origin.routes["127.0.0.1"] = {
            "/robots.txt": missing,
            "*": answers(GOOD),
            **{f"/endless{i}": endless for i in range(12)},
            **{f"/bomb{i}": answers(gzip.compress(bytes(200_000_000), 1), Content_Encoding="gzip") for i in range(12)},
            **{f"/pixels{i}": answers(header_png(50_000, 50_000)) for i in range(12)},
        }
        base = f"http://127.0.0.1:{origin.port}"
        bombs = [base + path for path in origin.routes["127.0.0.1"] if path not in ("*", "/robots.txt")]
        warm = [f"{base}/{i}.jpg" for i in range(20)]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps([bombs, warm, str(tmp_path)])],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    counts, before, after = json.loads(done.stdout)
    assert counts == {"failed:too_large": 24, "failed:too_many_pixels": 12}
    # 24 bodies of up to 20 MB at a time, 7.5 GB a picture: memory for 64 MB of bodies and some working space
    assert after - before < 160_000, f"peak RSS grew from {before} to {after} KiB"


def test_a_healthy_png_beside(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGBA", (500, 400), (10, 20, 30, 128)).save(stream, "PNG")
    with Origin() as origin:
        origin.routes["127.0.0.1"] = {"*": answers(stream.getvalue())}
        records: list[Record] = [pair(0, f"http://127.0.0.1:{origin.port}/a.png")]
        download_part(
            Store(str(tmp_path)),
            part(1),
            records,
            DownloadConfig(allow_private_hosts=[f"127.0.0.1:{origin.port}"]),
            "x",
        )
    (row,) = pq.read_table(tmp_path / part(0).images_table()).to_pylist()
    assert (row["width"], row["height"], row["original_width"], row["original_bytes"]) == (
        420,
        336,
        500,
        len(stream.getvalue()),
    )
