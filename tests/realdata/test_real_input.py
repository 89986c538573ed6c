"""The whole path on real input, once with each runner: the same bytes, and scores that tell right from wrong.

Run: VILA_DATA_SHARED=../shared pytest -m realdata -s
"""

from __future__ import annotations

import csv
import functools
import random
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vila_data as vd
from tests.faults.kills import tree
from tests.realdata import gimp_help, mistral
from vila_data.explore.inspection import check

pytestmark = pytest.mark.realdata

RECIPE = """
version: 1
name: real
seed: 3
corpora:
  gimp: {{kind: mmc4, files: [gimp.jsonl], part_records: 120}}
  flickr: {{kind: coyo, files: [flickr.parquet], part_records: 130}}
  mmc4: {{kind: mmc4, files: ["{shared}/realdata/mmc4_doc.jsonl"]}}
  coyo: {{kind: coyo, files: ["{shared}/realdata/coyo_rows.parquet"]}}
  chats: {{kind: llava, files: ["{data}/llava/multi_image_chats.json"], image_root: "{data}/llava"}}
  t0: {{kind: text, files: ["{data}/text/t0.jsonl"], part_records: 3000, system: ""}}
  talks: {{kind: text, files: ["{data}/text/sharegpt.json", "{data}/text/alpaca_zh.json"]}}
download: {{timeout_s: 20, per_host: 32, allow_private_hosts: ["{host}"]}}
score: {{clip: {{backend: onnx, model: "{shared}/liteclip", batch_size: 64}}}}
filter:
  images: {{min_side_px: 64, exact_duplicates: drop}}
  documents: {{on_missing_image: drop_image}}
  per_corpus: {{flickr: {{images: {{min_similarity: 0.2}}}}}}
shards:
  gimp: {{corpus: gimp, view: interleaved, max_mb: 8}}
  gimp_pairs: {{corpus: gimp, view: pairs, max_mb: 8}}
  flickr: {{corpus: flickr, view: pairs, max_mb: 8}}
  mmc4: {{corpus: mmc4, view: interleaved}}
  coyo: {{corpus: coyo, view: pairs}}
  chats: {{corpus: chats, view: conversations}}
  t0: {{corpus: t0, view: conversations, max_mb: 4}}
  talks: {{corpus: talks, view: conversations}}
pack: {{tokenizer: "{tokenizer}", sequence_length: 4096, tokens_per_image: 144, max_images_per_document: 6}}
blend:
  weight_unit: tokens
  on_exhaustion: renormalize
  sources:
    - weight: 4
      blend:
        weight_unit: images
        on_exhaustion: renormalize
        sources: [{{shards: gimp, weight: 4}}, {{shards: flickr, weight: 1}}]
    - {{shards: t0, weight: 3, on_exhaustion: stop}}
    - {{shards: talks, weight: 1, repeat: [1, null], on_exhaustion: repeat}}
    - {{shards: chats, weight: 0.1, repeat: [1, null], on_exhaustion: repeat}}
"""


class Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        return None


class Server(ThreadingHTTPServer):
    request_queue_size = 256


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[str]:
    root = tmp_path_factory.mktemp("web")
    (root / "gimp").symlink_to(gimp_help.HELP)
    (root / "flickr").symlink_to(shared / "realdata" / "flickr8k" / "images")
    with Server(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def write_flickr(path: Path, shared: Path, base_url: str) -> set[str]:
    """500 pictures as COYO rows, every second one with another picture's caption; the ids of the right ones."""
    with (shared / "realdata" / "flickr8k" / "captions_en.csv").open(newline="") as stream:
        captions: dict[str, str] = {}
        for row in csv.DictReader(stream):
            captions.setdefault(row["image"], row["caption"])
    names = sorted(captions)
    wrong = names[1::2]
    shifted = random.Random(0).sample(wrong, len(wrong))
    swap = {name: captions[shifted[(shifted.index(name) + 1) % len(shifted)]] for name in wrong}
    table = pa.table(
        {
            "id": list(range(len(names))),
            "url": [f"{base_url}/{name}" for name in names],
            "text": [swap.get(name, captions[name]) for name in names],
        }
    )
    pq.write_table(table, path, row_group_size=100)
    return {str(number) for number, name in enumerate(names) if name not in swap}


@pytest.fixture(scope="module")
def runs(
    web: str, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Path], vd.RunReport, set[str]]:
    folder = tmp_path_factory.mktemp("real")
    assert gimp_help.write_documents(folder / "gimp.jsonl", f"http://{web}/gimp") == 471
    right = write_flickr(folder / "flickr.parquet", shared, f"http://{web}/flickr")
    recipe = folder / "real.yaml"
    tokenizer = mistral.write_folder(folder / "mistral")
    recipe.write_text(RECIPE.format(shared=shared, data=shared / "realdata", host=web, tokenizer=tokenizer))
    outs = {runner: folder / runner for runner in ("local", "ray")}
    reports = [vd.run(recipe, out, runner=runner) for runner, out in outs.items()]
    assert reports[0].funnel == reports[1].funnel
    return outs, reports[0], right


