"""The encode stage against `tokenizers` alone on the very same texts: tokens/s on one core.

    python benchmarks/encode.py                                      texts and tokenizer made here
    python benchmarks/encode.py --tokenizer DIR --texts FILE...      every line of the files is a text
    python benchmarks/encode.py --shared DIR --json benchmarks/results/encode.json
                                                                     real texts, Mistral's tokenizer

"alone" is `Tokenizer.encode_batch` of the chunks of text that the encoder tokenizes, in the same batches, with the
ids taken; that the ids are the encoder's own is asserted. "alone, without offsets" is `encode_batch_fast`, which can
tell no answer from its question. "chat" is the short conversations as a chat template writes them: Qwen3's with
--shared, else the tokenizer's own, if it has one. "encoder" goes
from decoded samples to ids and trained places; "stage" is encode_shard, from a tar to a token file and its
receipt. All four in turn, in one process on one core, each time with a tokenizer that has seen no text yet (it keeps
words that it has met), medians of the repetitions. Tokens are those of the texts, seconds those of the processor, so
that neighbours on the machine count less.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from vila_data.core.checksums import crc32c
from vila_data.core.layout import shard_stem
from vila_data.core.records import ImageRef, Record
from vila_data.core.samples import KeptImage, SampleContent, View, decode_sample, encode_sample
from vila_data.core.store import Store
from vila_data.core.tarcodec import TarWriter
from vila_data.encode.chat_answers import Unwritable
from vila_data.encode.config import PackConfig
from vila_data.encode.part import EncodeJob, encode_shard
from vila_data.encode.samples import as_encoded, chunk_sample, encode_samples
from vila_data.encode.tokenizer import TextTokenizer, load_tokenizer
from vila_data.encode.tokenizer_files import read_tokenizer_files

REPO = Path(__file__).resolve().parents[1]
SEED = 17
BATCH = 512
LEAST = 0.70
LEAST_OF_CHAT = 0.40  # half of the time is the template's
Value = dict[str, Any]


@dataclass(frozen=True)
class Stream:
    """Samples as JSON and decoded, and the chunks of their texts by batches of BATCH samples.

    given: the same chunks, with the space that the tokenizer is given in front of a sequence's first text.
    """

    values: list[Value]
    contents: list[SampleContent]
    chunks: list[list[str]]
    given: list[list[str]]


def sample_json(view: View, record: Record, places: Sequence[int]) -> Value:
    """The JSON of a record's sample with an image before each text of `places`."""
    record = replace(record, images=tuple(ImageRef("") for _ in places))
    images = [KeptImage(number, place, 0.3, "", 336, 336, b"") for number, place in enumerate(sorted(places))]
    value: Value = json.loads(encode_sample(view, "key", "corpus", record, images)[0][1])
    return value


def document(texts: Sequence[str], images: Sequence[int]) -> Value:
    """A document with an image before each sentence of `images`."""
    return sample_json("interleaved", Record("row", "document", tuple(texts), ()), images)


def talk(question: str, answer: str) -> Value:
    record = Record("row", "conversation", (question, answer), (), roles=("human", "gpt"))
    return sample_json("conversations", record, ())


def pair(caption: str) -> Value:
    return sample_json("pairs", Record("row", "pair", (caption,), ()), (0,))


def made_texts(count: int) -> list[str]:
    """Sentences of made words, of which few are common and many are rare."""
    rng = np.random.default_rng(SEED)
    syllables = ["ba", "co", "di", "fu", "ge", "ha", "li", "mo", "nu", "pe", "ra", "si", "to", "vu", "za", "st", "en"]
    words = ["".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(20_000)]
    common = 1 / np.arange(1, len(words) + 1)
    picks = rng.choice(words, (count, 20), p=common / common.sum())
    return [" ".join(row[: rng.integers(6, 21)]).capitalize() + "." for row in picks]


def from_texts(texts: list[str]) -> dict[str, list[Value]]:
    """Streams of lines: 24 a document with 6 images, one a pair, 12 a question and 2 its answer."""
    documents = [texts[at : at + 24] for at in range(0, len(texts), 24)]
    talks = [texts[at : at + 14] for at in range(0, len(texts), 14)]
    return {
        "conversations": [talk(" ".join(lines[:-2]), " ".join(lines[-2:])) for lines in talks if len(lines) > 2],
        "documents": [document(lines, range(min(6, len(lines)))) for lines in documents],  # type: ignore[arg-type]
        "pairs": [pair(line) for line in texts],
    }


def from_shared(shared: Path) -> dict[str, list[Value]]:
    """T0's prompts, short conversations, the documents of gimp-help, and the web's alt texts."""
    sys.path[:0] = [str(REPO)]
    from tests.realdata import real_samples

    return {
        "conversations": list(real_samples.t0(shared)),
        "short conversations": [
            *real_samples.llava(shared),
            *real_samples.sharegpt(shared),
            *real_samples.alpaca(shared, "en"),
            *real_samples.alpaca(shared, "zh"),
        ],
        "documents": real_samples.gimp_help(),
        "pairs": [*real_samples.alt_texts(shared), *real_samples.captions(shared)],
    }


