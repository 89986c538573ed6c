"""Encode samples as token sequences of at most the recipe's length.

The fidelity modes cut where VILA does: at the limit, before and after images are expanded
(docs/sources.md). `improved` ends a document after a whole sentence and a conversation after a
whole answer; only a first sentence or answer that is too long by itself is cut inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import itemgetter

from vila_data.core.samples import SampleContent
from vila_data.encode.chat_answers import Unwritable
from vila_data.encode.config import PackConfig
from vila_data.encode.released_conversation import as_released, count_conversations
from vila_data.encode.sequence import (
    IMAGE_ID,
    NO_TEXT,
    TOO_LONG,
    TOO_MANY_IMAGES,
    ChunkedSample,
    Document,
    TokenizedSample,
    TokenSequence,
    chunk_conversation,
    chunk_document,
    nothing,
    tokenize,
    tokenized_chunks,
)
from vila_data.encode.templates import IMAGE, Conversation, Sides
from vila_data.encode.tokenizer import TextTokenizer

Sample = Document | Conversation


def as_encoded(sample: SampleContent, sides: Sides | None = None) -> Sample:
    """Convert a stored sample to what the encoder reads. sides: (width, height) of each of its images in pixels, if not those of its JSON."""
    sides = sample.sides if sides is None else sides
    return Conversation.of(sample, sides) if sample.view == "conversations" else Document.of(sample, sides)


def encode_samples(samples: Sequence[Sample], config: PackConfig, tokenizer: TextTokenizer) -> Iterator[TokenSequence]:
    """Yield the token sequence of each sample, in order."""
    released = config.faithful and config.template != "chat"
    given = (
        [as_released(sample, config) if isinstance(sample, Conversation) else sample for sample in samples]
        if released
        else samples
    )
    counted = _counted(given, config, tokenizer)
    chunked_samples = [
        None if at in counted else _chunks_or_fate(sample, config, tokenizer) for at, sample in enumerate(given)
    ]
    tokenized = tokenize([chunked for chunked in chunked_samples if isinstance(chunked, ChunkedSample)], tokenizer)
    for at, (original, sample, chunked) in enumerate(zip(samples, given, chunked_samples, strict=True)):
        if isinstance(chunked, TokenSequence):
            yield chunked
            continue
        if chunked is None:
            whole = counted[at]
        else:
            chunks = next(tokenized)
            whole = assemble(chunks, sample, config, tokenizer)
        if not config.faithful:
            yield _fitted(sample, chunks, whole, config, tokenizer)
            continue
        if isinstance(original, Conversation):
            whole = whole._replace(left_out=original.images - len(whole.images))
        yield cut_as_released(_without_unknown(whole, config, tokenizer), config)


def _counted(samples: Sequence[Sample], config: PackConfig, tokenizer: TextTokenizer) -> dict[int, TokenSequence]:
    """Sequences of the conversations that VILA labels by counting tokens, by their place."""
    if config.semantics != "released_code" or config.template not in ("vicuna_v1", "llama_2"):
        return {}
    places = [at for at, sample in enumerate(samples) if isinstance(sample, Conversation)]
    found = count_conversations([samples[at] for at in places], config, tokenizer)  # type: ignore[misc]
    sequences = {}
    for at, one in zip(places, found, strict=True):
        images = tuple(range(one.images))
        tokens = len(one.ids) - one.images + sum(columns_of(samples[at], images, config))
        sequences[at] = TokenSequence(one.ids, one.trained, images, tokens)
    return sequences


def columns_of(sample: Sample, images: Sequence[int], config: PackConfig) -> list[int]:
    """Tokens of each of these images of a sample.

    Raises:
        DataError: a size that the policy needs is not known.
    """
    sides = [sample.sides[image] if image < len(sample.sides) else (0, 0) for image in images]
    return config.images.counts([width for width, _ in sides], [height for _, height in sides])


def _without_unknown(whole: TokenSequence, config: PackConfig, tokenizer: TextTokenizer) -> TokenSequence:
    """VILA pads with the unknown token, so its model does not see one that is in a text."""
    if tokenizer.unk_id is None or tokenizer.unk_id not in whole.ids or config.template == "chat":
        return whole
    before = [0, *accumulate(token != tokenizer.unk_id for token in whole.ids)]
    ids = [token for token in whole.ids if token != tokenizer.unk_id]
    trained = [(before[first], before[last]) for first, last in whole.trained if before[first] < before[last]]
    return whole._replace(ids=ids, trained=trained, tokens=whole.tokens - len(whole.ids) + len(ids))


def _chunks_or_fate(sample: Sample, config: PackConfig, tokenizer: TextTokenizer) -> ChunkedSample | TokenSequence:
    try:
        return chunk_sample(sample, config, tokenizer)
    except Unwritable as error:
        images = sample.images if isinstance(sample, Conversation) else len(sample.order)
        return nothing(error.reason, images, 0, str(error))


def chunk_sample(sample: Sample, config: PackConfig, tokenizer: TextTokenizer) -> ChunkedSample:
    """A sample as chunks of text and images."""
    if isinstance(sample, Document):
        return chunk_document(sample, config, tokenizer)
    return chunk_conversation(sample, config, tokenizer)


def assemble(tokenized: TokenizedSample, sample: Sample, config: PackConfig, tokenizer: TextTokenizer) -> TokenSequence:
    """The whole sequence, whatever its length."""
    _, images, bos, bos_trained, eos, left_out, _ = tokenized.chunked
    ids: list[int] = []
    trained: list[tuple[int, int]] = []
    if bos and tokenizer.bos_id is not None:
        ids.append(tokenizer.bos_id)
        if bos_trained:
            trained.append((0, 1))
    for number, (chunk, places) in enumerate(tokenized.chunks):
        if number:
            ids.append(IMAGE_ID)
        start = len(ids)
        for first, last in places:
            _add(trained, start + first, start + last)
        ids += chunk
    if eos:
        _add(trained, len(ids), len(ids) + 1)
        ids.append(tokenizer.eos_id)
    if not config.faithful and trained and trained[0][0] == 0:
        trained[:1] = [(1, trained[0][1])] if trained[0][1] > 1 else []
    tokens = len(ids)
    if images:
        tokens += sum(columns_of(sample, images, config)) - len(images)
    return TokenSequence(ids, trained, images, tokens, left_out)


def _add(trained: list[tuple[int, int]], first: int, last: int) -> None:
    """Append a place, to the last one if they touch."""
    if trained and trained[-1][1] == first:
        trained[-1] = (trained[-1][0], last)
    else:
        trained.append((first, last))


def cut_as_released(whole: TokenSequence, config: PackConfig) -> TokenSequence:
    """Cut at the limit before images are expanded and again after; an image of which one token is left stays."""
    assert config.tokens_per_image is not None, "the fidelity modes have no other policy"
    limit = config.sequence_length
    stop = min(len(whole.ids), limit)
    tokens = 0
    for at in range(stop):
        if tokens >= limit:
            stop = at
            break
        tokens += config.tokens_per_image if whole.ids[at] == IMAGE_ID else 1
    return _prefix(whole, stop, min(tokens, limit))


def _prefix(whole: TokenSequence, stop: int, tokens: int) -> TokenSequence:
    """The first `stop` ids."""
    images = whole.images[: whole.ids[:stop].count(IMAGE_ID)]
    trained = [(first, min(last, stop)) for first, last in whole.trained if first < stop]
    left_out = whole.left_out + len(whole.images) - len(images)
    return TokenSequence(whole.ids[:stop], trained, images, tokens, left_out, whole.tokens - tokens)


def _fitted(
    sample: Sample, tokenized: TokenizedSample, whole: TokenSequence, config: PackConfig, tokenizer: TextTokenizer
) -> TokenSequence:
    if not _says_something(tokenized, whole):
        return nothing(NO_TEXT, whole.left_out + len(whole.images), 0)
    if _fits(whole, config):
        return whole
    shorter = _longest(sample, tokenized, whole, config, tokenizer)
    if shorter is None:
        return _first_words(whole, sample, config, tokenizer)
    left_out = whole.left_out + len(whole.images) - len(shorter.images)
    return shorter._replace(left_out=left_out, cut=whole.tokens - shorter.tokens)


def _says_something(tokenized: TokenizedSample, sequence: TokenSequence) -> bool:
    return tokenized.chunked.has_text and bool(sequence.trained) and any(map(itemgetter(0), tokenized.chunks))


def _fits(sequence: TokenSequence, config: PackConfig) -> bool:
    most = config.max_images_per_pack
    return sequence.tokens <= config.sequence_length and (most is None or len(sequence.images) <= most)


def _longest(
    sample: Sample, tokenized: TokenizedSample, whole: TokenSequence, config: PackConfig, tokenizer: TextTokenizer
) -> TokenSequence | None:
    """The most whole sentences or answers from the front that fit with something to train; None if not one does.

    The first guess is by characters; from there it steps down or up, further each time, until it can halve what
    is left. Each try is a sample of its own, encoded as any other; chunks that were tokenized before are known.
    """
    ends, guess = _ends(sample, whole, config)
    known = dict(zip(tokenized.chunked.chunks, tokenized.chunks, strict=True))

    def attempt(at: int) -> TokenSequence:
        chunked = _chunks_or_fate(sample.first(ends[at]), config, tokenizer)
        if isinstance(chunked, TokenSequence):
            return chunked
        new = [chunk for chunk in chunked.chunks if chunk not in known]
        known.update(zip(new, tokenized_chunks(new, tokenizer), strict=True))
        head = TokenizedSample(chunked, [known[chunk] for chunk in chunked.chunks])
        sequence = assemble(head, sample, config, tokenizer)
        return sequence if _says_something(head, sequence) else nothing(NO_TEXT, 0, 0)

    best = None
    low, high, at, step = -1, len(ends) - 1, guess, 1  # what ends at `high` does not fit, what ends at `low` does
    while high - low > 1:
        tried = attempt(at)
        if _fits(tried, config):
            best, low, at = tried, at, at + step
        else:
            high, at = at, at - step
        step *= 2
        if not low < at < high:
            at = (low + high) // 2
    return best if best is not None and best.trained else None


def _ends(sample: Sample, whole: TokenSequence, config: PackConfig) -> tuple[list[int], int]:
    """Where a sample may end, as counts of its entries or turns, and which of them is expected to fit last."""
    if isinstance(sample, Document):
        chars = [len(entry) if isinstance(entry, str) else 0 for entry in sample.entries]
        images = [int(entry in whole.images) for entry in sample.entries]
        ends = [at + 1 for at, entry in enumerate(sample.entries) if isinstance(entry, str)]
    else:
        chars = [len(text) for _, text in sample.turns]
        images = [text.count(IMAGE) if sample.images else 0 for _, text in sample.turns]
        ends = sample.ends()
    columns = sum(columns_of(sample, whole.images, config))
    an_image = columns / max(1, len(whole.images))
    a_char = (whole.tokens - columns) / max(1, sum(chars))
    totals = list(accumulate(count * a_char + shown * an_image for count, shown in zip(chars, images, strict=True)))
    guess = sum(totals[end - 1] <= config.sequence_length for end in ends) - 1
    return ends, max(0, min(guess, len(ends) - 2))


def _first_words(whole: TokenSequence, sample: Sample, config: PackConfig, tokenizer: TextTokenizer) -> TokenSequence:
    """A sample whose first sentence or answer is too long, cut inside it; a document keeps its end token."""
    is_document = isinstance(sample, Document)
    columns = columns_of(sample, whole.images, config)
    room = config.sequence_length - is_document
    most = len(whole.images) if config.max_images_per_pack is None else config.max_images_per_pack
    stop = tokens = images = 0
    for at, token in enumerate(whole.ids):
        tokens += columns[images] if token == IMAGE_ID else 1
        images += token == IMAGE_ID
        if tokens > room or images > most:
            break
        if token != IMAGE_ID:
            stop = at + 1
    kept = whole.ids[:stop].count(IMAGE_ID)
    short = _prefix(whole, stop, stop - kept + sum(columns[:kept]))
    trained_ids = [token for first, last in short.trained for token in short.ids[first:last]]
    if not tokenizer.decode(trained_ids).strip():
        fate = TOO_MANY_IMAGES if images > most else TOO_LONG
        return nothing(fate, whole.left_out + len(whole.images), whole.tokens)
    if not is_document:
        return short
    end = len(short.ids)
    trained = list(short.trained)
    _add(trained, end, end + 1)
    return short._replace(
        ids=[*short.ids, tokenizer.eos_id], trained=trained, tokens=short.tokens + 1, cut=short.cut - 1
    )
