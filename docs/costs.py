"""What VILA's pre-training corpus costs, from rates that were measured here or published: the tables of reproduce_vila.md.

    python docs/costs.py            # writes them into docs/reproduce_vila.md
    python docs/costs.py --check    # exit 1 where the page has others

Every number is an assumption with its source, or follows from them by the arithmetic below. Nothing here was run at that size.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE / "reproduce_vila.md"
RESULTS = HERE.parent / "benchmarks" / "results"

MACHINES = (1, 16, 128)
CORES = 16
NETWORK_BYTES_S = 1.25e9

IMAGE_PARAMETERS, TEXT_PARAMETERS = 24 * 12 * 1024**2, 12 * 12 * 768**2
TOKENS_224, TOKENS_336, TOKENS_TEXT = 257, 577, 77


def measured(name: str) -> Any:
    """A file of benchmarks/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


AN_IMAGE = measured("lay_down")["an_image"]
(ENCODE,) = measured("encode").values()


@dataclass(frozen=True)
class Assumptions:
    """Everything that the tables follow from; a comment in SOURCES says where each is from."""

    document_images: float = 25e6
    pair_images: float = 25e6
    images_a_document: float = 4.0
    document_links_live: float = 25 / 30
    pair_links_live: float = 0.625
    served_bytes: float = AN_IMAGE["served_bytes"]
    stored_bytes: float = AN_IMAGE["stored_bytes"]
    shard_bytes: float = AN_IMAGE["shard_bytes"]
    requests_s_a_core: float = 1345 / 16
    cpu_images_s_a_core: float = measured("download")["images_per_s"]["builtin"]
    clip_224_samples_s: float = 312.0
    texts_a_document_image: float = 24.3 / 5.7
    filter_core_s: float = AN_IMAGE["filter_core_s"]
    shard_core_s: float = AN_IMAGE["shard_core_s"]
    text_tokens_a_document_image: float = 122.5
    text_tokens_a_pair: float = 22.7
    document_tokens_s: float = ENCODE["documents"]["stage_tokens_per_s"]
    pair_tokens_s: float = ENCODE["pairs"]["stage_tokens_per_s"]
    planned_samples_s: float = min(
        found["samples_per_s"] for name, found in measured("blend").items() if name != "conditions"
    )
    part_records: float = 10_000


SOURCES: dict[str, tuple[str, str]] = {
    "document_images": ("images of MMC4 kept", "arXiv 2312.07533: 25M, of 30M"),
    "pair_images": ("images of COYO kept", "arXiv 2312.07533: 25M"),
    "images_a_document": ("images per document", "arXiv 2312.07533"),
    "document_links_live": ("share of MMC4's links that answer", "arXiv 2312.07533: 25M of 30M; fewer today"),
    "pair_links_live": ("share of COYO's links that answer", "docs/sources.md: 50 to 75%; the middle is used"),
    "served_bytes": ("bytes per image, as served", "measured: benchmarks/results/lay_down.json, Flickr8k"),
    "stored_bytes": ("bytes per image, as stored", "measured: the same, 336 px, quality 90"),
    "shard_bytes": ("bytes per image, in a shard", "measured: the same, with JSON, caption, tar headers"),
    "requests_s_a_core": (
        "requests/s per core on the open web",
        "img2dataset's README: 1,345 images/s on 16 cores, over 36M",
    ),
    "cpu_images_s_a_core": ("images/s per core, no network", "measured: benchmarks/results/download.json"),
    "clip_224_samples_s": (
        "CLIP ViT-L/14 at 224 px, samples/s per GPU",
        "clip-retrieval's distributed_clip_inference.md: 312/s on an A100",
    ),
    "texts_a_document_image": ("sentences per image of a document", "MMC4: 24.3 sentences, 5.7 images"),
    "filter_core_s": ("core seconds of filter per image", "measured: benchmarks/results/lay_down.json"),
    "shard_core_s": ("core seconds of shard per image", "measured: the same"),
    "text_tokens_a_document_image": ("text tokens per image of MMC4", "arXiv 2312.07533"),
    "text_tokens_a_pair": ("text tokens per pair", "arXiv 2312.07533"),
    "document_tokens_s": ("text tokens/s per core, documents", "measured: benchmarks/results/encode.json"),
    "pair_tokens_s": ("text tokens/s per core, pairs", "measured: the same"),
    "planned_samples_s": ("samples/s planned into packs", "measured: benchmarks/results/blend.json, the slowest"),
    "part_records": ("records per part", "the recipe's default"),
}


