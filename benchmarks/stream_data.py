"""The samples of benchmarks/stream.py: one run, and the same samples in each peer's best format.

Pictures are photographs or textures, cropped, to shorter side 336 at quality 88 to 92 as the download stage stores
them; no two have the same bytes. Sets, each in several shards:

    docs    documents of 1 to 5 images          pairs   one image with a caption
    chat    conversations of 0 to 2 images      text    conversations without images

Shards, indexes, token files and manifests are written by the project's own stages. Beside them, under peers/:

    parquet/<set>-*.parquet   key, json and images of each sample, for HF datasets
    energon/<set>/            the shards, linked, with metadata that has Energon give members as they are
    tokens/<blend>/           tars whose samples hold token ids and labels as int32 bytes, and their images: what
                              Megatron-Energon has least to do with; with .nv-meta and .tar.idx
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "benchmarks")]

from download import texture  # noqa: E402

from tests.made_run import CHAT_RULES, Item, filtered_parts, make_set  # noqa: E402
from vila_data.core.records import ImageRef, Record  # noqa: E402
from vila_data.core.store import Store  # noqa: E402
from vila_data.core.tarcodec import TarWriter  # noqa: E402
from vila_data.encode.config import PackConfig  # noqa: E402
from vila_data.encode.tokenizer import load_tokenizer  # noqa: E402
from vila_data.encode.tokens import TokenSet, open_tokens  # noqa: E402
from vila_data.recipe.lock import lock_value, write_lock  # noqa: E402
from vila_data.recipe.recipe import load_recipe  # noqa: E402
from vila_data.runs.set_stages import encode_sets  # noqa: E402
from vila_data.shard.config import ShardSet  # noqa: E402
from vila_data.shard.manifest import Manifest, tar_index, write_metadata  # noqa: E402
from vila_data.shard.read import open_shards  # noqa: E402

VERSION = 6  # of what is written, so that a folder of another version is not taken
SEED = 17
SIDE = 336
TEXTURES, CROPS = 64, 4
PART = 2_000
SAMPLES = {"docs": 1200, "pairs": 2400, "chat": 800, "text": 6000}
SHARD_BYTES = {"docs": 24 << 20, "pairs": 14 << 20, "chat": 12 << 20, "text": 4 << 20}
SETS = {
    "docs": ShardSet(corpus="web", view="interleaved"),
    "pairs": ShardSet(corpus="alt", view="pairs"),
    "chat": ShardSet(corpus="talk", view="conversations"),
    "text": ShardSet(corpus="flan", view="conversations"),
}
BLENDS = {"pairs": ("pairs",), "mixed": ("docs", "pairs", "chat"), "text": ("text",), "all": tuple(SETS)}
"""Recipes: <folder>/<blend>.yaml, every sample of the sets once an epoch."""
PARQUET_ROWS = 64  # a row group; a few MB
WORDS = (
    *("a", "the", "red", "blue", "small", "dog", "cat", "child", "water", "tree", "runs", "near", "two", "old", "and"),
    *("of", "is", "picture", "table", "what", "colour", "large", "green", "square", "circle", "left", "right", "there"),
)


def made_run(
    folder: Path, photos: Path | None, samples: Mapping[str, int] = SAMPLES, peers: bool = True
) -> dict[str, Any]:
    """The run in `folder`, made unless it is there, with or without the peers' formats; gives what is recorded of it."""
    pictures = "photographs" if photos else "synthetic textures"
    wanted = {"version": VERSION, "pictures": pictures, "samples": dict(samples), "peers": peers}
    record = folder / "made.json"
    if record.exists():
        found: dict[str, Any] = json.loads(record.read_text())
        if {key: found[key] for key in wanted} == wanted:
            return found
        raise SystemExit(f"{folder}: holds other samples ({found}); remove it or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(str(folder))
    manifests = write_sets(store, Pictures(photos), samples)
    config = pack_config()
    encode_all(store, config, manifests)
    for blend, names in BLENDS.items():
        (folder / f"{blend}.yaml").write_text(recipe_text(blend, names, samples))
    recipe = load_recipe(folder / "mixed.yaml", find_corpora=False)
    write_lock(store, lock_value(recipe, None, {}, {}, {}))
    for name in SETS if peers else ():
        write_parquet(folder, name)
        link_for_energon(folder, name)
    for blend in ("mixed", "text") if peers else ():
        write_token_tars(folder, blend, BLENDS[blend], config)
    sets = {
        name: {"samples": one.samples, "images": one.images, "bytes": one.bytes, "shards": len(one.shards)}
        for name, one in manifests.items()
    }
    found = {**wanted, "sets": sets}
    record.write_text(json.dumps(found, indent=1))
    return found


def pack_config(tokens_per_image: int = 576) -> PackConfig:
    tokenizer = str(REPO / "shards/sample/tokenizer")
    return PackConfig(
        tokenizer=tokenizer, sequence_length=4096, tokens_per_image=tokens_per_image, max_images_per_document=6
    )


def recipe_text(blend: str, names: tuple[str, ...], samples: Mapping[str, int]) -> str:
    """A recipe that streams these sets; its corpora stand for those that the parts were made of."""
    meta = REPO / "shards/sample/meta"
    lines = [
        "# Written by benchmarks/stream_data.py; only `pack` and `blend` are used.",
        "version: 1",
        f"name: {blend}",
        f"seed: {SEED}",
        "corpora:",
        f'  web: {{kind: mmc4, files: ["{meta}/docs_shard_*.jsonl*"]}}',
        f'  alt: {{kind: coyo, files: ["{meta}/coyo-sample-*.parquet"]}}',
        f'  talk: {{kind: llava, files: ["{meta}/chat.json"], image_root: "{REPO}/shards/sample/site"}}',
        f'  flan: {{kind: text, files: ["{meta}/instructions.jsonl"]}}',
        "shards:",
        *(f"  {name}: {{corpus: {one.corpus}, view: {one.view}}}" for name, one in SETS.items()),
        f"pack: {json.dumps(pack_config().model_dump(mode='json', exclude_none=True))}",
        "blend:",
        "  weight_unit: samples",
        "  on_exhaustion: renormalize",
        "  sources:",
        *(f"    - {{shards: {name}, weight: {samples[name]}}}" for name in names),
    ]
    return "\n".join(lines) + "\n"


# pictures and records


class Pictures:
    """JPEGs one after the other, all of other bytes."""

    def __init__(self, photos: Path | None) -> None:
        files = sorted(path for path in photos.iterdir() if path.suffix == ".jpg") if photos else []
        self._crops = [self._crop(pixels, at) for pixels in pixels_of(files) for at in range(CROPS)]
        self._given = 0

    @staticmethod
    def _crop(pixels: Any, at: int) -> bytes:
        """A crop of 94% at one of the corners, its shorter side made SIDE where it is longer."""
        height, width = pixels.shape[0] * 15 // 16, pixels.shape[1] * 15 // 16
        top, left = (pixels.shape[0] - height) * (at & 1), (pixels.shape[1] - width) * (at >> 1)
        cut = pixels[top : top + height, left : left + width]
        ratio = min(height, width) / SIDE
        if ratio > 1:
            cut = cv2.resize(cut, (int(width / ratio), int(height / ratio)), interpolation=cv2.INTER_AREA)
        jpeg: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(cut), 88 + at, "RGB", "420")
        return jpeg

    def next(self) -> bytes:
        """The next picture: with a comment of its own, so that its bytes are."""
        comment = b"%012d" % self._given
        data = self._crops[self._given * 7 % len(self._crops)]
        self._given += 1
        return data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]


