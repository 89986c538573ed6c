"""Search a run for images by a text or an example image.

A corpus with an up-to-date index is searched through it, the others exactly. Scores and their order are exact
either way.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any, Final, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.core.images import ImageError, decode_rgb, normalize_image
from vila_data.core.layout import score_stage
from vila_data.core.store import Store
from vila_data.download.config import DownloadConfig
from vila_data.explore.preview import Choice, ListedRecord, PreviewReport, preview
from vila_data.explore.search import index
from vila_data.explore.search.exact import Allowed, EmbeddedPart, Kind, Ranking, Slice, blocks, find_parts, search_exact
from vila_data.explore.search.hits import Hit, hits_of, kept_rows
from vila_data.runs.progress import NoProgress, Progress
from vila_data.runs.run import Run, open_run
from vila_data.score.clip import Clip
from vila_data.score.scorer import Scorer

Fate = Literal["any", "kept"]

MANY_ROWS: Final = 1_000_000
"""For this many vectors, an exact search shows its progress and suggests an index."""
_MASKS: Final = 4
"""Parts whose kept rows are in memory."""


@dataclass(frozen=True)
class Query:
    """What to search for: exactly one of `text` and `image`, the path or URL of an image file.

    kind:    search the images, or their captions.
    corpora: names; none means all that have embeddings.
    fate:    "kept" finds only what the filter keeps.
    exact:   use no index.
    model:   path of the run's model; None: the path in the recipe.
    """

    text: str | None = None
    image: str | None = None
    kind: Kind = "images"
    corpora: tuple[str, ...] = ()
    count: int = 20
    fate: Fate = "any"
    exact: bool = False
    model: str | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise UsageError('search: pass either a query text ("a red bicycle") or an image (--image FILE)')
        if self.text is not None and not self.text.strip():
            raise UsageError("search: the query text is empty; pass a text, or an image with --image")
        if self.text is not None and any("\ud800" <= letter <= "\udfff" for letter in self.text):
            raise UsageError("search: the query text is not valid Unicode; pass it in UTF-8")
        if self.count < 1:
            raise UsageError(f"search: --count must be at least 1, found {self.count}")


@dataclass(frozen=True)
class Searched:
    """How a corpus was searched: `indexed` of its `vectors` through an index, the others one by one."""

    corpus: str
    vectors: int
    indexed: int


@dataclass(frozen=True)
class SearchReport:
    """The results, best first. notes: sentences for the user about the index."""

    query: Query
    hits: tuple[Hit, ...]
    searched: tuple[Searched, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values, scores rounded to 6 digits. Hits have a rank, counted from 1."""
        query = self.query
        hits = [
            {"rank": rank, **asdict(hit), "score": round(hit.score, 6), "similarity": round(hit.similarity, 6)}
            for rank, hit in enumerate(self.hits, 1)
        ]
        return {
            "query": {"text": query.text, "image": query.image, "in": query.kind, "fate": query.fate},
            "searched": [asdict(entry) for entry in self.searched],
            "notes": list(self.notes),
            "hits": hits,
        }


@dataclass(frozen=True)
class CorpusIndex:
    """A corpus's index after `build_index`. segments: 0 if the corpus is small enough to go without; made: newly built."""

    corpus: str
    vectors: int
    segments: int
    made: int
    bytes: int


def kind_of(name: str) -> Kind:
    """The value of `--in`.

    Raises:
        UsageError: it is not a kind of embeddings.
    """
    if name not in get_args(Kind):
        raise UsageError(f"search: --in must be images or captions, found {name}")
    return cast(Kind, name)


def fate_of(name: str) -> Fate:
    """The value of `--fate`.

    Raises:
        UsageError: it is neither any nor kept.
    """
    if name not in get_args(Fate):
        raise UsageError(f"search: --fate must be any or kept, found {name}")
    return cast(Fate, name)