@dataclass(frozen=True)
class Stage:
    """What a stage takes in all. serial_h: hours that more machines do not shorten."""

    name: str
    core_h: float
    gpu_h: float = 0.0
    network_bytes: float = 0.0
    occupied_core_h: float = field(default=0.0)
    serial_h: float = 0.0

    def hours(self, machines: int) -> float:
        """Wall hours on so many machines: the slowest of cores, GPU and network, and what is serial."""
        cores = max(self.core_h, self.occupied_core_h) / (CORES * machines)
        network = self.network_bytes / (NETWORK_BYTES_S * machines) / 3600
        return max(cores, self.gpu_h / machines, network) + self.serial_h


def stages(a: Assumptions) -> list[Stage]:
    """The stages of the pre-training corpus."""
    images = a.document_images + a.pair_images
    requests = a.document_images / a.document_links_live + a.pair_images / a.pair_links_live
    longest_part = a.part_records * a.images_a_document / a.document_links_live / a.requests_s_a_core / 3600
    samples = a.document_images / a.images_a_document + a.pair_images
    tokens = a.document_images * a.text_tokens_a_document_image / a.document_tokens_s
    tokens += a.pair_images * a.text_tokens_a_pair / a.pair_tokens_s
    return [
        Stage(
            "download",
            core_h=images / a.cpu_images_s_a_core / 3600,
            occupied_core_h=requests / a.requests_s_a_core / 3600,
            network_bytes=images * (a.served_bytes + a.stored_bytes),
            serial_h=longest_part,
        ),
        Stage("score (not in VILA's recipes)", core_h=0.0, gpu_h=gpu_hours(a), network_bytes=images * a.stored_bytes),
        Stage("filter", core_h=images * a.filter_core_s / 3600),
        Stage("shard", core_h=images * a.shard_core_s / 3600, network_bytes=images * (a.stored_bytes + a.shard_bytes)),
        Stage("encode", core_h=tokens / 3600),
        Stage("blend, one epoch", core_h=0.0, serial_h=samples / a.planned_samples_s / 3600),
    ]


def gpu_hours(a: Assumptions) -> float:
    """A100 hours for ViT-L/14 at 336 px: the published rate at 224 px over the ratio of weights times tokens."""
    text = TEXT_PARAMETERS * TOKENS_TEXT
    published = IMAGE_PARAMETERS * TOKENS_224 + text
    pair = (IMAGE_PARAMETERS * TOKENS_336 + text) / published
    document = (IMAGE_PARAMETERS * TOKENS_336 + text * a.texts_a_document_image) / published
    return (a.pair_images * pair + a.document_images * document) / a.clip_224_samples_s / 3600


def total_hours(a: Assumptions, machines: int, *, scored: bool = False) -> float:
    """Wall hours of all stages, one after the other."""
    return sum(stage.hours(machines) for stage in stages(a) if scored or not stage.gpu_h)


