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

from vila_data.download.body import BodyMemory
from vila_data.download.config import DownloadConfig
from vila_data.download.fetch import opted_out, parse_retry_after, parse_url, user_agent
from vila_data.download.outcome import FetchError
from vila_data.download.robots import simplified
from vila_data.download.spool import Spool


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
    assert config.opt_out == ["noai", "noimageai", "noindex"] and config.allow_private_hosts == []
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
    simplified(text.encode("utf-8", "replace"))


def test_urls_are_http_with_a_host_and_no_credentials() -> None:
    assert str(parse_url(" http://a.test/x y#part ")) == "http://a.test/x%20y"
    assert str(parse_url("//b.test/1", parse_url("https://a.test/"))) == "https://b.test/1"
    assert str(parse_url("http://bücher.test/ü")) == "http://xn--bcher-kva.test/%C3%BC"
    assert parse_url("http://u@a.test/") is None
    assert parse_url("http://:p@a.test/") is None


def test_directives_apply_to_everyone_unless_an_agent_is_named() -> None:
    opt_out = frozenset({"noai", "noindex"})
    for header in ("noai", "NOAI", "nofollow,noindex", "vila-data: noai", "*: noai", "otherbot: x, vila-data: noai",
                   "unavailable_after: 25 Jun 2030 15:00:00 PST, noai", "max-snippet: 3, noindex"):  # fmt: skip
        assert opted_out([header], opt_out), header
    for header in ("", "nofollow", "otherbot: noai", "otherbot: nofollow, noai", "noaix", "vila-data-2: noai"):
        assert not opted_out([header], opt_out), header
    assert opted_out(["otherbot: noai", "noai"], opt_out), "a second header is for everyone again"


def test_robots_txt_is_cut_down_to_its_rules() -> None:
    text = b"\xef\xbb\xbfUser-Agent: *  # all\r\nCrawl-delay: 5\nDisallow: /a\n\nSitemap: http://x/\nAllow: /a/b\n"
    assert simplified(text) == b"User-Agent: *\nDisallow: /a\nAllow: /a/b"
    assert simplified(b"User-agent: *\nDisallow:\n") == b""
    assert simplified(b"<html>404</html>") == b""
    assert b"**" not in simplified(b"User-agent: *\nDisallow: /x\nDisallow: /" + b"*a" * 50), (
        "costs the matcher too much"
    )


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
    spool = Spool(tmp_path / "spool")
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
