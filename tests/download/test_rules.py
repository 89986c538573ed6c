"""Small judgements: configuration, Retry-After, X-Robots-Tag, robots.txt, bodies."""

from __future__ import annotations

import gzip
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vila_data.download.config import DownloadConfig
from vila_data.download.fetch import BodyMemory, FetchError, opted_out, parse_retry_after, single_length, user_agent
from vila_data.download.pending import ScratchFile
from vila_data.download.robots import Rules, own_rules, text_of
from vila_data.download.urls import parse_url


@pytest.mark.parametrize(
    "values",
    [{"timeout_s": 0}, {"timeout_s": -1}, {"retries": -1}, {"concurrency": 0}, {"per_host": 0}, {"max_bytes": 0},
     {"max_pixels": 0}, {"resize": {"jpeg_quality": 101}}, {"resize": {"shorter_side_px": 0}}, {"contact": "a\r\nX: y"},
     {"engine": "curl"}, {"retrys": 1}, {"timeout_s": float("inf")}],
)  # fmt: skip
def test_wrong_values_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DownloadConfig.model_validate(values)


def test_the_defaults_are_those_of_the_recipe() -> None:
    config = DownloadConfig()
    assert (config.timeout_s, config.retries, config.concurrency, config.per_host) == (10, 2, 256, 8)
    assert (config.max_bytes, config.max_pixels, config.robots_txt) == (20_000_000, 89_478_485, True)
    assert config.opt_out == ["noai", "noimageai", "noindex", "noimageindex"] and config.allow_private_hosts == []
    assert config.resize is not None and config.resize.model_dump() == {
        "shorter_side_px": 336, "only_if_larger": True, "jpeg_quality": 90,
    }  # fmt: skip
    assert DownloadConfig.model_validate({"resize": None, "timeout_s": 3}).resize is None


def test_retry_after_is_seconds_or_a_date() -> None:
    assert parse_retry_after("7") == 7
    assert parse_retry_after("9" * 400) == 999_999_999
    assert parse_retry_after(formatdate(time.time() - 100, usegmt=True)) == 0
    ahead = parse_retry_after(formatdate(time.time() + 1000, usegmt=True))
    assert ahead is not None and 900 < ahead <= 1000
    for text in (None, "", "soon", "-3", "1.5", "Mon, 99 Foo 2024 00:00:00 GMT"):
        assert parse_retry_after(text) is None


@given(st.text(max_size=60))
def test_no_header_or_url_breaks_the_readers(text: str) -> None:
    parse_retry_after(text)
    opted_out([text], frozenset({"noai"}))
    parse_url(text)
    parse_url("http://" + text)
    rules = own_rules("User-agent: *\nDisallow: /" + text + "\nDisallow: *" + text, "vila-data")
    url = parse_url("http://a.test/" + text.partition("#")[0].replace("%", ""))
    assert url is None or Rules(rules).allow(url.target) in (True, False)
    text_of(text.encode("utf-8", "replace"), 1000)


def test_directives_apply_to_everyone_unless_an_agent_is_named() -> None:
    opt_out = frozenset({"noai", "noindex"})
    for header in ("noai", "NOAI", "nofollow,noindex", "vila-data: noai", "*: noai", "otherbot: x, vila-data: noai",
                   "unavailable_after: 25 Jun 2030 15:00:00 PST, noai", "max-snippet: 3, noindex", "none", "None", "vila-data: none",
                   "nofollow noindex", "vila-data/1.0: noai", "VILA-Data: noai", "noarchive; noai",
                   "unavailable_after: Wed, 25 Jun 2030 15:00:00 GMT, none"):  # fmt: skip
        assert opted_out([header], opt_out), header
    for header in ("", "nofollow", "otherbot: noai", "otherbot: nofollow, noai", "noaix", "vila-data-2: noai", "googlebot: none",
                   "googlebot: noindex", "googlebot/2.1: noindex", "all", "nonesuch",
                   "max-image-preview: none", "max-image-preview:none, all", "vila-data: max-image-preview: none",
                   "unavailable_after: none"):  # fmt: skip
        assert not opted_out([header], opt_out), header
    for header in ("tdm-reservation: 1, noai", "rating: adult, noai", "robots: noindex"):
        assert opted_out([header], opt_out), f"{header}: no crawler's name, so it is for everyone"
    assert not opted_out(["none"], frozenset({"noai"})), "none means noindex and nofollow"
    assert opted_out(["none"], frozenset({"nofollow"}))
    assert opted_out(["otherbot: noai", "noai"], opt_out), "a second header is for everyone again"