def pixels_of(files: list[Path]) -> Iterator[Any]:
    if not files:
        for seed in range(TEXTURES):
            yield texture(seed, 500, 375)[:, :, ::-1]
    for file in files:
        yield simplejpeg.decode_jpeg(file.read_bytes(), "RGB")


def sentence(random: np.random.Generator, least: int, most: int) -> str:
    return " ".join(random.choice(WORDS, random.integers(least, most + 1))).capitalize() + "."


def items(name: str, count: int, pictures: Pictures) -> Iterator[Item]:
    """Records of a set with their JPEGs."""
    random = np.random.default_rng([SEED, *name.encode()])
    for number in range(count):
        record_id = f"{name}-{number:06d}"
        if name == "docs":
            images = 1 + number % 5
            texts = tuple(sentence(random, 8, 24) for _ in range(images + 3))
            refs = tuple(ImageRef(f"https://pictures.test/{record_id}/{i}.jpg", i, 0.3) for i in range(images))
            record = Record(record_id, "document", texts, refs, f"https://pages.test/{record_id}")
        elif name == "pairs":
            refs = (ImageRef(f"https://pictures.test/{record_id}.jpg", 0, 0.3),)
            record = Record(record_id, "pair", (sentence(random, 6, 18),), refs)
        else:
            images = number % 3 if name == "chat" else 0
            turns = tuple(sentence(random, 10, 60) for _ in range(4))
            refs = tuple(ImageRef(f"pictures/{record_id}-{i}.jpg", 0) for i in range(images))
            texts = ("<image>\n" * images + turns[0], *turns[1:])
            record = Record(record_id, "conversation", texts, refs, roles=("human", "gpt") * 2)
        jpegs = tuple(pictures.next() for _ in record.images)
        yield Item(record, jpegs, (None if record.kind == "conversation" else 0.3,) * len(jpegs))


