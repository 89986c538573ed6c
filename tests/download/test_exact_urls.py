"""URLs arrive as they are written: what is on the wire, beside urllib and http.client with the same URL.

The origin compares as a signature check does: any other spelling of a path is a 403.
`python -m tests.download.test_exact_urls` prints the table.
"""

from __future__ import annotations

import http.client
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.download.origin import Origin, Request, jpeg, pair, part
from vila_data.core.store import Store
from vila_data.download.config import DownloadConfig
from vila_data.download.fetch import Network
from vila_data.download.part import download_part
from vila_data.download.urls import parse_url

GOOD = jpeg()
SIGNED = "X-Amz-Credential=AKIA%2F20240101%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Signature=0a1b"

LEGAL = [  # sent as they are
    "/plain.jpg",
    "/a%26b.jpg?c=%26",
    "/a%2Fb%2fc.jpg",
    "/it%27s.jpg",
    "/it's.jpg",
    "/k%3Dv%2Cw.jpg",
    "/k=v,w;x@y:z!$&()*+~.jpg",
    "/%c3%a9t%C3%A9.jpg",
    "/%e9-latin-1.jpg",
    "/%7Euser/%41.jpg",
    "/a/%2E%2E/b.jpg",
    "/a/%2e/b.jpg",
    "/a/../b.jpg",
    "/a/./b.jpg",
    "//double//slash.jpg",
    "/bare.jpg?",
    "/two.jpg??x=?y",
    "/?only=query",
    "/empty.jpg?a=&b&=c&&d==",
    "/plus+and%2Bplus.jpg?q=a+b%2Bc",
    "/space%20here.jpg?q=%20",
    "/percent%25.jpg?p=100%25",
    "/lone%.jpg?p=100%",
    "/short%4.jpg?x=%zz",
    "/hash%23.jpg?h=%23",
    "/question%3Fmark.jpg",
    "/colon%3Aat%40.jpg",
    "/pipe%7C%5B%5D%7B%7D%5E%60%22%3C%3E%5C.jpg",
    "/nul%00.jpg?n=%0D%0A",
    "/encoded%252Ftwice.jpg",
    f"/s3.jpg?X-Amz-Date=20240101T000000Z&{SIGNED}",
    "/s3v2.jpg?AWSAccessKeyId=AKIA&Expires=1700000000&Signature=a%2Bb%2Fc%3D",
    "/cf.jpg?Policy=eyJTdGF0ZW1lbnQi__&Signature=Kq~8-0_&Key-Pair-Id=APKA",
    "/gcs.jpg?GoogleAccessId=a%40b.iam&Signature=x%2Fy%3D%3D",
    "/azure.jpg?sv=2022-11-02&sr=b&sig=Zm9v%2BYmFy%3D&se=2030-01-01T00%3A00%3A00Z",
    "/thumbor/0Ab=/300x200/filters:quality(80):format(webp)/http%3A%2F%2Fa.test%2Fi.jpg",
    "/thumbor/0Ab=/fit-in/300x200/https://a.test/i.jpg?x=1",
    "/imgproxy/sig/rs:fit:300:300/plain/https://a.test/i%20j.jpg@webp",
    "/cloudinary/c_fill,w_300/l_text:Arial_20:Hi%252C%20you/i.jpg",
    "/wiki/thumb/a/ab/%28Foo%29_%E2%80%93_bar.jpg/300px.jpg",
    "/safe_image.php?d=AQB&url=https%3A%2F%2Fa.test%2Fi.jpg%3Fx%3D1%26y%3D2",
    "/php.jpg?f%5B0%5D=a&f%5b1%5d=b",
    "/tail.",
    "/" + "long%2F" * 1000 + ".jpg",
]
ENCODED = [  # (as written, as sent): only what RFC 3986 does not allow
    ("/a b.jpg?c d", "/a%20b.jpg?c%20d"),
    ("/é.jpg?ü=ñ", "/%C3%A9.jpg?%C3%BC=%C3%B1"),
    ("/日本/🙂.jpg", "/%E6%97%A5%E6%9C%AC/%F0%9F%99%82.jpg"),
    ("/mixed é %c3%a9 %2F.jpg", "/mixed%20%C3%A9%20%c3%a9%20%2F.jpg"),
    ('/"quoted".jpg?q="', "/%22quoted%22.jpg?q=%22"),
    ("/<a>.jpg", "/%3Ca%3E.jpg"),
    ("/[a]{b}|c^d`e.jpg?f[0]=1", "/%5Ba%5D%7Bb%7D%7Cc%5Ed%60e.jpg?f%5B0%5D=1"),
    ("/back\\slash.jpg", "/back%5Cslash.jpg"),
    ("/tab\tnewline\r\nX-Evil:%20y\x7f\x01.jpg", "/tab%09newline%0D%0AX-Evil:%20y%7F%01.jpg"),
    ("/half\ud83d.jpg", "/half%EF%BF%BD.jpg"),
    ("/no-break\xa0space.jpg", "/no-break%C2%A0space.jpg"),
    ("/part.jpg#fragment%26?x", "/part.jpg"),
    ("/part.jpg?q=1#frag#ment", "/part.jpg?q=1"),
    ("?query=1", "/?query=1"),
    ("", "/"),
    ("#top", "/"),
    ("  /outer.jpg \n", "/outer.jpg"),
]
BASE = "/go/{}/start.jpg?old=%2F"
REDIRECTS = [  # (Location, what is asked for next); {base}: this origin, {n}: the case's number
    (b"/r/{n}%26%2F%27%3d.jpg?a=%2C", "/r/{n}%26%2F%27%3d.jpg?a=%2C"),
    (b"{base}/r/{n}/%2E%2E/%c3%a9.jpg?", "/r/{n}/%2E%2E/%c3%a9.jpg?"),
    (b"{base}/r/{n}/a/../b.jpg", "/r/{n}/a/../b.jpg"),
    (b"//{host}/r/{n}%2F.jpg?x=%26#frag", "/r/{n}%2F.jpg?x=%26"),
    (b"/r/{n}#frag%26", "/r/{n}"),
    (b"next%2F.jpg", "/go/{n}/next%2F.jpg"),
    (b"./a/../next%2E%2E.jpg?y", "/go/{n}/next%2E%2E.jpg?y"),
    (b"../{n}r.jpg", "/go/{n}r.jpg"),
    (b"../../../../{n}top.jpg", "/{n}top.jpg"),
    (b"?new=%2f", "/go/{n}/start.jpg?new=%2f"),
    (b"?", "/go/{n}/start.jpg?"),
    (b"sub/", "/go/{n}/sub/"),
    (b"/r/{n}/x/..", "/r/{n}/"),
    (b"/r/{n} space.jpg?a b", "/r/{n}%20space.jpg?a%20b"),
    ("/r/{n}é.jpg".encode(), "/r/{n}%C3%A9.jpg"),
    ("/r/{n}é.jpg?ü".encode("latin-1"), "/r/{n}%E9.jpg?%FC"),
    ("/r/{n}é".encode() + b"\xe9.jpg", "/r/{n}%C3%A9%E9.jpg"),
    ("/r/{n}日.jpg".encode("shift_jis"), "/r/{n}%93%FA.jpg"),
    (b'/r/{n}"q"<>.jpg', "/r/{n}%22q%22%3C%3E.jpg"),
    (b"HTTP://{host}/r/{n}.jpg", "/r/{n}.jpg"),
    (b"http:/r/{n}.jpg", "/r/{n}.jpg"),
    (b"/r/{n}.jpg?" + SIGNED.encode(), "/r/{n}.jpg?" + SIGNED),
    (b"/r/{n}.jpg?long=" + b"%2F" * 20_000, "/r/{n}.jpg?long=" + "%2F" * 20_000),
]


