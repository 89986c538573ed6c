"""Search over photographs of Flickr8k with a real CLIP: people's captions find their pictures.

Run: VILA_DATA_SHARED=../shared pytest -m realdata -s tests/realdata/test_search_real.py
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import vila_data as vd
from vila_data.explore.search.query import Query, search
from vila_data.score.clip import ClipConfig, load_clip

pytestmark = pytest.mark.realdata

RECIPE = """
version: 1
name: photographs
seed: 1
corpora: {{flickr: {{kind: flickr8k, files: [first.csv], image_root: "{images}", part_records: 130}}}}
score: {{clip: {{backend: onnx, model: "{model}", embeddings: true}}}}
shards: {{flickr: {{corpus: flickr, view: pairs}}}}
"""


def test_captions_find_their_photographs(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run has each picture's first caption; it is asked for by the second."""
    folder = shared / "realdata" / "flickr8k"
    with (folder / "captions_en.csv").open(newline="") as stream:
        captions: dict[str, list[str]] = {}
        for row in csv.DictReader(stream):
            captions.setdefault(row["image"], []).append(row["caption"])
    with (tmp_path / "first.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "caption"), *((name, said[0]) for name, said in captions.items())])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(images=folder / "images", model=shared / "liteclip"))
    for stage in ("download", "score", "filter"):
        vd.run(recipe, tmp_path / "run", runner="local", only=stage)
    clip = load_clip(ClipConfig(backend="onnx", model=str(shared / "liteclip")))
    monkeypatch.setattr(ClipConfig, "open", lambda _: clip)
    names = list(captions)
    places = []
    for name, said in captions.items():
        hits = search(tmp_path / "run", Query(said[1], count=10)).hits
        found = [names[int(hit.record_id.rsplit("-", 1)[-1])] for hit in hits]
        places.append(found.index(name) if name in found else len(names))
    first, ten = (sum(place < within for place in places) / len(places) for within in (1, 10))
    with capsys.disabled():
        print(
            f"\n{len(names)} photographs: the second caption's own one is first in {first:.1%}, among ten in {ten:.1%}"
        )
    assert len(names) == 500 and ten >= 0.7
    (best, *_) = search(tmp_path / "run", Query(image=str(folder / "images" / names[7]), count=2)).hits
    assert best.url == names[7] or best.url.endswith(names[7])
    assert best.score > 0.998