def write_sets(store: Store, pictures: Pictures, samples: Mapping[str, int]) -> dict[str, Manifest]:
    manifests = {}
    for name, config in SETS.items():
        made = list(items(name, samples[name], pictures))
        talk = config.view == "conversations"
        parts = filtered_parts(store, config.corpus, made, PART, scored=not talk, rules=CHAT_RULES if talk else None)
        manifests[name] = make_set(store, parts, name, config, seed=SEED, max_bytes=SHARD_BYTES[name])
        if manifests[name].samples != len(made):
            raise SystemExit(f"set {name}: {manifests[name].samples} samples of {len(made)} records")
    return manifests


def encode_all(store: Store, config: PackConfig, manifests: dict[str, Manifest]) -> None:
    encode_sets(store, config, manifests.values())


# the peers' formats


def write_parquet(folder: Path, name: str) -> None:
    """A set's shards as Parquet: JPEGs as they are, uncompressed, row groups of a few MB."""
    out = folder / "peers/parquet"
    out.mkdir(parents=True, exist_ok=True)
    schema = pa.schema({"key": pa.string(), "json": pa.binary(), "images": pa.list_(pa.binary())})
    reader = open_shards(folder / "shards" / name)
    rows: list[dict[str, Any]] = []
    shard = ""
    for sample in [*reader, None]:
        if sample is None or sample.shard != shard:
            if rows:
                table = pa.Table.from_pylist(rows, schema=schema)
                target = out / f"{shard.removesuffix('.tar')}.parquet"
                pq.write_table(table, target, row_group_size=PARQUET_ROWS, compression="none", use_dictionary=False)
            rows = []
        if sample is not None:
            shard = sample.shard
            images = [data for suffix, data in sample.members.items() if suffix.endswith("jpg")]
            rows.append({"key": sample.key, "json": sample.members["json"], "images": images})


def link_for_energon(folder: Path, name: str) -> None:
    """A set's tars under metadata that has Megatron-Energon give members as they are."""
    out = folder / "peers/energon" / name
    out.mkdir(parents=True, exist_ok=True)
    manifest = open_shards(folder / "shards" / name).manifest
    for shard in manifest.shards:
        for path in (shard.name, f"{shard.name}.idx"):
            (out / path).hardlink_to(folder / "shards" / name / path)
    shards = [(shard.name, shard.samples) for shard in manifest.shards]
    write_metadata(Store(str(out)), "", "conversations", shards)


def write_token_tars(folder: Path, blend: str, names: tuple[str, ...], config: PackConfig) -> None:
    """A blend's samples, shuffled, as tars of <key>.ids, <key>.labels and the images that the tokens show."""
    out = folder / "peers/tokens" / blend
    out.mkdir(parents=True, exist_ok=True)
    store, tokenizer = Store(str(folder)), load_tokenizer(config.tokenizer)
    places: list[tuple[str, int, int, int]] = []
    sets: dict[str, TokenSet] = {}
    readers = {}
    for name in names:
        sets[name] = open_tokens(store, name, config, tokenizer)
        readers[name] = open_shards(folder / "shards" / name)
        number = 0
        for shard, facts in enumerate(readers[name].manifest.shards):
            for row in range(facts.samples):
                places.append((name, shard, row, number))
                number += 1
    np.random.default_rng(SEED).shuffle(places)  # type: ignore[arg-type]
    shards: list[tuple[str, int]] = []
    size = -(-len(places) // 16)
    for first in range(0, len(places), size):
        chosen = [(str(name), int(shard), int(row), int(n)) for name, shard, row, n in places[first : first + size]]
        tar_name = f"{blend}-{len(shards):06d}.tar"
        starts = []
        with open(out / tar_name, "wb") as stream:
            tar = TarWriter(stream)
            for name, shard, row, number in chosen:
                tokens = sets[name].sample(shard, row)
                sample = readers[name][number]
                if not tokens.tokens:
                    continue
                starts.append(tar.position)
                tar.add(f"{tokens.key}.ids", tokens.ids.astype(np.int32).tobytes())
                tar.add(f"{tokens.key}.labels", tokens.labels.astype(np.int32).tobytes())
                for place, image in enumerate(tokens.images.tolist()):
                    suffix = "jpg" if "jpg" in sample.members else f"{image}.jpg"
                    tar.add(f"{tokens.key}.{place}.jpg", sample.members[suffix])
            tar.finish()
        (out / f"{tar_name}.idx").write_bytes(tar_index(starts, (out / tar_name).stat().st_size - 1024))
        shards.append((tar_name, len(starts)))
    write_metadata(Store(str(out)), "", "conversations", shards)


def digest(folder: Path) -> str:
    """sha256 of the manifests, hex: which samples were measured."""
    hashed = hashlib.sha256()
    for name in SETS:
        hashed.update((folder / "shards" / name / "manifest.json").read_bytes())
    return hashed.hexdigest()