def search(run: str | os.PathLike[str] | Run, query: Query, watch: Progress | None = None) -> SearchReport:
    """The images of a run that are most similar to a text or an image.

    Raises:
        UsageError: no run, no embeddings, another model, or a corpus or image that does not exist.
        DataError: files of the run do not match each other.
    """
    run, watch = open_run(run), watch or NoProgress()
    store = run.store
    store.clear_scratch()
    scorer = _embedding_scorer(run)
    corpora = _corpora(run, scorer, query.corpora, query.kind)
    query_D = _query_vector(run, scorer, query)
    parts = [part for entry in corpora.values() for part in entry]
    for part in parts:
        if part.dim != len(query_D):
            raise DataError(
                f"{store.location(part.path)}: found vectors of length {part.dim}, but the model's have length "
                f"{len(query_D)}; the embeddings are from another model: score this run again"
            )
    segments: list[index.Segment] = []
    slices: list[Slice] = []  # for the exact search
    searched, notes = [], []
    first = 0
    for corpus, own in corpora.items():
        planned = index.plan_segments(list(enumerate(own, first)), query.kind)
        first += len(own)
        usable, note = ([], "") if query.exact else _usable_segments(store, corpus, planned, query.kind)
        segments += usable
        paths = {segment.path for segment in usable}
        slices += [piece for segment in planned if segment.path not in paths for piece in segment.slices]
        searched.append(Searched(corpus, sum(part.rows for part in own), sum(segment.rows for segment in usable)))
        notes += [note] if note else []
    allowed = lru_cache(maxsize=_MASKS)(partial(kept_rows, store)) if query.fate == "kept" else None
    ranking = Ranking(query_D, query.count)
    for segment in segments:
        index.search_segment(store, segment, ranking, allowed)
    _search_exact(store, slices, ranking, allowed, watch)
    if segments and len(ranking.scores) < query.count:  # the cells that were read have too few allowed rows
        ranking = Ranking(query_D, query.count)
        everything = [Slice(group, part, 0, part.rows) for group, part in enumerate(parts)]
        _search_exact(store, everything, ranking, allowed, watch)
        searched = [Searched(entry.corpus, entry.vectors, 0) for entry in searched]
    return SearchReport(query, tuple(hits_of(store, parts, ranking)), tuple(searched), tuple(notes))


def build_index(
    run: str | os.PathLike[str] | Run, kind: Kind = "images", corpora: Sequence[str] = (), watch: Progress | None = None
) -> list[CorpusIndex]:
    """Build the index of every corpus that is large enough. Segments that are up to date are skipped.

    Raises:
        UsageError: no run, no embeddings, or faiss is not installed.
    """
    if not index.has_faiss():
        raise UsageError('search: an index needs faiss: pip install "vila-data[search]"')
    run, watch = open_run(run), watch or NoProgress()
    store = run.store
    store.clear_scratch()
    result = []
    for corpus, parts in _corpora(run, _embedding_scorer(run), corpora, kind).items():
        rows = sum(part.rows for part in parts)
        segments = index.plan_segments(list(enumerate(parts)), kind) if rows >= index.LEAST_ROWS else []
        missing = [segment for segment in segments if not index.is_built(store, segment)]
        stage = f"index of {corpus}"
        if missing:
            watch.stage(stage, sum(1 for segment in missing for _ in blocks(segment.slices)), 0)
        for segment in missing:
            index.build_segment(store, segment, partial(watch.advance, stage))
        current = {path for segment in segments for path in (segment.path, segment.receipt)}
        for path in set(store.files(index.index_directory(corpus, kind))) - current:
            store.remove(path)
        size = sum(store.size(segment.path) or 0 for segment in segments)
        result.append(CorpusIndex(corpus, rows, len(segments), len(missing), size))
    return result


def preview_hits(run: str | os.PathLike[str] | Run, report: SearchReport, out: str) -> PreviewReport:
    """Write a preview page of the found records in order, each with its score."""
    listed = tuple(
        ListedRecord(hit.corpus, hit.record_id, hit.image_index, f"{rank}. score {hit.score:.4f}")
        for rank, hit in enumerate(report.hits, 1)
    )
    query = report.query
    what = f"“{query.text}”" if query.text is not None else os.path.basename(str(query.image))
    heading = f"{query.kind.capitalize()} like {what}"
    return preview(open_run(run), out, Choice(count=len(listed), order="listed", listed=listed, heading=heading))


def _usable_segments(
    store: Store, corpus: str, segments: Sequence[index.Segment], kind: Kind
) -> tuple[list[index.Segment], str]:
    """The segments of a corpus whose index can be used, and why others cannot or that an index would help ("": neither)."""
    rows = sum(segment.rows for segment in segments)
    if rows < index.LEAST_ROWS:
        segments = []
    built = [segment for segment in segments if index.is_built(store, segment)]
    if built and not index.has_faiss():
        return [], f'{corpus}: searched exactly, because its index needs faiss (pip install "vila-data[search]")'
    if len(built) < len(segments) and store.files(index.index_directory(corpus, kind)):
        missing = sum(segment.rows for segment in segments if segment not in built)
        return built, (
            f"{corpus}: the index for {missing:,} vectors is missing or out of date and was not used; rebuild it with "
            "--build-index"
        )
    if not built and rows >= MANY_ROWS:
        return [], f"{corpus}: compared all {rows:,} vectors; --build-index makes later searches fast"
    return built, ""