def bytes_table(a: Assumptions) -> list[str]:
    """Requests and bytes by corpus."""
    lines = ["| | MMC4 | COYO | both |", "| --- | --- | --- | --- |"]
    kept = (a.document_images, a.pair_images)
    asked = (a.document_images / a.document_links_live, a.pair_images / a.pair_links_live)
    rows: list[tuple[str, tuple[float, float], float, str]] = [
        ("URLs requested, millions", asked, 1e6, ".1f"),
        ("images kept, millions", kept, 1e6, ".1f"),
        ("network in, TB", (kept[0] * a.served_bytes, kept[1] * a.served_bytes), 1e12, ".2f"),
        ("stored by download, TB", (kept[0] * a.stored_bytes, kept[1] * a.stored_bytes), 1e12, ".2f"),
        ("shards, TB", (kept[0] * a.shard_bytes, kept[1] * a.shard_bytes), 1e12, ".2f"),
    ]
    for name, values, unit, form in rows:
        cells = [f"{value / unit:{form}}" for value in (*values, sum(values))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def hours_table(a: Assumptions) -> list[str]:
    """Core hours, GPU hours and wall hours by stage."""
    columns = " | ".join(f"{machines} machine{'s' * (machines > 1)}, h" for machines in MACHINES)
    lines = [
        f"| stage | CPU, core h | occupied, core h | GPU h | {columns} |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for stage in stages(a):
        occupied = max(stage.core_h, stage.occupied_core_h)
        cells = [shown(stage.core_h), shown(occupied), shown(stage.gpu_h)]
        cells += [shown(stage.hours(machines)) for machines in MACHINES]
        lines.append(f"| {stage.name} | {' | '.join(cells)} |")
    for name, scored in (("**all, as VILA has it**", False), ("**all, with scores**", True)):
        counted = [stage for stage in stages(a) if scored or not stage.gpu_h]
        cells = [
            shown(sum(stage.core_h for stage in counted)),
            shown(sum(max(stage.core_h, stage.occupied_core_h) for stage in counted)),
            shown(sum(stage.gpu_h for stage in counted)),
            *(shown(total_hours(a, machines, scored=scored)) for machines in MACHINES),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def what_dominates(a: Assumptions) -> list[str]:
    """Each uncertain assumption at both its ends: hours on one machine, as VILA has it."""
    base = total_hours(a, 1)
    ends: list[tuple[str, str, Assumptions, str, Assumptions]] = [
        (
            "requests/s per core",
            "62.5 (LAION-5B with img2dataset: 1,000/s on 16 cores)",
            replace(a, requests_s_a_core=1000 / 16),
            f"{a.cpu_images_s_a_core:.0f} (our client, network without limit)",
            replace(a, requests_s_a_core=a.cpu_images_s_a_core),
        ),
        ("COYO's links that answer", "50%", replace(a, pair_links_live=0.5), "75%", replace(a, pair_links_live=0.75)),
        (
            "MMC4's links that answer",
            "50% (our guess for today)",
            replace(a, document_links_live=0.5),
            "83% (the paper)",
            a,
        ),
        (
            "bytes per image",
            "as measured",
            a,
            "half of it",
            replace(a, served_bytes=a.served_bytes / 2, stored_bytes=a.stored_bytes / 2, shard_bytes=a.shard_bytes / 2),
        ),
    ]
    lines = [
        f"| assumption | worse | hours | better | hours | ({base:.1f} h as assumed) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, worse_is, worse, better_is, better in ends:
        high, low = total_hours(worse, 1), total_hours(better, 1)
        lines.append(
            f"| {name} | {worse_is} | {high:.1f} | {better_is} | {low:.1f} | {low - base:+.1f} to {high - base:+.1f} |"
        )
    return lines


def patience_table() -> list[str]:
    """Requests a second of one machine by the share of silent hosts: slots over seconds a request."""
    slots, attempts, idle_timeout_s, answer_s = CORES * 256, 3, 5.0, 0.5
    lines = [
        f"| hosts that do not answer | mean seconds per request | requests/s per machine ({slots:,} in flight) |",
        "| --- | --- | --- |",
    ]
    for share in (0.0, 0.05, 0.10, 0.20, 0.30):
        mean = share * attempts * idle_timeout_s + (1 - share) * answer_s
        lines.append(f"| {share:.0%} | {mean:.2f} | {slots / mean:,.0f} |")
    return lines


def assumptions_table(a: Assumptions) -> list[str]:
    """Every assumption with its source."""
    lines = ["| assumption | value | source |", "| --- | --- | --- |"]
    return lines + [f"| {what} | {shown(getattr(a, name))} | {source} |" for name, (what, source) in SOURCES.items()]


def shown(value: float) -> str:
    """A number with three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.3g}M"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


TABLES = {
    "bytes": bytes_table,
    "hours": hours_table,
    "dominates": what_dominates,
    "patience": lambda a: patience_table(),
    "assumptions": assumptions_table,
}


def with_tables(text: str) -> str:
    """The page with its tables made anew: each stands between `<!-- costs: NAME -->` and `<!-- end -->`."""
    for name, table in TABLES.items():
        block = "\n".join([f"<!-- costs: {name} -->", *table(Assumptions()), "<!-- end -->"])
        text, count = re.subn(rf"<!-- costs: {name} -->.*?<!-- end -->", lambda _, new=block: new, text, flags=re.S)
        if count != 1:
            sys.exit(f"{PAGE}: {count} places for the table {name}; it needs one")
    return text


def main() -> None:
    """Write the tables, or compare them."""
    text = PAGE.read_text(encoding="utf-8")
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(with_tables(text), encoding="utf-8")
    elif with_tables(text) != text:
        sys.exit(f"{PAGE}: its tables are not what docs/costs.py gives: run python docs/costs.py")


if __name__ == "__main__":
    main()