def chat_tokenizer(folder: Path) -> str:
    """Mistral's tokenizer with Qwen3's chat template, out of the trl wheel, and its special tokens."""
    from tests.encode.chat_templates import published
    from tests.realdata import mistral

    with_tokens = Tokenizer.from_str(json.dumps(read_tokenizer_files(mistral.write_folder(folder)).rules))
    with_tokens.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    with_tokens.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(published()["qwen3"])
    return str(folder)


def made_tokenizer(texts: list[str], folder: Path) -> str:
    """A byte-level BPE of 8,000 pieces, trained on the texts."""
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=8_000, initial_alphabet=letters, show_progress=False)
    learnt.train_from_iterator(texts, trainer)
    learnt.add_special_tokens(["<s>", "</s>"])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=learnt, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return str(folder)


def stream_of(values: list[Value], config: PackConfig, tokenizer: TextTokenizer) -> Stream:
    contents = [decode_sample(json.dumps(value).encode(), "benchmark") for value in values]

    def texts_of(one: SampleContent) -> list[str]:
        try:
            chunked = chunk_sample(as_encoded(one), config, tokenizer)
        except Unwritable:
            return []
        return [chunk.text for chunk in chunked.chunks if chunk.text]

    front = " " if read_tokenizer_files(config.tokenizer).prefix == "first" else ""
    batches = [contents[first : first + BATCH] for first in range(0, len(values), BATCH)]
    chunks = [[text for one in batch for text in texts_of(one)] for batch in batches]
    given = [[text if tokenizer.special_at(text, 0) else front + text for text in texts] for texts in chunks]
    return Stream(values, contents, chunks, given)


def write_shard(store: Store, name: str, values: list[Value]) -> None:
    """The samples' JSON, without images, and the columns of the index that encoding reads."""
    rows = []
    with store.scratch() as scratch:
        with (scratch / "tar").open("wb") as file:
            tar = TarWriter(file)
            for number, value in enumerate(values):
                data = json.dumps(value).encode()
                key = f"{number:07d}"
                placed = tar.add(f"{key}.json", data)
                images = 1 if "caption" in value else len(value["image_info"])
                members = [placed.name, *(f"{key}.{image}.jpg" for image in range(images))]  # images named, not written
                row = {"key": key, "record_id": key, "members": members, "crc32c": [crc32c(data), *[0] * images]}
                row |= {"offsets": [placed.offset, *[0] * images], "sizes": [placed.size, *[0] * images]}
                rows.append(row | {"widths": [336] * images, "heights": [336] * images})
            tar.finish()
        pq.write_table(pa.Table.from_pylist(rows), scratch / "index")
        store.commit_file(scratch / "tar", f"{shard_stem(name, 0)}.tar")
        store.commit_file(scratch / "index", f"{shard_stem(name, 0)}.parquet")


def encode_all(contents: list[SampleContent], config: PackConfig, tokenizer: TextTokenizer) -> int:
    ids = 0
    for first in range(0, len(contents), BATCH):
        samples = [as_encoded(one) for one in contents[first : first + BATCH]]
        ids += sum(len(sequence.ids) for sequence in encode_samples(samples, config, tokenizer))
    return ids


def fresh(name: str) -> TextTokenizer:
    return TextTokenizer(name, read_tokenizer_files(name))


def alone(name: str, method: str, stream: Stream) -> Callable[[], int]:
    """Work of `tokenizers` alone; ids in all."""
    encode = getattr(bare(name), method)

    def work() -> int:
        batches = (encode(texts, add_special_tokens=False) for texts in stream.given)
        return sum(len(encoding.ids) for batch in batches for encoding in batch)

    return work


def bare(name: str) -> Tokenizer:
    """The tokenizer of a directory, by the rules that encoding reads there.

    transformers reads others, which give some texts other ids.
    """
    rules = read_tokenizer_files(name).rules
    return Tokenizer.from_str(json.dumps(rules | dict.fromkeys(("padding", "truncation", "post_processor"))))


def assert_same_ids(name: str, stream: Stream) -> None:
    """Assert that `tokenizers` alone gives the ids that the encoder's tokenizer gives."""
    ours, alone = fresh(name), bare(name)
    for texts, given in zip(stream.chunks, stream.given, strict=True):
        found = [encoding.ids for encoding in alone.encode_batch_fast(given, add_special_tokens=False)]
        assert found == ours.encode_ids(texts), "alone must do the encoder's work"


