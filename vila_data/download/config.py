"""The recipe's `download:` section."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from vila_data.core.config import StrictModel

Seconds = Annotated[float, Field(gt=0, le=3600, strict=False)]


class ResizeConfig(StrictModel):
    """Size of stored images.

    shorter_side_px: of the stored JPEG; the longer side follows.
    only_if_larger:  leave smaller images at their size.
    jpeg_quality:    of the stored JPEG.
    """

    shorter_side_px: Annotated[int, Field(ge=1, le=8192)] = 336
    only_if_larger: bool = True
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 90


class DownloadConfig(StrictModel):
    """How images are fetched and what is stored of them.

    timeout_s:           time limit for one attempt including redirects, excluding the wait for a free connection.
    idle_timeout_s:      maximum time without progress while connecting or reading.
    retries:             further attempts after timeouts, connection resets, 429 and 5xx.
    concurrency:         maximum concurrent requests per task.
    per_host:            maximum concurrent requests per host name and task.
    max_bytes:           maximum response size, before and after decompression.
    max_pixels:          maximum width times height, read from the header before decoding.
    allow_private_hosts: host or host:port that may have private addresses.
    opt_out:             X-Robots-Tag directives that keep an image out; `none` counts as noindex.
    robots_txt:          whether to obey each origin's robots.txt; one that cannot be read forbids everything.
    contact:             e-mail address or URL put into the User-Agent.
    resize:              size of stored images; None keeps the original size.
    engine:              download client: the package's own, or img2dataset (pairs by URL only).
    """

    timeout_s: Seconds = 10.0
    idle_timeout_s: Seconds = 5.0
    retries: Annotated[int, Field(ge=0, le=20)] = 2
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 256
    per_host: Annotated[int, Field(ge=1, le=1024)] = 8
    max_bytes: Annotated[int, Field(ge=1, le=2**31 - 1)] = 20_000_000
    max_pixels: Annotated[int, Field(ge=1, le=2**31 - 1)] = 89_478_485
    allow_private_hosts: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    opt_out: list[Annotated[str, Field(min_length=1)]] = Field(default=["noai", "noimageai", "noindex", "noimageindex"])
    robots_txt: bool = True
    resize: ResizeConfig | None = ResizeConfig()
    contact: Annotated[str, Field(pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$")] | None = None
    engine: Literal["builtin", "img2dataset"] = "builtin"

    HARMLESS: ClassVar[frozenset[str]] = frozenset(
        {"concurrency", "per_host", "timeout_s", "idle_timeout_s", "retries", "contact"}
    )
    """Keys that change how downloading is done, not what it stores: they may change within a run."""

    def what_matters(self) -> dict[str, Any]:
        """Every other key, as JSON: what stored images depend on."""
        return self.model_dump(mode="json", exclude=set(self.HARMLESS))
