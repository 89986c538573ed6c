"""A small run on disk without a network: drawn pictures, download parts, fates, shard sets.

Parts are written as the download and score stages leave them; everything after that is the project's own code.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from vila_data.core.layout import Part, parts_list, record_key
from vila_data.core.receipts import committing
from vila_data.core.records import ImageRef, Record, record_to_json
from vila_data.core.scores import NONE
from vila_data.core.store import Store
from vila_data.core.tables import DOWNLOAD_IMAGES, DOWNLOAD_RECORDS, SCORE_IMAGES
from vila_data.core.tarcodec import TarWriter
from vila_data.filter.config import FilterConfig, Rules
from vila_data.filter.part import filter_part
from vila_data.recipe.lock import lock_value, write_lock
from vila_data.recipe.recipe import Recipe
from vila_data.runs.plan import CorpusPlan
from vila_data.score.clip import ClipConfig
from vila_data.score.kinds import scores_of
from vila_data.shard.config import ShardSet
from vila_data.shard.manifest import Manifest, finish_set
from vila_data.shard.write import SampleRefs, ShardJob, plan_shards, write_shard

SEED = 17
MAX_BYTES = 60_000
TEXTS = (
    "A red boat on the open sea.",
    'Quotes " and \\ backslashes \\" \\n, a tab\tand\na line break.',
    "Zażółć gęślą jaźń, 漢字, \u202eright to left\u202c, 🛶🏔️.",
    "\x01\x02\x1f control characters, and \u2028 a separator.",
    "x" * 700,
    "",
)


CLIP = scores_of({"clip": ClipConfig(model="none")})


@dataclass(frozen=True)
class Item:
    """A record and, for each of its images, the JPEG, or None where its download failed."""

    record: Record
    jpegs: tuple[bytes | None, ...]
    similarities: tuple[float | None, ...]

    @property
    def whole(self) -> bool:
        """Whether VILA's rules keep it: at least one image, none missing."""
        return bool(self.jpegs) and None not in self.jpegs


