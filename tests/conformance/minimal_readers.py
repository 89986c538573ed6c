"""How VILA and OpenFlamingo reach their data, as VILA.md describes it: no more than the access, written anew.

They take nothing from this project, so that what they read is what those programs would.
"""

from __future__ import annotations

import base64
import bisect
import io
import itertools
import json
import pickle
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

MOST_IMAGES = 6
LEAST_SIMILARITY = 0.24


@dataclass(frozen=True)
class Placed:
    """A picture of a document: its bytes, decoded once, and the sentence before which it stands."""

    jpeg: bytes
    size: tuple[int, int]
    sentence: int


def picture(encoded: str | bytes, sentence: int = 0) -> Placed:
    jpeg = base64.b64decode(encoded, validate=True)
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    return Placed(jpeg, image.size, sentence)


class PickleFolder:
    """A rank's items of a folder of X.pkl and X.count, as VILA finds them by number.

    Half the folder's files are taken for shards; a rank has as many of them as fit evenly, and no more.
    """

    def __init__(self, folder: Path, rank: int = 0, world_size: int = 1, item: int = 1) -> None:
        files = sorted(path.name for path in folder.iterdir())
        shards = [name for name in files if name.endswith(".pkl")]
        share = len(files) // 2 // world_size
        assert share > 0, "fewer shards than ranks"
        self.paths = [folder / name for name in shards[rank * share : (rank + 1) * share]]
        counts = [int(path.with_suffix(".count").read_text()) for path in self.paths]
        assert all(count % item == 0 for count in counts)
        self.item = item
        self.ends = list(itertools.accumulate(count // item for count in counts))
        self._loaded: tuple[int, list[Any]] = (-1, [])

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, number: int) -> list[Any]:
        """The rows of an item."""
        shard = bisect.bisect_right(self.ends, number)
        first = self.ends[shard - 1] if shard else 0
        if self._loaded[0] != shard:
            with self.paths[shard].open("rb") as stream:
                self._loaded = (shard, pickle.load(stream))
        start = (number - first) * self.item
        return self._loaded[1][start : start + self.item]


def vila_document(row: dict[str, Any], most: int | None = None) -> tuple[str, list[Placed]]:
    """A document's text with `<image>` before each matched sentence, and its pictures in that order."""
    infos = row["image_info"][:most]
    assert len(row["similarity_matrix"]) == len(row["image_info"])
    placed = [picture(info["image_base64"], info["matched_text_index"]) for info in infos]
    marks = [sum(one.sentence == k for one in placed) for k in range(len(row["text_list"]))]
    assert sum(marks) == len(placed)
    texts = [
        "<image>" * count + text.replace("<image>", "<IMAGE>")
        for count, text in zip(marks, row["text_list"], strict=True)
    ]
    return " ".join(texts), sorted(placed, key=lambda one: one.sentence)


def vila_pair(row: dict[str, Any]) -> tuple[str, Placed]:
    """A caption and its picture."""
    assert "id" in row and "url" in row and isinstance(row["clip_sim"], float | None)
    return row.get("text", row.get("caption")), picture(row.get("image", row.get("rawbytes")))


def flamingo_documents(tars: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(uuid, line) of every member, streamed."""
    for path in tars:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                stem, _, suffix = member.name.partition(".")
                assert member.isreg() and suffix == "json"
                stream = tar.extractfile(member)
                assert stream is not None
                yield stem, json.loads(stream.read())


def flamingo_pictures(line: dict[str, Any]) -> list[Placed]:
    """All of a line's pictures; a repr of bytes around the base64 is taken off."""
    found = []
    for info in line["image_info"]:
        text = info["image_base64"]
        assert not text.startswith("b'"), "not true base64"
        found.append(picture(text.removeprefix("b'").removesuffix("'"), info["matched_text_index"]))
    return found


def flamingo_assignment(line: dict[str, Any]) -> list[tuple[int, int]]:
    """(picture, sentence) that training takes: assigned anew, none below 0.24, at most six."""
    similarity = np.array(line["similarity_matrix"])
    assert similarity.shape == (len(line["image_info"]), len(line["text_list"]))
    pairs = zip(*linear_sum_assignment(-similarity), strict=True)
    return [(int(i), int(k)) for i, k in pairs if similarity[i, k] >= LEAST_SIMILARITY][:MOST_IMAGES]


def llava_rows(folder: Path) -> Iterator[tuple[str, list[dict[str, str]], list[bytes]]]:
    """(id, turns, pictures) of LLaVA's list; pictures lie below images/."""
    (path,) = folder.glob("*.json")
    for row in json.loads(path.read_text()):
        names = row.get("image", [])
        jpegs = [(folder / "images" / name).read_bytes() for name in ([names] if isinstance(names, str) else names)]
        turns = row["conversations"]
        assert [turn["from"] for turn in turns] == [("human", "gpt")[k % 2] for k in range(len(turns))]
        assert sum(turn["value"].count("<image>") for turn in turns) == len(jpegs)
        yield row["id"], turns, jpegs