@dataclass(frozen=True)
class Shown:
    """What a case sends, and what came back: the targets on the wire, the answer's error."""

    written: str
    expected: str
    sent: tuple[str, ...]
    error: str | None


@contextmanager
def signed_origin() -> Iterator[Origin]:
    """Answers with an image where the target is spelled as expected, with a 403 elsewhere."""
    with Origin() as origin:
        host = f"127.0.0.1:{origin.port}"

        async def exact(request: Request) -> None:
            right = {
                *LEGAL,
                *(sent for _, sent in ENCODED),
                *(f.replace("{n}", str(n)) for n, (_, f) in enumerate(REDIRECTS)),
            }
            for number, (location, _) in enumerate(REDIRECTS):
                if request.path == BASE.format(number):
                    value = location.replace(b"{base}", b"http://{host}").replace(b"{host}", host.encode())
                    value = value.replace(b"{n}", str(number).encode())
                    await request.raw(b"HTTP/1.1 302 X\r\nLocation: " + value + b"\r\nContent-Length: 0\r\n\r\n")
                    return
            good = request.path in right
            await request.send(GOOD if good else b"", 200 if good else 403)

        origin.routes["127.0.0.1"] = {"*": exact}
        yield origin


def written_urls(port: int) -> list[tuple[str, str]]:
    """(URL, the target that is to be sent last)."""
    base = f"http://127.0.0.1:{port}"
    urls = [(base + path, path) for path in LEGAL]
    urls += [((f"  {base}{path.lstrip(' ')}" if path.startswith(" ") else base + path), sent) for path, sent in ENCODED]
    return urls + [(base + BASE.format(n), last.replace("{n}", str(n))) for n, (_, last) in enumerate(REDIRECTS)]


