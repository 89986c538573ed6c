"""card.md: a dataset card in the Hugging Face format (YAML between dashes, then Markdown), filled from what was measured.

It holds no times: the same run gives the same bytes. What comes from the web, hosts above all, stands in code spans,
where Markdown makes neither links nor HTML of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import yaml

from vila_data.core.readable import plain, share, short, size_text
from vila_data.explore.flow import stages
from vila_data.explore.recipe_text import shown_recipe
from vila_data.explore.rows import SHARE_HEADINGS, SHARE_NOTE, only_files, share_rows
from vila_data.runs.report import omissions

_TASKS: Final = {
    "interleaved": ("image-text-to-text", "text-generation"),
    "pairs": ("image-to-text", "text-to-image"),
    "conversations": ("image-text-to-text", "visual-question-answering"),
}
_SIZES: Final = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")
_LEAST_SHARE: Final = 0.01
_NO_LANGUAGE: Final = ("unsure", "too short")
_HOSTS: Final = 10
_FIELDS: Final = {
    "interleaved": (
        "`<key>.json`: `texts` and `images` of equal length in reading order (null where the other one stands), "
        "`image_info` for each image (url, width, height, sha256, similarity, matched_text_index), `source` and `schema`; "
        "`<key>.0.jpg`, `<key>.1.jpg` …: the images"
    ),
    "pairs": "`<key>.jpg`, `<key>.txt` (the caption), `<key>.json` (caption, url, width, height, sha256, similarity, source)",
    "conversations": (
        "`<key>.json`: `conversations` as LLaVA has them (`from`: human or gpt, `value`), `system`, `images`, "
        "`image_info`, `source`; `<key>.0.jpg` …: the images, none for text alone"
    ),
}


def card(totals: Mapping[str, Any], lock: Mapping[str, Any]) -> str:
    """The card's text. totals: run.json; lock: recipe.lock.yaml."""
    front = yaml.safe_dump(front_matter(totals), sort_keys=False, allow_unicode=True, width=100)
    sections = [
        _summary(totals),
        _source(totals, lock),
        _composition(totals),
        _removed(totals),
        _making(totals, lock),
        _fields(totals),
        _loading(totals),
        _limits(totals, lock),
    ]
    return (
        f"---\n{front}---\n\n# {words(totals['name'])}\n\n"
        + "\n\n".join("\n".join(section) for section in sections)
        + "\n"
    )


def front_matter(totals: Mapping[str, Any]) -> dict[str, Any]:
    """The card's YAML values. The license is for whoever publishes the data to say."""
    sets = totals["sets"]
    samples = sum(found["samples"] for found in sets.values())
    tasks = [task for found in sets.values() for task in _tasks(found)]
    value: dict[str, Any] = {"pretty_name": totals["name"], "license": "unknown"}
    spoken = _spoken(totals)
    if spoken:
        value["language"] = spoken
    value |= {
        "task_categories": list(dict.fromkeys(tasks)),
        "size_categories": [_SIZES[min(len(_SIZES) - 1, max(0, math.floor(math.log10(max(samples, 1))) - 2))]],
        "tags": ["vila-data", "webdataset", "vision-language"],
        "configs": [
            {"config_name": name, "data_files": [{"split": "train", "path": f"shards/{name}/{name}-*.tar"}]}
            for name, found in sets.items()
            if found["samples"] and _same_members(found)
        ],
    }
    return {key: entry for key, entry in value.items() if entry}


def code(text: str) -> str:
    """A code span that shows a text in which nothing is Markdown; characters that could end it are percent-encoded."""
    return f"`{quote(text, safe=_SAFE) or ' '}`"


_SAFE: Final = "".join(chr(c) for c in range(33, 127) if chr(c) not in "`|\\<>&") + " "


def words(text: str) -> str:
    """A name in running Markdown: one line, every character that could mean something escaped."""
    return re.sub(r"([^\w\s+-]|_)", r"\\\1", " ".join(plain(text).split()))


