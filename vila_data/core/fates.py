"""The fate (kept, dropped or failed) of each record and image, and its counts.

Every input has exactly one fate: ``kept``, ``dropped`` with a rule's name, or
``failed`` with an error class. The names below are the fixed lists; columns and
the funnel hold no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, Literal

from vila_data.core.errors import DataError

FateName = Literal["kept", "dropped", "failed"]

RECORD_REASONS: Final[tuple[str, ...]] = (
    "malformed_json",
    "truncated_file",
    "missing_field",
    "wrong_type",
    "no_text",
    "bad_matched_text_index",
    "image_count",
    "turn_order",
    "empty_conversation",
)
"""Why a metadata row is not a record.

image_count         a conversation's placeholders (<image>, image entries) and its images differ in number, or
                    there are too many images
turn_order          turns of {from, value} do not alternate
empty_conversation  it has no turns, or no answer with words or tool calls in it
"""

IMAGE_ERRORS: Final[tuple[str, ...]] = (
    "bad_url",
    "address_refused",
    "dns",
    "connect",
    "tls",
    "timeout",
    "connection_lost",
    "http_status",
    "too_many_redirects",
    "bad_response",
    "too_large",
    "robots_txt",
    "opted_out",
    "not_an_image",
    "unsupported_format",
    "too_many_pixels",
    "truncated_image",
    "undecodable_image",
    "upstream",
    "no_file",
)
"""Why an image was not downloaded (VILA: all images answer 200 and decode; docs/sources.md).

bad_url            not http or https, no host, or not a URL at all; a path that leaves its image_root
address_refused    the host's address is loopback, private, link-local, multicast or a metadata service
dns, connect, tls  no address; no connection; a certificate that does not verify
timeout            total or idle time limit reached
connection_lost    reset or closed before the whole body came
http_status        an answer other than 200 after redirects; see the column http_code
bad_response       headers or encoding that cannot be read (header flood, broken gzip …)
too_large          body, or local image, above download.max_bytes; or an image that would take far more time or
                   memory to decode than its pixels do (docs/recipe.md)
robots_txt         robots.txt of the origin disallows the URL, or cannot be read
opted_out          X-Robots-Tag carries a directive of download.opt_out
not_an_image       the bytes are not a raster image: HTML, a drawing (SVG, PDF, EPS), nothing known
unsupported_format an image of a format that is not decoded (HEIC, JPEG XL, JPEG 2000, ICO, PPM …); the column
                   detail has its name
too_many_pixels    above download.max_pixels; not decoded
truncated_image    the image ends early
undecodable_image  any other failure of the decoder
upstream           a corpus that was downloaded already has no bytes for it
no_file            a local image is not there
"""


class ImageError(Exception):
    """Bytes that do not become a stored image; `error_class` is one of IMAGE_ERRORS, `detail` says more for people."""

    def __init__(self, error_class: str, detail: str = "") -> None:
        if error_class not in IMAGE_ERRORS:
            raise ValueError(f"no such image error: {error_class}")
        self.error_class = error_class
        self.detail = detail
        super().__init__(f"{error_class}: {detail}" if detail else error_class)


class Funnel:
    """Counts of fates by stage and reason, for records and images of one corpus.

    Stages are added in the data's path's order; `check` asserts that a stage's
    outcomes sum to what entered it.
    """

    def __init__(self) -> None:
        self._stages: dict[tuple[str, str], Counter[str]] = {}

    def add(self, stage: str, unit: Literal["records", "images"], fate: str, count: int = 1) -> None:
        """Count `count` items; `fate` is ``kept``, ``dropped:<rule>`` or ``failed:<error>``."""
        self._stages.setdefault((stage, unit), Counter())[fate] += count

    def merge(self, rows: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
        """Add the counts of `as_dict` of another funnel."""
        for stage, units in rows.items():
            for unit, fates in units.items():
                self._stages.setdefault((stage, unit), Counter()).update(fates)

    def total(self, stage: str, unit: str) -> int:
        """Items that entered `stage`."""
        return sum(self._stages.get((stage, unit), Counter()).values())

    def kept(self, stage: str, unit: str) -> int:
        """Items that left `stage` for the next."""
        return self._stages.get((stage, unit), Counter())["kept"]

    def check(self, stage: str, unit: str, entered: int) -> None:
        """Assert that the fates of `stage` sum to `entered`.

        Raises:
            DataError: they do not; the message has both numbers.
        """
        found = self.total(stage, unit)
        if found != entered:
            raise DataError(f"funnel: {stage}: {entered} {unit} entered, but {found} have a fate")

    def as_dict(self) -> dict[str, dict[str, dict[str, int]]]:
        """{stage: {unit: {fate: count}}}, stages in the order in which they were added."""
        result: dict[str, dict[str, dict[str, int]]] = {}
        for (stage, unit), fates in self._stages.items():
            result.setdefault(stage, {})[unit] = dict(sorted(fates.items()))
        return result

    @classmethod
    def from_dict(cls, rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Funnel:
        """The inverse of `as_dict`."""
        funnel = cls()
        funnel.merge(rows)
        return funnel
