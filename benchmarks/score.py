"""The score stage against the same model alone: pairs/s, the share of time that the model waits, peak memory.

    python benchmarks/score.py --json benchmarks/results/score.json
    python benchmarks/score.py --clip DIR --photos DIR
    python benchmarks/score.py --backend transformers --random-vit-b-32 --pairs 100 --records
    python benchmarks/score.py --backend transformers --random-vit-l-336      (on a GPU)

"alone" feeds the same model the same pictures, decoded and preprocessed beforehand and held in memory: what a
pipeline that never keeps its model waiting would reach where decoding has cores of its own. On a CPU it has not:
decoding and model share the cores, and "bound" is the rate at which all cores do nothing but these two. A model
that costs less than decoding, as the sample's does, must wait there. All are measured in turn, in one process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vila_data.core.cpus import cpu_count
from vila_data.core.images import decode_rgb
from vila_data.core.layout import Part, record_key
from vila_data.core.receipts import committing
from vila_data.core.records import ImageRef, Record, record_to_json
from vila_data.core.store import Store
from vila_data.core.tables import DOWNLOAD_IMAGES, DOWNLOAD_RECORDS
from vila_data.core.tarcodec import TarWriter
from vila_data.score.clip import Clip, ClipConfig, load_clip
from vila_data.score.part import score_part
from vila_data.score.reading import FeedStats
from vila_data.score.scorer import Task

SAMPLE = Path(__file__).resolve().parent.parent / "shards/sample/clip"
WORDS = ("a", "the", "red", "blue", "small", "dog", "cat", "child", "water", "tree", "runs", "near", "two", "old")


def pictures(folder: Path | None, count: int) -> Iterator[bytes]:
    """`count` JPEGs of distinct bytes: photos of a folder, or drawn, each with a comment of its own."""
    found = [path.read_bytes() for path in sorted(folder.glob("*.jp*g"))] if folder else [drawn(i) for i in range(64)]
    for number in range(count):
        comment = b"%012d" % number
        data = found[number % len(found)]
        yield data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]


def drawn(seed: int) -> bytes:
    """A noisy picture of 448 x 336, the size at which photos are stored by default; about 50 kB, as a photo."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((448, 336), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (336, 448, 3))
    stream = BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def caption(number: int) -> str:
    rng = np.random.default_rng(number)
    return " ".join(rng.choice(WORDS, 12)) + f" {number}"


def write_part(store: Store, folder: Path | None, count: int) -> Part:
    """A part of `count` pairs, as the download stage leaves it."""
    part = Part("pairs", 0, "bench", "bench", 0, count, count, "bench")
    images, records = [], []
    with committing(store, part.receipt("download"), "bench") as outputs:
        with open(outputs.path(part.images_tar()), "wb") as stream:
            tar = TarWriter(stream)
            for row, data in enumerate(pictures(folder, count)):
                name, key, start = f"bench:{row}", record_key("pairs", 0, row), tar.position
                record = Record(name, "pair", (caption(row),), (ImageRef(f"http://bench.test/{row}.jpg"),))
                content = record_to_json(record)
                tar.add(f"{key}.json", content)
                offset = tar.add(f"{key}.0.jpg", data).offset
                size, sha = tar.position - start, hashlib.sha256(data).hexdigest()
                images.append(
                    {"row": row, "record_id": name, "image_index": 0, "url": "", "status": "ok", "sha256": sha}
                    | {"bytes": len(data), "offset": offset}
                )
                records.append(
                    {"row": row, "record_id": name, "status": "ok", "n_images": 1, "n_texts": 1, "text_chars": 0}
                    | {"json_bytes": len(content), "offset": start, "size": size}
                )
            tar.finish()
        for path, schema, rows in (
            (part.images_table(), DOWNLOAD_IMAGES, images),
            (part.records_table(), DOWNLOAD_RECORDS, records),
        ):
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), outputs.path(path))
    return part


SHAPES: dict[str, dict[str, Any]] = {
    "random-vit-l-336": {
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        "side": 336,
        "patch": 14,
        "dim": 768,
    },
    "random-vit-b-32": {
        "text": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8},
        "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        "side": 224,
        "patch": 32,
        "dim": 512,
    },
}
"""OpenAI's two: clip-vit-large-patch14-336 and clip-vit-base-patch32."""


def write_random(name: str, folder: Path) -> Path:
    """A transformers folder with the shape of one of SHAPES and random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<bos>", "<eos>"]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ends = [("<bos>", len(tokens) - 2), ("<eos>", len(tokens) - 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    ids = {"bos_token_id": ends[0][1], "eos_token_id": ends[1][1], "pad_token_id": ends[1][1]}
    shape = SHAPES[name]
    side = shape["side"]
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**shape["text"], "vocab_size": 49408, "max_position_embeddings": 77, **ids},
            vision_config={**shape["vision"], "image_size": side, "patch_size": shape["patch"]},
            projection_dim=shape["dim"],
        )
    )
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>", model_max_length=77
    ).save_pretrained(folder)
    value = {
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(value))
    return folder


def alone(clip: Clip, pixels: list[Any], texts: list[str]) -> float:
    """Seconds of the model on inputs that lie ready, in the batches that the pipeline uses."""
    begun, batch = time.perf_counter(), clip.batch_size
    for at in range(0, len(pixels), batch):
        clip.embed_images(pixels[at : at + batch])
        clip.embed_texts(texts[at : at + batch])
    return time.perf_counter() - begun


def decoding(clip: Clip, jpegs: list[bytes]) -> float:
    """Seconds of decoding and preprocessing with all cores."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(cpu_count()) as pool:
        for _ in pool.map(lambda data: clip.prepare(decode_rgb(data, 2 * clip.image_side)), jpegs):
            pass
    return time.perf_counter() - begun