def measure(stream: Stream, config: PackConfig, repeats: int) -> dict[str, Any]:
    """Tokens/s of each way, and the encoder's and the stage's share of `tokenizers` alone."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        write_shard(store, "set", stream.values)
        job = EncodeJob("set", 0, "tokenizer", "encoding", "inputs")

        def encoder() -> Callable[[], int]:
            tokenizer = fresh(config.tokenizer)
            return lambda: encode_all(stream.contents, config, tokenizer)

        def stage() -> Callable[[], dict[str, int]]:
            tokenizer = fresh(config.tokenizer)
            return lambda: encode_shard(store, job, config, tokenizer).counts

        ways: dict[str, Callable[[], Callable[[], Any]]] = {
            "alone": lambda: alone(config.tokenizer, "encode_batch", stream),
            "alone_without_offsets": lambda: alone(config.tokenizer, "encode_batch_fast", stream),
            "encoder": encoder,
            "stage": stage,
        }
        assert_same_ids(config.tokenizer, stream)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        tokens, counts = ways["alone"]()(), ways["stage"]()()
        for _ in range(repeats):
            for way, make in ways.items():
                work = make()
                start = time.process_time()
                work()
                seconds[way].append(time.process_time() - start)
    rates = {way: tokens / statistics.median(found) for way, found in seconds.items()}
    shares = [one / other for one, other in zip(seconds["alone"], seconds["encoder"], strict=True)]
    return {
        "samples": len(stream.values),
        "text_tokens": tokens,
        "samples_cut": counts["samples_cut"],
        **{f"{way}_tokens_per_s": round(rate) for way, rate in rates.items()},
        **{f"{way}_share_of_alone": round(rates[way] / rates["alone"], 3) for way in ("encoder", "stage")},
        "encoder_share_of_alone_worst": round(min(shares), 3),
        "encoder_share_of_alone_without_offsets": round(rates["encoder"] / rates["alone_without_offsets"], 3),
    }


def is_too_slow(results: dict[str, dict[str, Any]]) -> bool:
    """Whether an encoder's share is below its floor; says which."""
    least = dict.fromkeys(results, LEAST) | {"chat": LEAST_OF_CHAT}
    slow = [stream for stream, result in results.items() if result["encoder_share_of_alone"] < least[stream]]
    for stream in slow:
        print(f"{stream}: below {least[stream]:.0%} of tokenizers alone", file=sys.stderr)
    return bool(slow)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokenizer", help="folder or hub id; without it one is trained on the texts")
    parser.add_argument("--texts", nargs="+", type=Path, help="files of which every line is a text")
    parser.add_argument("--shared", type=Path, help="folder of real data; needs mistral-common, or --tokenizer")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where results go, beside those of other conditions")
    options = parser.parse_args()
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as folder:
        if options.shared:
            streams, texts = (
                from_shared(options.shared),
                "T0; LLaVA, ShareGPT, Alpaca; gimp-help; alt texts and Flickr8k captions",
            )
            from tests.realdata import mistral

            if options.tokenizer is None and mistral.model_file() is None:
                sys.exit(f"benchmarks/encode.py: no tokenizer: name one by --tokenizer, or {mistral.NEEDS}")
            name = options.tokenizer or mistral.write_folder(Path(folder) / "mistral-v1")
            chat = options.tokenizer or chat_tokenizer(Path(folder) / "mistral-v1-qwen3")
        else:
            files = [line for path in options.texts or () for line in path.read_text().splitlines() if line.strip()]
            lines = files or made_texts(60_000)
            streams, texts = from_texts(lines), "lines of files" if files else "made"
            name = options.tokenizer or made_tokenizer(lines, Path(folder) / "trained-here")
            chat = name
        config = PackConfig(tokenizer=name, sequence_length=4096, tokens_per_image=576, max_images_per_document=6)
        tokenizer = load_tokenizer(name)
        configs = dict.fromkeys(streams, config)
        if load_tokenizer(chat).templates:
            configs["chat"] = config.model_copy(update={"tokenizer": chat, "template": "chat"})
            streams["chat"] = streams.get("short conversations", streams["conversations"])
        conditions = {
            "texts": texts,
            "tokenizer": f"{Path(name).name}, {tokenizer.vocabulary_size} pieces",
            "sequence_length": config.sequence_length,
            "tokens_per_image": config.tokens_per_image,
            "batch": BATCH,
            "repeats": options.repeats,
            "cores": 1,
            "load_average_before": load,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "tokenizers": tokenizers.__version__,
            "transformers": transformers.__version__,
        }
        results = {
            stream: measure(
                stream_of(streams[stream], config, load_tokenizer(config.tokenizer)), config, options.repeats
            )
            for stream, config in configs.items()
        }
    print(json.dumps({"conditions": conditions, **results}, indent=1))
    if options.json:
        found = json.loads(options.json.read_text()) if options.json.exists() else {}
        found[texts] = {"conditions": conditions, **results}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(is_too_slow(results))


if __name__ == "__main__":
    raise SystemExit(main())