def test_a_gzip_file_of_several_members_is_read_whole() -> None:
    content = gzip.compress(b"User-agent: *\n") + gzip.compress(b"Disallow: /a\n")
    assert allowed(text_of(content, 1000), "/a", "/x") == [False, True]
    assert len(text_of(gzip.compress(b"#\n" * 100_000) * 3, 1000)) <= 1000


def test_a_robots_txt_that_is_cut_loses_half_a_line_and_no_more() -> None:
    for end in ("\n", "\r", "\r\n"):
        text = end.join(["User-agent: *", "Disallow: /a", "Disallow: /b"])
        cut = text.encode()[:-1]
        assert allowed(text_of(cut, len(cut)), "/a", "/x") == [False, True]
        assert allowed(text_of(cut, len(cut) + 1), "/a", "/x") == [False, False]


def allowed(robots: str, *targets: str) -> list[bool]:
    rules = own_rules(robots, "vila-data")
    return [not rules or Rules(rules).allow(target) for target in targets]


@pytest.mark.parametrize(
    ("robots", "target", "expected"),
    [
        ("User-agent: *\nDisallow: /a", "/a/b", False),
        ("User-agent: *\nDisallow: /a", "/b", True),
        ("User-agent: *\nDisallow:", "/a", True),
        ("User-Agent: *  # all\r\nCrawl-delay: 5\nDisallow: /a\n\nSitemap: http://x/\nAllow: /a/b\n", "/a/b", True),
        ("Disallow: /", "/a", True),
        ("User-agent: vila-data/1.0\nDisallow: /", "/a", False),
        ("User-agent: VILA-Data\nDisallow: /", "/a", False),
        ("User-agent: vila-data*\nDisallow: /", "/a", False),
        ("User-agent: vila\nDisallow: /", "/a", True),
        ("User-agent: vila-data-2\nDisallow: /", "/a", True),
        ("User-agent: otherbot\nUser-agent: vila-data\nDisallow: /", "/a", False),
        ("User-agent: *\nDisallow: /\n\nUser-agent: vila-data\nAllow: /", "/a", True),
        ("User-agent: vila-data\nDisallow: /x\nUser-agent: b\nDisallow: /\nUser-agent: vila-data\nDisallow: /y", "/y", False),
        ("User-agent: vila-data\nDisallow: /x\nUser-agent: b\nDisallow: /\nUser-agent: vila-data\nDisallow: /y", "/z", True),
        ("User-agent: vila-data\n\nDisallow: /a", "/a", False),
        ("User-agent: *\nDissallow: /a", "/a", False),
        ("User-agent: *\nDisallow /a", "/a", False),
        ("User-agent: *\nDisallow: a", "/a", False),
        ("User-agent: *\nDisallow: http://h.test/a", "/a", False),
        ("User-agent: *\nDisallow: /a\nAllow: /a", "/a", True),
        ("User-agent: *\nDisallow: /a$\nAllow: /", "/a", False),
        ("User-agent: *\nDisallow: /a$", "/ab", True),
        ("User-agent: *\nDisallow: /*.gif$", "/x.gif", False),
        ("User-agent: *\nDisallow: /*.gif$", "/x.gif?y", True),
        ("User-agent: *\nDisallow: /*?", "/x?y", False),
        ("User-agent: *\nDisallow: /*/private/*/x", "/a/private/b/c/x.jpg", False),
        ("User-agent: *\nDisallow: /a/*\nAllow: /a/b", "/a/b", True),
        ("User-agent: *\nDisallow: /a*b*c$", "/aXbXc", False),
        ("User-agent: *\nDisallow: /ab*b$", "/ab", True),
        ("User-agent: *\nDisallow: /ü", "/%c3%bc.jpg", False),
        ("User-agent: *\nDisallow: /%7Ea", "/~a", False),
        ("User-agent: *\nDisallow: /~a", "/%7ea", False),
        ("User-agent: *\nDisallow: /a%2fb", "/a%2Fb", False),
        ("User-agent: *\nDisallow: /a/b", "/a%2Fb", True),
        ("User-agent: *\nDisallow: /a%2Ab", "/a*b", False),
        ("User-agent: *\nDisallow: /a%2Ab", "/axb", True),
        ("User-agent: *\nDisallow: /a b", "/a%20b", False),
        ("User-agent: *\nDisallow: /private", "/a/../private", False),
        ("User-agent: *\nDisallow: /private", "/a/%2e%2E/private", False),
        ("User-agent: *\nDisallow: /private", "/./private?x", False),
        ("User-agent: *\nDisallow: /" + "long/" * 1000, "/" + "long/" * 1000 + "x", False),
        ("User-agent: *\nDisallow: /" + "*a" * 1000, "/" + "a" * 1000, False),
        ("User-agent: *\nDisallow: /" + "*a" * 1000, "/" + "a" * 999, True),
        ("User-agent: *\nDisallow: /" + "*" * 5000 + "x", "/abx", False),
        ("<html>404</html>", "/a", True),
    ],
)  # fmt: skip
def test_robots_txt_says_who_may_fetch_what(robots: str, target: str, expected: bool) -> None:
    assert allowed(robots, target) == [expected]
    for content in (robots.encode(), robots.encode("utf-8-sig"), robots.encode("utf-16"), robots.encode("utf-16-le"),
                    robots.encode("utf-32"), gzip.compress(robots.encode())):  # fmt: skip
        assert allowed(text_of(content, 1_000_000), target) == [expected], content[:20]


