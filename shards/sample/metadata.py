"""The published form of the plan: MMC4 lines and COYO rows, with the scores their publishers would have given."""

from __future__ import annotations

import re
from functools import cache
from random import Random
from typing import Any

import pictures
import plan
import pyarrow as pa
from scenes import Scene, overlap

COYO_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("url", pa.string()),
        ("text", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("image_phash", pa.string()),
        ("text_length", pa.int64()),
        ("word_count", pa.int64()),
        ("num_tokens_bert", pa.int64()),
        ("num_tokens_gpt", pa.int64()),
        ("num_faces", pa.int64()),
        ("clip_similarity_vitb32", pa.float64()),
        ("clip_similarity_vitl14", pa.float64()),
        ("nsfw_score_opennsfw2", pa.float64()),
        ("nsfw_score_gantman", pa.float64()),
        ("watermark_score", pa.float64()),
        ("aesthetic_score_laion_v2", pa.float64()),
    ]
)
# A matched cell is above every other of its row and column by more than an unmatched row varies,
# so the published assignment is the linear-assignment optimum.
MATCHED, UNMATCHED_FROM, UNMATCHED_SPAN, NOISE = (0.29, 0.36), 0.11, 0.06, 0.02


def original_of(link: plan.Link) -> plan.Picture:
    """The picture that a near copy copies: the first of the document before, or the pair before."""
    folder, number = link.picture.name.split("/")
    before = int(number[:3]) - 1
    return plan.document(before).links[0].picture if folder == "docs" else plan.pair(before).link.picture


def similarity(image: plan.Picture, about: Scene | None, matched: bool, rng: Random) -> float:
    """A plausible CLIP ViT-L/14 cosine of a picture and a sentence."""
    if matched:
        return round(rng.uniform(*MATCHED), 6)
    shared = overlap(image.scene, about) if about is not None else 0.0
    return round(UNMATCHED_FROM + UNMATCHED_SPAN * min(shared, 1.0) + rng.uniform(0, NOISE), 6)


def mmc4_line(document: plan.Document) -> dict[str, Any]:
    """The document as MMC4 publishes it; an image that no sentence is about has its best free sentence."""
    rng = Random(f"{plan.SEED} similarity {document.number}")
    matrix = [
        [
            similarity(link.picture, about, document.matches[i] == sentence, rng)
            for sentence, about in enumerate(document.about)
        ]
        for i, link in enumerate(document.links)
    ]
    taken = {match for match in document.matches if match is not None}
    info = []
    for i, link in enumerate(document.links):
        match = document.matches[i]
        if match is None:
            free = [sentence for sentence in range(len(document.texts)) if sentence not in taken]
            match = max(free, key=lambda sentence: matrix[i][sentence])
        info.append(
            {
                "image_name": f"{Random(link.url).getrandbits(48):012x}.{link.url.rsplit('.', 1)[-1]}",
                "raw_url": link.url,
                "matched_text_index": match,
                "matched_sim": matrix[i][match],
                "face_detections": None,
            }
        )
    return {
        "text_list": list(document.texts),
        "url": document.url,
        "image_info": info,
        "similarity_matrix": matrix,
        "could_have_url_duplicate": int(document.number == plan.DUPLICATE_OF),
    }


@cache
def _hash(picture: plan.Picture) -> str:
    return pictures.difference_hash(pictures.drawn(picture))


def coyo_row(pair: plan.Pair) -> dict[str, Any]:
    """The pair as COYO publishes it; a wrong caption has low similarities."""
    rng = Random(f"{plan.SEED} row {pair.number}")
    shown = original_of(pair.link) if pair.link.behaviour == "near_copy" else pair.link.picture
    wrong = pair.caption_of != pair.number
    pieces = re.findall(r"\w+|[^\w\s]", pair.text)
    return {
        "id": pair.id,
        "url": pair.link.url,
        "text": pair.text,
        "width": pair.link.picture.size[0],
        "height": pair.link.picture.size[1],
        "image_phash": _hash(shown),
        "text_length": len(pair.text),
        "word_count": len(pair.text.split()),
        "num_tokens_bert": len(pieces) + 2,
        "num_tokens_gpt": len(pieces) + rng.randint(0, 2),
        "num_faces": 0,
        "clip_similarity_vitb32": round(rng.gauss(0.18 if wrong else 0.31, 0.015), 6),
        "clip_similarity_vitl14": round(rng.gauss(0.13 if wrong else 0.27, 0.015), 6),
        "nsfw_score_opennsfw2": round(rng.uniform(0, 0.002), 9),
        "nsfw_score_gantman": round(rng.uniform(0, 0.03), 7),
        "watermark_score": round(rng.uniform(0.01, 0.2), 7),
        "aesthetic_score_laion_v2": round(rng.gauss(5.0, 0.4), 5),
    }


def coyo_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table with COYO's columns and types."""
    return pa.Table.from_pylist(rows, schema=COYO_SCHEMA)