def speed(config: ClipConfig, photos: Path | None, pairs: int, repeats: int) -> dict[str, Any]:
    clip = load_clip(config)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        part = write_part(store, photos, pairs)
        jpegs = list(pictures(photos, min(pairs, 256)))
        held = [clip.prepare(decode_rgb(data, 2 * clip.image_side)) for data in jpegs]
        pixels = [held[number % len(held)] for number in range(pairs)]
        texts = [caption(number) for number in range(pairs)]
        clip.embed_images(held[: clip.batch_size])
        score_part(Task(store, part, "clip", config, clip.fingerprint, np.arange(pairs) < 1, "warm"), clip)
        rows = [one_round(clip, config, store, part, pixels, texts, jpegs) for _ in range(repeats)]
    found = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    shares = {
        "pipeline_share_of_bound": found["pipeline_pairs_per_s"] / found["bound_pairs_per_s"],
        "pipeline_share_of_model_alone": found["pipeline_pairs_per_s"] / found["model_alone_pairs_per_s"],
        "model_waits_for_input_share_worst": max(row["model_waits_for_input_share"] for row in rows),
    }
    rounded = {name: round(value, 4) for name, value in (found | shares).items()}
    return {"pairs": pairs, "repeats": repeats, **rounded}


def one_round(
    clip: Clip, config: ClipConfig, store: Store, part: Part, pixels: list[Any], texts: list[str], jpegs: list[bytes]
) -> dict[str, float]:
    stats = FeedStats()
    begun, used = time.perf_counter(), time.process_time()
    score_part(Task(store, part, "clip", config, clip.fingerprint, None, "bench"), clip, stats=stats)
    task, cpu = time.perf_counter() - begun, time.process_time() - used
    model, decode = alone(clip, pixels, texts) / len(pixels), decoding(clip, jpegs) / len(jpegs)
    return {
        "pipeline_pairs_per_s": len(pixels) / task,
        "model_alone_pairs_per_s": 1 / model,
        "decoding_alone_images_per_s": 1 / decode,
        "bound_pairs_per_s": 1 / (model + decode) if on_cpu(config) else 1 / max(model, decode),
        "model_waits_for_input_share": stats.waiting_share,
        "model_busy_share": stats.model / task,
        "cpu_busy_share": cpu / task / cpu_count(),
    }


def on_cpu(config: ClipConfig) -> bool:
    if config.backend == "onnx":
        return True
    import torch

    return not torch.cuda.is_available()


def memory(arguments: list[str], counts: list[int]) -> dict[str, float]:
    """Peak resident MiB of a process that scores one part of so many records."""
    found = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            for step in ("write", "score"):
                command = [sys.executable, __file__, *arguments, "--task", step, folder, str(count)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[str(count)] = round(float(done.stdout) / 1024, 1)
    return found


def run_task(config: ClipConfig, photos: Path | None, step: str, folder: str, count: int) -> None:
    """One step of `memory`, in a process of its own: writing the part must not count."""
    store = Store(folder)
    if step == "write":
        write_part(store, photos, count)
        return
    part = Part("pairs", 0, "bench", "bench", 0, count, count, "bench")
    clip = load_clip(config)
    score_part(Task(store, part, "clip", config, clip.fingerprint, None, "bench"), clip)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def conditions(config: ClipConfig, photos: Path | None) -> dict[str, Any]:
    import transformers

    facts = {
        "model": "sample-clip" if Path(config.model) == SAMPLE else Path(config.model).name,
        "backend": config.backend,
        "batch_size": config.batch_size,
        "pictures": f"{len(list(photos.glob('*.jp*g')))} photos" if photos else "drawn, 448 x 336",
        "cpus": cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 1),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "transformers": transformers.__version__,
    }
    if config.backend == "onnx":
        import onnxruntime

        return facts | {"onnxruntime": onnxruntime.__version__, "device": "cpu"}
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return facts | {"torch": torch.__version__, "device": device}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["onnx", "transformers"], default="onnx")
    parser.add_argument("--clip", type=Path, default=SAMPLE, help="model folder; default: the sample's")
    parser.add_argument("--photos", type=Path, help="folder of JPEGs; default: drawn pictures")
    for shape in SHAPES:
        parser.add_argument(f"--{shape}", dest="random", action="store_const", const=shape, help="random weights")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--records", type=int, nargs="*", default=[1_000, 10_000], help="part sizes for peak memory")
    parser.add_argument("--json", type=Path, help="add the result to this file, under its model and device")
    parser.add_argument("--task", nargs=3, metavar=("STEP", "FOLDER", "COUNT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        model = write_random(args.random, Path(folder, args.random)) if args.random else args.clip
        config = ClipConfig(backend=args.backend, model=str(model), batch_size=args.batch_size)
        if args.task:
            run_task(config, args.photos, args.task[0], args.task[1], int(args.task[2]))
            return
        result: dict[str, Any] = {"conditions": conditions(config, args.photos)}
        result |= speed(config, args.photos, args.pairs, args.repeats)
        given = ["--backend", args.backend, "--clip", str(model), "--batch-size", str(args.batch_size)]
        given += ["--photos", str(args.photos)] if args.photos else []
        result["peak_memory_mib_by_records"] = memory(given, args.records)
    print(json.dumps(result, indent=1))
    if args.json:
        kept = json.loads(args.json.read_text()) if args.json.exists() else {}
        device = "gpu" if not on_cpu(config) else "cpu"
        kept[f"{result['conditions']['model']} on {device}"] = result
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