def _search_exact(
    store: Store, slices: Sequence[Slice], ranking: Ranking, allowed: Allowed | None, watch: Progress
) -> None:
    show = sum(piece.stop - piece.start for piece in slices) >= MANY_ROWS
    if show:
        watch.stage("search", sum(1 for _ in blocks(slices)), 0)
    search_exact(store, slices, ranking, allowed, partial(watch.advance, "search") if show else None)


def _embedding_scorer(run: Run) -> str:
    """The scorer whose embeddings are searched: that of similarities, else the first that has some.

    Raises:
        UsageError: none has.
    """
    first = run.similarity
    names = sorted(run.recipe.score, key=lambda name: name != first)
    found = next((name for name in names if getattr(run.recipe.score[name], "embeddings", False)), None)
    if found is None:
        raise UsageError(
            f"{run.url}: has no embeddings; set score.clip.embeddings: true in its recipe and run it again"
        )
    return found


def _corpora(run: Run, scorer: str, names: Iterable[str], kind: Kind) -> dict[str, list[EmbeddedPart]]:
    """The parts with embeddings of each corpus that is searched, by name; all corpora that have some if `names` is empty.

    Raises:
        UsageError: an unknown corpus, or one without embeddings; or none has any.
    """
    names, known = sorted(set(names)), sorted(run.recipe.corpora)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"search: --corpus {unknown[0]}: no such corpus; the run has {', '.join(known)}")
    found = {
        name: find_parts(run.store, run.committed(score_stage(scorer), name), scorer, kind) for name in names or known
    }
    empty = [name for name, parts in found.items() if not parts]
    why = "none of its images were scored, or the run has not reached that stage"
    if names and empty:
        raise UsageError(f"search: --corpus {empty[0]}: has no embeddings: {why}")
    if len(empty) == len(found):
        raise UsageError(f"{run.url}: has no embeddings: {why}")
    return {name: parts for name, parts in found.items() if parts}


def _query_vector(run: Run, scorer: str, query: Query) -> NDArray[np.float32]:
    """[D] of unit length.

    Raises:
        UsageError: the model does not exist, or is not the one that made the run's embeddings; so for the image.
    """
    config: Scorer = run.recipe.score[scorer]
    if query.model is not None:
        config = config.model_copy(update={"model": query.model, "revision": None})
    try:
        found = config.fingerprint()
    except UsageError as error:
        raise UsageError(f"{error}; if the model has moved, pass its new path with --model") from error
    expected = run.scorer_fingerprints.get(scorer)
    if found != expected:
        raise UsageError(
            f"{getattr(config, 'model', config.kind)} ({found}) is not the model that made the run's embeddings "
            f"({expected}), so scores would be meaningless; pass that model with --model"
        )
    clip = config.open()
    if query.text is not None:
        vector_D: NDArray[np.float32] = clip.embed_texts([query.text])[0]
        return vector_D
    assert query.image is not None
    return _image_vector(clip, query.image, run.recipe.download)


def _image_vector(clip: Clip, path: str, download: DownloadConfig) -> NDArray[np.float32]:
    """[D] of unit length, of an image file or fsspec URL, normalized as `download` would store it.

    Raises:
        UsageError: it does not exist, or cannot be decoded.
        StorageError: it cannot be read.
    """
    directory, _, name = path.rpartition("/")
    store = Store(directory or ("/" if path.startswith("/") else "."))
    if not name or not store.exists(name):
        raise UsageError(f"--image {path}: no such file")
    resize = download.resize
    try:
        stored = normalize_image(
            store.read(name),
            max_pixels=download.max_pixels,
            shorter_side_px=resize.shorter_side_px if resize else None,
            only_if_larger=resize.only_if_larger if resize else True,
            jpeg_quality=resize.jpeg_quality if resize else 90,
        )
        pixels_CHW = clip.prepare(decode_rgb(stored.jpeg, 2 * clip.image_side))
    except ImageError as error:
        raise UsageError(f"--image {path}: cannot be decoded as an image: {error}") from error
    vector_D: NDArray[np.float32] = clip.embed_images([pixels_CHW])[0]
    return vector_D
