"""Languages of a set's texts, guessed on a seeded sample of them by py3langid (extra `language`)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import numpy as np

from vila_data.core.layout import shard_stem
from vila_data.core.ranges.reader import Span, read_spans
from vila_data.core.records import IMAGE_PLACEHOLDER
from vila_data.core.samples import SampleContent, decode_sample
from vila_data.core.store import Store
from vila_data.shard.manifest import Manifest
from vila_data.shard.read import read_index
from vila_data.shard.write import shuffle

SAMPLED: Final = 512
SHARDS_READ: Final = 8
CHARS_READ: Final = 2_000
LEAST_LETTERS: Final = 20
LEAST_CONFIDENCE: Final = 0.8
UNSURE: Final = "unsure"
TOO_SHORT: Final = "too short"


def identifier_version() -> str | None:
    """Version of py3langid; None where it is not installed."""
    try:
        return version("py3langid")
    except PackageNotFoundError:
        return None


def languages(store: Store, manifest: Manifest, seed: int) -> dict[str, Any]:
    """{"measured", "by", "of", "sampled", "counts": {ISO 639-1 code: samples}} of a set.

    The shards are a shuffle of the whole set, so some of its shards stand for all. Texts with fewer than
    LEAST_LETTERS letters count as TOO_SHORT, those that are not clearly of one language as UNSURE.
    """
    found = identifier_version()
    if found is None:
        return {"measured": False, "why": "py3langid is not installed: pip install 'vila-data[language]'"}
    identifier = _identifier()
    counts: dict[str, int] = {}
    for text in sampled_texts(store, manifest, seed):
        name = TOO_SHORT
        if sum(map(str.isalpha, text)) >= LEAST_LETTERS:
            name, confidence = identifier.classify(text)
            name = name if confidence >= LEAST_CONFIDENCE else UNSURE
        counts[name] = counts.get(name, 0) + 1
    return {
        "measured": True,
        "by": f"py3langid {found}",
        "of": manifest.samples,
        "sampled": sum(counts.values()),
        "counts": dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))),
    }


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def sampled_texts(store: Store, manifest: Manifest, seed: int) -> Iterator[str]:
    """The beginnings of the texts of some samples: the same for the same seed."""
    order = shuffle(len(manifest.shards), seed, f"{manifest.name}/languages")[:SHARDS_READ]
    each = -(-SAMPLED // max(1, len(order)))
    for number in sorted(order.tolist()):
        stem = shard_stem(manifest.name, number)
        index = read_index(store, f"{stem}.parquet", ["offsets", "sizes"])
        rows = np.sort(shuffle(index.num_rows, seed, f"{stem}/languages")[:each])
        offsets, sizes = (index.column(name).take(rows).to_pylist() for name in ("offsets", "sizes"))
        spans = (Span(f"{stem}.tar", at[0], size[0]) for at, size in zip(offsets, sizes, strict=True))
        where = store.location(f"{stem}.tar")
        for data in read_spans(store, spans):
            yield _text(decode_sample(data, where))[:CHARS_READ]


def _text(sample: SampleContent) -> str:
    texts = sample.texts
    if sample.view == "conversations" and sample.images:
        texts = tuple(text.replace(IMAGE_PLACEHOLDER, " ") for text in texts)
    return " ".join(text for text in texts if text)