def drawn(seed: int) -> bytes:
    """A JPEG of a few shapes; other seeds, other bytes and other sizes."""
    random = np.random.default_rng(seed)
    width, height = int(random.integers(48, 120)), int(random.integers(48, 120))
    image = Image.new("RGB", (width, height), tuple(int(v) for v in random.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x, y, w, h = (int(v) for v in random.integers(0, 60, 4))
        draw.ellipse((x, y, x + w + 4, y + h + 4), fill=tuple(int(v) for v in random.integers(0, 256, 3)))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def item(name: str, texts: Sequence[str], matched: Sequence[int], seed: int, *, missing: bool = False) -> Item:
    """A document with an image for each entry of `matched`, the sentence that it stands before."""
    jpegs: list[bytes | None] = [drawn(seed * 100 + index) for index in range(len(matched))]
    if missing:
        jpegs[-1] = None
    refs = tuple(ImageRef(f"https://pictures.test/{name}/{i}.jpg", text, 0.25) for i, text in enumerate(matched))
    similarities = tuple(None if jpeg is None else (seed * 7 + i) % 50 / 100 for i, jpeg in enumerate(jpegs))
    return Item(Record(name, "document", tuple(texts), refs, f"https://pages.test/{name}"), tuple(jpegs), similarities)


def documents(count: int) -> list[Item]:
    """Documents of 1 to 5 images; some share a sentence, every eleventh lacks an image."""
    items = []
    for n in range(count):
        texts = [f"Page {n}, sentence {k}. {TEXTS[(n + k) % len(TEXTS)]}" for k in range(2 + n % 4)]
        matched = [(n * 3 + i * i) % len(texts) for i in range(1 + n % 5)]
        items.append(item(f"doc-{n:04d}", texts, matched, n + 1, missing=n % 11 == 10))
    return items


def pairs(count: int) -> list[Item]:
    """Pairs, the kind that COYO has; every thirteenth lacks its image."""
    items = []
    for n in range(count):
        made = item(f"pair-{n:04d}", [f"Caption {n}: {TEXTS[n % len(TEXTS)]}"], [0], 10_000 + n, missing=n % 13 == 12)
        items.append(replace(made, record=replace(made.record, kind="pair", source_url=None)))
    return items


def chats(count: int) -> list[Item]:
    """Conversations of 0 to 4 images in 2 to 6 turns; every seventh with images lacks one."""
    items = []
    for n in range(count):
        made = item(f"chat-{n:04d}", ["", ""], [0] * (n % 5), 20_000 + n, missing=n % 5 > 0 and n % 7 == 6)
        texts = [f"Turn {k} of {n}. {TEXTS[(n + k) % len(TEXTS)]}" for k in range(2 + 2 * (n % 3))]
        refs = []
        for k, ref in enumerate(made.record.images):
            turn = k * len(texts) // len(made.record.images)
            texts[turn] += "<image>"
            refs.append(replace(ref, matched_text_index=turn))
        roles = tuple(("human", "gpt")[k % 2] for k in range(len(texts)))
        record = Record(made.record.record_id, "conversation", tuple(texts), tuple(refs), roles=roles)  # type: ignore[arg-type]
        system = (None, "", 'A "system" prompt.')[n % 3]
        items.append(replace(made, record=replace(record, system=system), similarities=(None,) * len(refs)))
    return items


def write_part(store: Store, corpus: str, index: int, items: Sequence[Item | None]) -> Part:
    """Commit a part's download and scores; None stands for a metadata row that is no record."""
    part = Part(corpus, index, "meta.jsonl", "meta", 0, len(items), len(items), f"inputs-{index}")
    images: list[tuple[Any, ...]] = []
    records: list[tuple[Any, ...]] = []
    scores: list[tuple[Any, ...]] = []
    with committing(store, part.receipt("download"), "test") as outputs:
        with open(outputs.path(part.images_tar()), "wb") as stream:
            tar = TarWriter(stream)
            for row, one in enumerate(items):
                if one is None:
                    records.append((row, f"bad-{row}", "failed", "malformed_json", "line 3", 0, 0, 0, 0, *[None] * 3))
                    continue
                start = tar.position
                data = record_to_json(one.record)
                tar.add(f"{record_key(corpus, index, row)}.json", data)
                for number in range(len(one.jpegs)):
                    images.append(_image_row(tar, part, row, one, number))
                    scores.append(_score_row(row, one, number))
                texts = one.record.texts
                sizes = (len(one.jpegs), len(texts), sum(map(len, texts)), len(data), start, tar.position - start)
                digest = hashlib.sha256(data).hexdigest()
                records.append((row, one.record.record_id, "ok", None, None, *sizes, digest))
            tar.finish()
        outputs.counts.update(images=_fates(images, 4), records=_fates(records, 2))
        pq.write_table(_table(images, DOWNLOAD_IMAGES), outputs.path(part.images_table()))
        pq.write_table(_table(records, DOWNLOAD_RECORDS), outputs.path(part.records_table()))
        pq.write_table(_table(scores, SCORE_IMAGES), outputs.path(part.scores_table("clip")))
    return part


def _image_row(tar: TarWriter, part: Part, row: int, one: Item, number: int) -> tuple[Any, ...]:
    ref, jpeg = one.record.images[number], one.jpegs[number]
    head = (row, one.record.record_id, number, ref.url)
    if jpeg is None:
        return (*head, "failed", "timeout", *[None] * 9, ref.matched_text_index, None, None)
    placed = tar.add(f"{record_key(part.corpus, part.index, row)}.{number}.jpg", jpeg)
    width, height = Image.open(io.BytesIO(jpeg)).size
    stored = (hashlib.sha256(jpeg).hexdigest(), width, height, len(jpeg), width, height, len(jpeg), "0" * 16)
    return (*head, "ok", None, 200, *stored, ref.matched_text_index, placed.offset, None)


def _score_row(row: int, one: Item, number: int) -> tuple[Any, ...]:
    matched, similarity = one.record.images[number].matched_text_index, one.similarities[number]
    scored = similarity is not None
    head = (row, one.record.record_id, number, scored, similarity, matched)
    return (*head, matched if scored else None, similarity, None)


def _fates(rows: list[tuple[Any, ...]], status: int) -> dict[str, int]:
    """Counts of ``ok`` and ``failed:<error>``; the error is beside the status."""
    return dict(Counter("ok" if row[status] == "ok" else f"failed:{row[status + 1]}" for row in rows))


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def filtered_parts(
    store: Store,
    corpus: str,
    items: Sequence[Item | None],
    part_size: int,
    *,
    scored: bool = True,
    rules: Rules | None = None,
) -> list[Part]:
    """Parts of `part_size` rows, filtered by the default rules or by `rules`."""
    parts = []
    for index, first in enumerate(range(0, len(items), part_size)):
        part = write_part(store, corpus, index, items[first : first + part_size])
        filter_part(store, part, rules or Rules(), CLIP if scored else NONE, None, "test")
        parts.append(part)
    write_parts_list(store, corpus, parts)
    return parts


def write_parts_list(store: Store, corpus: str, parts: Sequence[Part]) -> None:
    """The parts of a corpus, as a run commits them before it downloads."""
    rows = sum(part.stop - part.start for part in parts)
    value = {"inputs": "test", **asdict(CorpusPlan(corpus, rows, rows, tuple(parts)))}
    store.commit_bytes(json.dumps(value).encode(), parts_list(corpus))


def write_lock_of(store: Store, recipe: Recipe) -> Recipe:
    """The lock of a run of this recipe, without fingerprints of its inputs."""
    write_lock(store, lock_value(recipe, None, {}, {}, {}))
    return recipe


def jobs_of(name: str, config: ShardSet, parts: Sequence[Part], shards: Sequence[SampleRefs]) -> list[ShardJob]:
    """The work of writing `shards`."""
    by_index = {part.index: part for part in parts}
    return [
        ShardJob(name, i, config.view, config.corpus, refs, by_index, f"inputs-{i}") for i, refs in enumerate(shards)
    ]


def make_set(
    store: Store, parts: Sequence[Part], name: str, config: ShardSet, *, seed: int = SEED, max_bytes: int = MAX_BYTES
) -> Manifest:
    """A finished set under shards/<name>."""
    shards = plan_shards(store, parts, config.view, name, seed, max_bytes)
    receipts = [write_shard(store, job) for job in jobs_of(name, config, parts, shards)]
    return finish_set(store, name, config, receipts, "recipe", "inputs")


@dataclass(frozen=True)
class MadeRun:
    """40 documents in 3 parts, 60 pairs and 50 conversations in 2: the sets docs, docs_pairs, pairs and chat."""

    store: Store
    documents: list[Item]
    pairs: list[Item]
    chats: list[Item]
    parts: dict[str, list[Part]]
    sets: dict[str, Manifest]


SETS = {
    "docs": ShardSet(corpus="web", view="interleaved"),
    "docs_pairs": ShardSet(corpus="web", view="pairs"),
    "pairs": ShardSet(corpus="alt", view="pairs"),
    "chat": ShardSet(corpus="talk", view="conversations"),
}
CHAT_RULES = FilterConfig().rules_for("talk", conversations=True)


def make_run(folder: str) -> MadeRun:
    """The run that most tests read; do not write to it."""
    store = Store(folder)
    docs, captions, talks = documents(40), pairs(60), chats(50)
    parts = {
        "web": filtered_parts(store, "web", [*docs[:5], None, *docs[5:]], 15),
        "alt": filtered_parts(store, "alt", captions, 35, scored=False),
        "talk": filtered_parts(store, "talk", talks, 30, scored=False, rules=CHAT_RULES),
    }
    sets = {name: make_set(store, parts[config.corpus], name, config) for name, config in SETS.items()}
    return MadeRun(store, docs, captions, talks, parts, sets)