def shown(out: Path) -> list[Shown]:
    """Every case through the engine, one after another."""
    with signed_origin() as origin:
        urls = written_urls(origin.port)
        config = DownloadConfig(
            allow_private_hosts=[f"127.0.0.1:{origin.port}"], robots_txt=False, retries=0, concurrency=1
        )
        found = []
        for number, (url, expected) in enumerate(urls):
            origin.lines.clear()
            store = Store(str(out / str(number)))
            download_part(store, part(1), [pair(0, url)], config, "in")
            (row,) = pq.read_table(out / str(number) / part(1).images_table()).to_pylist()
            found.append(Shown(url, expected, tuple(targets(origin)), row["error"]))
    return found


def targets(origin: Origin) -> list[str]:
    assert all(line.startswith("GET ") and line.endswith(" HTTP/1.1") for line in origin.lines)
    return [line[4:-9] for line in origin.lines]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Shown]:
    return shown(tmp_path_factory.mktemp("exact"))


COUNT = len(LEGAL) + len(ENCODED) + len(REDIRECTS)


@pytest.mark.parametrize("number", range(COUNT))
def test_a_url_arrives_as_it_is_written(cases: list[Shown], number: int) -> None:
    case = cases[number]
    assert case.sent[-1] == case.expected, case.written
    assert case.error is None
    assert len(case.sent) == (2 if number >= len(LEGAL) + len(ENCODED) else 1)
    assert len(cases) == COUNT >= 40