@pytest.mark.parametrize(
    "pattern",
    [
        "/" + "*a" * 120_000,
        "/x*" + "aaaaaaaab*" * 25_000,
        "\nDisallow: /*ab" * 33_000,
        "\nDisallow: /*" + "a" * 99 + "b",
    ],
)
def test_hostile_rules_cost_little_and_are_not_ignored(pattern: str) -> None:
    lines = own_rules("User-agent: *\nDisallow: /forbidden\nDisallow: " + pattern, "vila-data")
    rules = Rules(lines)
    started = time.perf_counter()
    for target in ("/" + "a" * 2_000, "/" + "a" * 60_000, "/x" + "a" * 60_000, "/forbidden"):
        rules.allow(target)
    assert time.perf_counter() - started < 2
    assert not rules.allow("/forbidden")


def test_equal_lengths_become_one_and_others_are_left() -> None:
    def head(*lines: str) -> bytes:
        return ("HTTP/1.1 200 OK\r\nA: b\r\n" + "".join(f"{line}\r\n" for line in lines) + "X: y\r\n\r\n").encode()

    one = head("Content-Length: 5")
    for lines in (
        ["Content-Length: 5", "content-length:5"],
        ["CONTENT-LENGTH: 5 , 5"],
        ["Content-Length: 5,5", "Content-Length: 5"],
    ):
        assert single_length(head(*lines)) == one
    for lines in ([], ["Content-Length: 5"], ["Content-Length: 5", "Content-Length: 6"], ["Content-Length: 5, 6"],
                  ["X-Content-Length: 5", "X-Content-Length: 5"]):  # fmt: skip
        assert single_length(head(*lines)) == head(*lines)


def test_bodies_beyond_the_budget_go_to_disk_and_come_back(tmp_path: Path) -> None:
    memory = BodyMemory(tmp_path, budget=1000)
    bodies = [memory.body(10_000, "") for _ in range(3)]
    for turn in range(8):
        for index, body in enumerate(bodies):
            body.add(bytes([index + turn]) * 100)
            assert memory.used <= 1000
    for index, body in enumerate(bodies):
        assert body.take() == b"".join(bytes([index + turn]) * 100 for turn in range(8))
    assert memory.used == 0


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_compressed_bodies_are_bounded_and_must_end(tmp_path: Path, step: int) -> None:
    memory = BodyMemory(tmp_path)
    content = bytes(range(256)) * 4
    packed = gzip.compress(content)
    body = memory.body(2000, "gzip")
    for at in range(0, len(packed), step):
        body.add(packed[at : at + step])
    body.finish()
    assert body.take() == content
    small = memory.body(1023, "gzip")
    with pytest.raises(FetchError, match="too_large"):
        for at in range(0, len(packed), step):
            small.add(packed[at : at + step])
    cut = memory.body(2000, "gzip")
    cut.add(packed[:-12])
    with pytest.raises(FetchError, match="connection_lost"):
        cut.finish()


def test_the_agent_says_who_it_is() -> None:
    assert user_agent(None).startswith("vila-data/") and "(" not in user_agent(None)
    assert user_agent("https://example.org/bot").endswith(" (+https://example.org/bot)")


def test_a_spool_gives_back_what_it_took(tmp_path: Path) -> None:
    spool = ScratchFile(tmp_path / "spool")
    places = [(spool.append(bytes([i]) * i), i) for i in range(50)]
    assert all(spool.read(offset, size) == bytes([size]) * size for offset, size in places)
    with pytest.raises(OSError):
        spool.read(0, 1_000_000)
    spool.close()


def test_a_bomb_is_never_unpacked_beyond_the_limit(tmp_path: Path) -> None:
    body = BodyMemory(tmp_path).body(1000, "gzip")
    with pytest.raises(FetchError, match="too_large"):
        body.add(gzip.compress(bytes(5_000_000)))
    assert body.size == 1001