def fenced(text: str, kind: str) -> str:
    """A code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{kind}\n{text.rstrip()}\n{fence}"


def _same_members(found: Mapping[str, Any]) -> bool:
    """Whether each sample has the same members, as load_dataset("webdataset") asks for."""
    return found["view"] == "pairs" or not found["images"]


def _tasks(found: Mapping[str, Any]) -> Sequence[str]:
    if found["view"] == "conversations" and not found["images"]:
        return ("text-generation",)
    return _TASKS[found["view"]]


def _spoken(totals: Mapping[str, Any]) -> list[str]:
    """Languages of at least one text in a hundred of some set, the most frequent first."""
    shares: dict[str, float] = {}
    for found in totals["measures"]["languages"].values():
        for name, count in found.get("counts", {}).items() if found["measured"] else ():
            if name not in _NO_LANGUAGE and count >= _LEAST_SHARE * found["sampled"]:
                shares[name] = shares.get(name, 0.0) + count / found["sampled"]
    return sorted(shares, key=lambda name: (-shares[name], name))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], words_first: int = 1) -> list[str]:
    """A table; the first columns, of words, to the left, the others, of figures, to the right."""
    rule = "|" + " --- |" * words_first + " ---: |" * (len(headings) - words_first)
    return [f"| {' | '.join(headings)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def _summary(totals: Mapping[str, Any]) -> list[str]:
    sets = totals["sets"].values()
    samples, images = sum(found["samples"] for found in sets), sum(found["images"] for found in sets)
    size = size_text(sum(found["bytes"] for found in sets))
    lines = [
        f"Training data for vision-language models: {samples:,} samples with {images:,} images in {len(sets)} shard "
        f"sets ({size} of WebDataset tars). Made by vila-data from the recipe {code(totals['name'])}; every figure on this "
        "card was counted or measured by that run.",
        "",
    ]
    rows = [
        (
            words(name),
            found["view"],
            f"{found['samples']:,}",
            f"{found['images']:,}",
            f"{found['shards']:,}",
            _mb(found["bytes"]),
        )
        for name, found in totals["sets"].items()
    ]
    lines += _table(("set", "view", "samples", "images", "shards", "MB"), rows, 2)
    together: dict[str, list[str]] = {}
    for name, found in totals["sets"].items():
        together.setdefault(found["corpus"], []).append(words(name))
    twice = [" and ".join(names) for names in together.values() if len(names) > 1]
    return [*lines, *(f"\nThe sets {names} contain the same records in different layouts." for names in twice)]


def _source(totals: Mapping[str, Any], lock: Mapping[str, Any]) -> list[str]:
    lines = ["## Sources", ""]
    rows = []
    for name, config in lock["recipe"]["corpora"].items():
        found = stages(totals["funnel"][name], "records")
        images = stages(totals["funnel"][name], "images")
        entered = f"{images[0].entered:,}" if images else "0"
        rows.append((words(name), config["kind"], f"{found[0].entered if found else 0:,}", entered))
    lines += _table(("corpus", "kind", "records in the metadata", "images referenced"), rows, 2)
    for name, measured in totals["measures"]["corpora"].items():
        hosts = measured["hosts"]
        if only_files(hosts):
            lines += ["", f"The images of {words(name)} are local files; nothing was downloaded."]
        elif hosts["images"]:
            many = f"{hosts['distinct']:,}" if hosts["distinct"] is not None else "very many"
            top = ", ".join(f"{code(host)} {share(count, hosts['images'])}" for host, count, _ in hosts["top"][:_HOSTS])
            lines += ["", f"Hosts of the images of {words(name)} ({many}; the largest, with their share): {top}."]
    return lines


def _composition(totals: Mapping[str, Any]) -> list[str]:
    lines = ["## Contents", ""]
    rows = []
    for name, measured in totals["measures"]["corpora"].items():
        figures = [
            ("similarity of image and text", "similarity", "mean_kept"),
            ("shorter side as served, pixels", "shorter_side", "mean_kept"),
            ("images per record", "images_a_record", "mean"),
            ("characters of text per record", "text_chars", "mean_kept"),
        ]
        rows += [
            (words(name), what, short(measured[key][mean]), _range(measured[key]))
            for what, key, mean in figures
            if measured[key] is not None and measured[key][mean] is not None
        ]
    lines += _table(("corpus", "kept items", "mean", "90% range"), rows, 2)
    if totals["tokens"]:
        lines += ["", "Tokens, images expanded:", ""]
        columns = ("samples", "sequences", "tokens", "text_tokens")
        counted = [(words(name), *(f"{counts[key]:,}" for key in columns)) for name, counts in totals["tokens"].items()]
        lines += [*_table(("set", "samples", "sequences", "tokens", "text tokens"), counted), "", *_left_out(totals)]
    for name, found in totals["measures"]["languages"].items():
        if found["measured"] and not found["sampled"]:
            continue
        lines.append("")
        if found["measured"]:
            counts = ", ".join(
                f"{key} {share(n, found['sampled'])}" for key, n in list(found["counts"].items())[:_HOSTS]
            )
            lines.append(
                f"Languages of {words(name)}, detected by {found['by']} on {found['sampled']:,} texts: {counts}."
            )
        else:
            lines.append(f"Languages of {words(name)}: not measured.")
    if totals["blend"]:
        lines += ["", "Blend, one epoch:", ""]
        shares = [
            ("↳ " * row.depth + words(row.name), row.unit, *row.percents(1)) for row in share_rows(totals["blend"])
        ]
        lines += [*_table(SHARE_HEADINGS, shares, 2), "", SHARE_NOTE]
        told = totals["blend"].get("warnings", [])
        if told:
            lines += ["", "Shares that differ from the recipe's by more than 10% of it:", ""]
            lines += [f"- {words(warning['text'])}" for warning in told]
    return lines


def _left_out(totals: Mapping[str, Any]) -> list[str]:
    """What encoding cut, one row each."""
    rows = [
        (words(name), words(row.what), words(row.change), share(row.count, row.of), f"{row.count:,}", f"{row.of:,}")
        for name, counts in totals["tokens"].items()
        for row in omissions(counts)
    ]
    if not rows:
        return ["Encoding cut nothing: every sample is in a sequence, with all its tokens and images."]
    headings = ("set", "left out by encoding", "to change it", "share", "count", "of")
    return _table(headings, rows, 3)


def _range(value: Mapping[str, Any]) -> str:
    """The narrowest run of columns that holds nine in ten kept items."""
    counts = value["kept"]
    need, best = 0.9 * sum(counts), (len(counts), 0)
    for first in range(len(counts)):
        held = 0
        for last in range(first, len(counts)):
            held += counts[last]
            if held >= need:
                best = min(best, (last - first, first))
                break
    low, high = value["edges"][best[1]], value["edges"][best[1] + best[0] + 1]
    if high == value["edges"][best[1] + best[0]] + 1:  # columns of one whole number each
        return short(low) if high == low + 1 else f"{short(low)} to {short(high - 1)}"
    return f"{short(low)} to {short(high)}" if high is not None else f"{short(low)} or more"


def _removed(totals: Mapping[str, Any]) -> list[str]:
    lines = ["## What was removed, and why", ""]
    rows = []
    for name, funnel in totals["funnel"].items():
        for unit in ("records", "images"):
            for stage in stages(funnel, unit):
                rows += [
                    (f"{words(name)}, {stage.name}", _fate(fate), unit, f"{count:,}", share(count, stage.entered))
                    for fate, count in stage.fates_by_count()
                ]
    if not rows:
        return [*lines, "Nothing."]
    lines += _table(("corpus, stage", "fate", "of", "count", "share of stage"), rows, 3)
    lines += [
        "",
        "Exact duplicates are images of equal bytes (sha256 of the stored JPEG) within a corpus. Near duplicates were not "
        "checked.",
    ]
    return lines


def _fate(fate: str) -> str:
    kind, _, reason = fate.partition(":")
    return f"{kind}: {words(reason)}"


def _making(totals: Mapping[str, Any], lock: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in totals["versions"].items())
    prints = ", ".join(f"{stage} `{value}`" for stage, value in lock["fingerprints"].items())
    limit = f" Only the first {lock['limit']:,} rows of each corpus were used." if lock["limit"] else ""
    return [
        "## How it was built",
        "",
        f"With {versions}; fingerprints: {prints}.{limit} The recipe, without local paths:",
        "",
        fenced(shown_recipe(lock["recipe"]), "yaml"),
    ]


def _fields(totals: Mapping[str, Any]) -> list[str]:
    views = dict.fromkeys(found["view"] for found in totals["sets"].values())
    return ["## Fields", "", *(f"- {view}: {_FIELDS[view]}." for view in views)]


def _loading(totals: Mapping[str, Any]) -> list[str]:
    names = [name for name, found in totals["sets"].items() if found["samples"]]
    if not names:
        return ["## How to load it", "", "Every set is empty."]
    lines = ["## How to load it", "", fenced("\n".join(_load_lines(names[0], totals)), "python")]
    loadable = [name for name in names if _same_members(totals["sets"][name])]
    if loadable:
        lines += ["", fenced("\n".join(_datasets_lines(loadable[0])), "python")]
    if len(loadable) < len(names):
        lines += [
            "",
            "`load_dataset` reads the sets named under `configs` above; the others, whose samples differ in their number "
            "of images, cannot be loaded with it.",
        ]
    return lines


def _datasets_lines(name: str) -> Iterator[str]:
    yield "from datasets import load_dataset"
    yield ""
    yield f'rows = load_dataset("webdataset", data_files="shards/{name}/{name}-*.tar", split="train", streaming=True)'


def _load_lines(name: str, totals: Mapping[str, Any]) -> Iterator[str]:
    found = totals["sets"][name]
    yield "import webdataset"
    yield ""
    last = f"{{000000..{found['shards'] - 1:06d}}}"
    yield f'samples = webdataset.WebDataset("shards/{name}/{name}-{last}.tar", shardshuffle=False)'
    yield ""
    yield "import vila_data as vd  # by index, reading only what is requested"
    yield ""
    yield f'samples = vd.open_shards("shards/{name}")'


def _limits(totals: Mapping[str, Any], lock: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Known limits",
        "",
        "- License: not determined automatically. Images and texts belong to their authors; state the terms under "
        "which you share them, and fill in `license` above.",
        "- Images were downloaded once. The web has changed since, and unreachable images are missing.",
        "- The samples were not reviewed by a person and were not screened for faces, names or harmful content.",
    ]
    if "clip" not in {scorer["kind"] for scorer in lock["recipe"]["score"].values()}:
        lines.append("- No similarity of images and texts was measured.")
    if any(not found["measured"] for found in totals["measures"]["languages"].values()):
        lines.append("- The languages were not measured.")
    elif totals["measures"]["languages"]:
        lines.append("- Languages were detected automatically and are unreliable for short texts.")
    return lines


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}"