Runs = tuple[dict[str, Path], vd.RunReport, set[str]]


def test_both_runners_give_the_same_bytes(runs: Runs) -> None:
    outs, report, _ = runs
    assert tree(outs["local"]) == tree(outs["ray"])
    assert list(check(outs["ray"])) == []
    print()
    for corpus, stages in report.funnel.items():
        print(corpus, stages)
    for name, manifest in report.sets.items():
        print(f"{name}: {len(manifest.shards)} shards, {manifest.samples} samples, {manifest.images} images")
    print("seconds (local):", report.seconds)


def test_documents_of_gimp_help_are_all_there(runs: Runs) -> None:
    _, report, _ = runs
    funnel = report.funnel["gimp"]
    assert funnel["download"]["records"] == {"kept": 471}
    assert funnel["download"]["images"] == {"kept": 1852}
    assert report.sets["gimp"].samples == funnel["filter"]["records"]["kept"] > 400
    assert report.sets["gimp"].images == report.sets["gimp_pairs"].samples


def test_similarity_separates_right_captions_from_wrong(runs: Runs) -> None:
    outs, _, right = runs
    table = pa.concat_tables(
        [pq.read_table(path) for path in sorted((outs["ray"] / "score" / "flickr" / "clip").glob("part-*.parquet"))]
    )
    assert table.num_rows == 500
    similarity = table.column("similarity").to_numpy()
    is_right = np.array([record_id in right for record_id in table.column("record_id").to_pylist()])
    ranks = similarity.argsort().argsort() + 1
    n, m = int(is_right.sum()), int((~is_right).sum())
    auc = (ranks[is_right].sum() - n * (n + 1) / 2) / (n * m)
    print(f"\nAUC {auc:.4f} over {n} right and {m} wrong captions")
    assert (n, m) == (250, 250) and auc >= 0.95


def test_links_that_fail_here_have_their_fate(runs: Runs) -> None:
    _, report, _ = runs
    for corpus, images in (("mmc4", 2), ("coyo", 7)):
        fates = report.funnel[corpus]["download"]["images"]
        assert sum(fates.values()) == images and fates["kept"] == 0
        assert report.sets[corpus].samples == 0


def test_every_kept_sample_is_a_sequence_and_the_blend_takes_each_as_asked(runs: Runs) -> None:
    _, report, _ = runs
    assert set(report.tokens) == {"gimp", "flickr", "t0", "talks", "chats"} and report.blend is not None
    for name, counts in report.tokens.items():
        without = {fate: count for fate, count in counts.items() if fate.startswith("failed:")}
        assert without == (
            {"failed:too_long": 18} if name == "t0" else {}
        )  # prompts that fill a sequence by themselves
        assert counts["sequences"] + sum(without.values()) == counts["samples"] == report.sets[name].samples > 5
    assert report.tokens["t0"]["samples"] == 8000 and report.tokens["talks"]["samples"] == 1500
    sources = {source["label"]: source for source in report.blend["sources"]}
    for source in sources.values():
        assert abs(source["target"] - source["actual"]) < 0.005, source
    assert sources["t0"]["passes"] == 1 and sources["chats"]["passes"] > 1
    packs = report.blend["packs"]
    assert packs["fill"] > 0.99
    print()
    for name, counts in report.tokens.items():
        print(name, counts)
    for name, source in sources.items():
        print(f"{name}: target {source['target']:.4f}, actual {source['actual']:.4f}, {source['passes']} passes")
    print(f"{packs['packs']} packs, fill {packs['fill']:.4f}", report.blend["sequence_length"]["best"])
    for event in report.blend["events"]:
        print(event["kind"], event["source"], event["pack"], event["followed"])