def with_urllib(url: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(url, timeout=10).read()


def with_http_client(url: str) -> None:
    rest = url.strip().removeprefix("http://").partition("#")[0]
    at = min((rest.index(mark) for mark in "/?" if mark in rest), default=len(rest))
    connection = http.client.HTTPConnection(rest[:at], timeout=10)
    connection.request("GET", rest[at:] or "/")
    connection.getresponse().read()
    connection.close()


def others(origin: Origin, url: str) -> dict[str, str]:
    """The last target that each of Python's own clients sends for a URL, or the name of its error."""
    sent = {}
    for name, client in (("urllib", with_urllib), ("http.client", with_http_client)):
        origin.lines.clear()
        try:
            client(url)
            sent[name] = targets(origin)[-1]
        except (OSError, ValueError, http.client.HTTPException) as error:
            last = targets(origin)[-1] if origin.lines else ""
            sent[name] = f"{type(error).__name__} {last}".strip()
    return sent


def test_what_is_legal_is_sent_as_pythons_own_clients_send_it(cases: list[Shown]) -> None:
    with signed_origin() as origin:
        for path, case in zip(LEGAL, cases, strict=False):
            assert others(origin, f"http://127.0.0.1:{origin.port}{path}") == {
                "urllib": case.sent[-1], "http.client": case.sent[-1],
            }  # fmt: skip


HOSTS = [  # (host and port as written, Host header)
    ("a.test", "a.test"),
    ("A.TEST", "a.test"),
    ("bücher.test", "xn--bcher-kva.test"),
    ("B\u00dcCHER.test", "xn--bcher-kva.test"),
    ("faß.test", "xn--fa-hia.test"),
    ("例え。test", "xn--r8jz45g.test"),
    ("xn--bcher-kva.test", "xn--bcher-kva.test"),
    ("b%C3%BCcher.test", "xn--bcher-kva.test"),
    ("\uff45xample.test", "example.test"),
    ("under_score.test", "under_score.test"),
    ("127.1", "127.0.0.1"),
    ("0x7f000001", "127.0.0.1"),
    ("①②⑦.0.0.1", "127.0.0.1"),
]


@pytest.mark.parametrize(("written", "host"), HOSTS)
def test_hosts_are_names_of_the_internet(written: str, host: str, tmp_path: Path) -> None:
    with Origin() as origin:
        seen: list[str] = []

        async def note(request: Request) -> None:
            seen.append(request.headers["host"])
            await request.send(GOOD)

        origin.routes[host] = {"*": note}
        config = DownloadConfig(allow_private_hosts=[f"{host}:{origin.port}"], robots_txt=False, retries=0)
        urls = [f"http://{written}:{origin.port}/%2F"]
        receipt = download_part(
            Store(str(tmp_path)), part(1), [pair(0, urls[0])], config, "in", network=Network(lambda *_: ["127.0.0.1"])
        )
        assert receipt.counts["images"] == {"ok": 1}
        assert seen == [f"{host}:{origin.port}"]


@pytest.mark.parametrize(
    "url",
    ["", "a.test/x", "//a.test/x", "ftp://a.test/", "http:a.test", "http:/a.test", "http:///a.test", "http://", "http://:80/",
     "http://u@a.test/", "http://@a.test/", "http://u:p@a.test/", "http://a.test:0/", "http://a.test:65536/", "http://a.test:-1/",
     "http://a.test:8o/", "http://a.test:٣/", "http://a.test\\@b.test/", "http://a.test\\b/", "http://a b.test/", "http://a\tb.test/",
     "http://a%2fb.test/", "http://a%40b.test/", "http://a%00.test/", "http://[::1", "http://::1/", "http://[::1]x/",
     "http://[fe80::1%25eth0]/", "http://[1.2.3.4]/", "http://a[::1]/", "http://a℀b.test/", "http://<a>/", "data:,x", "javascript:x"],
)  # fmt: skip
def test_what_is_no_url_of_the_web_is_refused(url: str) -> None:
    assert parse_url(url) is None


def print_table() -> None:
    """One line per case: as written, as sent, the answer, and what others send."""
    with tempfile.TemporaryDirectory() as folder:
        found = shown(Path(folder))
    with signed_origin() as origin:
        print(f"{'as written':<70} | sent by vila_data | answer | urllib | http.client")
        for number, case in enumerate(found):
            path = case.written.split("/", 3)[-1] if case.written.count("/") > 2 else case.written
            if number >= len(LEGAL) + len(ENCODED):
                location = REDIRECTS[number - len(LEGAL) - len(ENCODED)][0]
                path = "-> " + location.decode("latin-1")
            port = case.written.partition("127.0.0.1:")[2][:5].strip("/?#")
            other = others(origin, case.written.replace(f":{port}", f":{origin.port}", 1))
            mine = case.sent[-1]
            same = {name: "same" if text == mine else ascii(text)[1:-1][:90] for name, text in other.items()}
            line = f"{ascii(path)[1:-1][:70]:<70} | {mine[:90]} | {case.error or 200}"
            print(f"{line} | {same['urllib']} | {same['http.client']}")


if __name__ == "__main__":
    print_table()
