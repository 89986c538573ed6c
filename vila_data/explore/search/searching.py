"""`vila-data search`: a text or a picture, and the images of a run that are most like it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.core.layout import score_stage
from vila_data.core.store import Store
from vila_data.explore.search import index
from vila_data.explore.search.exact import Slice, blocks, search_exact
from vila_data.explore.search.hits import Hit, Kept, hits_of
from vila_data.explore.search.query import check_model, image_vector, text_vector
from vila_data.explore.search.ranking import Ranking
from vila_data.explore.search.vectors import EmbeddedPart, Kind, find_parts
from vila_data.runs.progress import NoProgress, Progress
from vila_data.runs.run import Run, open_run
from vila_data.score.scorer import Scorer

Fate = Literal["any", "kept"]

MANY_ROWS: Final = 1_000_000
"""From so many vectors on, an exact search says that an index would be quicker."""


@dataclass(frozen=True)
class Question:
    """What is looked for: exactly one of `text` and `image`, the path of a picture.

    kind:    search the pictures, or their captions.
    corpora: names; none means all that have embeddings.
    fate:    "kept" finds only what the filter keeps.
    exact:   use no index.
    model:   the folder in which the run's model lies now; None: where the recipe says.
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
            raise UsageError('search: give either a text ("a red bicycle") or a picture (--image FILE)')
        if self.text is not None and not self.text.strip():
            raise UsageError("search: the text is empty: say what to look for, or give a picture with --image")
        if self.text is not None and any("\ud800" <= letter <= "\udfff" for letter in self.text):
            raise UsageError("search: the text is not Unicode: give it in UTF-8")
        if self.count < 1:
            raise UsageError(f"search: --count {self.count}: give 1 or more")


@dataclass(frozen=True)
class Searched:
    """How a corpus was searched: `indexed` of its `vectors` through an index, the others one by one."""

    corpus: str
    vectors: int
    indexed: int


@dataclass(frozen=True)
class SearchReport:
    """The answer, best first; `notes`: what the user may want to know about the index, a sentence each."""

    question: Question
    hits: tuple[Hit, ...]
    searched: tuple[Searched, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values, scores to 6 digits; hits have a rank, counted from 1."""
        question = self.question
        hits = [
            {"rank": rank, **asdict(hit), "score": round(hit.score, 6), "similarity": round(hit.similarity, 6)}
            for rank, hit in enumerate(self.hits, 1)
        ]
        return {
            "query": {"text": question.text, "image": question.image, "in": question.kind, "fate": question.fate},
            "searched": [asdict(entry) for entry in self.searched],
            "notes": list(self.notes),
            "hits": hits,
        }


@dataclass(frozen=True)
class Built:
    """A corpus's index after `build_index`; segments: 0 where the corpus is small enough to go without."""

    corpus: str
    vectors: int
    segments: int
    made: int
    bytes: int


def kind_of(name: str) -> Kind:
    """What `--in` names.

    Raises:
        UsageError: nothing that can be searched.
    """
    kinds: tuple[Kind, ...] = ("images", "captions")
    for kind in kinds:
        if kind == name:
            return kind
    raise UsageError(f"search: --in {name}: give images or captions")


def fate_of(name: str) -> Fate:
    """What `--fate` names.

    Raises:
        UsageError: neither any nor kept.
    """
    fates: tuple[Fate, ...] = ("any", "kept")
    for fate in fates:
        if fate == name:
            return fate
    raise UsageError(f"search: --fate {name}: give any or kept")


def search(run: str | os.PathLike[str] | Run, question: Question, watch: Progress | None = None) -> SearchReport:
    """The images of a run that are most like a text or a picture.

    Through the indexes that are there and of these vectors; what has none is searched exactly. Scores and their order
    are exact either way.

    Raises:
        UsageError: no run, no embeddings, another model, a corpus or picture that is not there.
        DataError: files of the run do not fit together.
    """
    run = open_run(run)
    run.store.clear_scratch()
    scorer = _embedding_scorer(run)
    found = _corpora(run, scorer, question.corpora, question.kind)
    query_D = _vector(run, scorer, question)
    store = run.store
    parts = [part for entry in found.values() for part in entry]
    for part in parts:
        if part.dim != len(query_D):
            raise DataError(
                f"{store.location(part.path)}: vectors of {part.dim} values, the model gives {len(query_D)}; "
                "the embeddings are of another model: score this run again"
            )
    searcher = _Searcher(store, parts, query_D, question, watch or NoProgress())
    ranking = searcher.rank(found)
    hits = tuple(hits_of(store, parts, ranking))
    return SearchReport(question, hits, tuple(searcher.searched), tuple(searcher.notes))


def build_index(
    run: str | os.PathLike[str] | Run, kind: Kind = "images", corpora: Sequence[str] = (), watch: Progress | None = None
) -> list[Built]:
    """Make the index of every corpus that is large enough; segments that are there and fresh are passed over.

    Raises:
        UsageError: no run, no embeddings, faiss is not installed.
    """
    if not index.has_faiss():
        raise UsageError('search: an index needs faiss: pip install "vila-data[search]"')
    run, watch = open_run(run), watch or NoProgress()
    store = run.store
    store.clear_scratch()
    result = []
    for corpus, parts in _corpora(run, _embedding_scorer(run), tuple(corpora), kind).items():
        rows = sum(part.rows for part in parts)
        segments = _segments(list(enumerate(parts)), kind)
        missing = [segment for segment in segments if not index.is_built(store, segment)]
        steps = [sum(1 for _ in blocks(segment.slices)) for segment in missing]
        name = f"index of {corpus}"
        if missing:
            watch.stage(name, sum(steps), 0)
        for segment in missing:
            index.build_segment(store, segment, lambda count, name=name: watch.advance(name, count))  # type: ignore[misc]
        wanted = {path for segment in segments for path in (segment.path, segment.receipt)}
        for path in set(store.files(index.index_folder(corpus, kind))) - wanted:
            store.remove(path)
        size = sum(store.size(segment.path) or 0 for segment in segments)
        result.append(Built(corpus, rows, len(segments), len(missing), size))
    return result


def preview_hits(run: str | os.PathLike[str] | Run, report: SearchReport, out: str) -> Any:
    """Write a page that shows the found records, in order, each with its score; the preview's own report."""
    from vila_data.explore.preview import Choice, Listed, preview

    listed = tuple(
        Listed(hit.corpus, hit.record_id, hit.image_index, f"{rank}. score {hit.score:.4f}")
        for rank, hit in enumerate(report.hits, 1)
    )
    question = report.question
    what = f"“{question.text}”" if question.text is not None else os.path.basename(str(question.image))
    choice = Choice(
        count=len(listed), order="listed", listed=listed, heading=f"{question.kind.capitalize()} like {what}"
    )
    return preview(open_run(run), out, choice)


class _Searcher:
    """One search: which segments go through an index, and what is said of it."""

    def __init__(
        self, store: Store, parts: list[EmbeddedPart], query_D: NDArray[np.float32], question: Question, watch: Progress
    ) -> None:
        self._store = store
        self._parts = parts
        self._query_D = query_D
        self._question = question
        self._watch = watch
        self._allowed = Kept(store).of if question.fate == "kept" else None
        self.searched: list[Searched] = []
        self.notes: list[str] = []

    def rank(self, corpora: dict[str, list[EmbeddedPart]]) -> Ranking:
        """The best rows over all corpora; groups are places among the parts."""
        indexed: list[index.Segment] = []
        plain: list[Slice] = []
        first = 0
        for corpus, parts in corpora.items():
            numbered = list(enumerate(parts, first))
            first += len(parts)
            through = self._fresh(corpus, numbered)
            inside = {segment.path for segment in through}
            rest = _segments(numbered, self._question.kind) or index.plan_segments(numbered, self._question.kind)
            plain += [piece for segment in rest if segment.path not in inside for piece in segment.slices]
            indexed += through
            rows, quick = sum(part.rows for part in parts), sum(segment.rows for segment in through)
            self.searched.append(Searched(corpus, rows, quick))
        ranking = Ranking(self._query_D, self._question.count)
        for segment in indexed:
            index.search_segment(self._store, segment, ranking, self._allowed)
        self._exact(plain, ranking)
        if indexed and len(ranking.scores) < self._question.count:  # the cells held too few that are allowed
            ranking = Ranking(self._query_D, self._question.count)
            self._exact([Slice(group, part, 0, part.rows) for group, part in enumerate(self._parts)], ranking)
            self.searched = [Searched(entry.corpus, entry.vectors, 0) for entry in self.searched]
        return ranking

    def _fresh(self, corpus: str, numbered: list[tuple[int, EmbeddedPart]]) -> list[index.Segment]:
        """The segments of a corpus whose index can be used; a note says why one cannot, or that one would help."""
        if self._question.exact:
            return []
        segments = _segments(numbered, self._question.kind)
        built = [segment for segment in segments if index.is_built(self._store, segment)]
        rows = sum(part.rows for _, part in numbered)
        if built and not index.has_faiss():
            self.notes.append(f'{corpus}: its index needs faiss (pip install "vila-data[search]"): searched exactly')
            return []
        if len(built) < len(segments) and self._store.files(index.index_folder(corpus, self._question.kind)):
            lacking = sum(segment.rows for segment in segments if segment not in built)
            self.notes.append(
                f"{corpus}: the index of {lacking:,} vectors is missing or of other vectors, and was not used: "
                "--build-index makes it anew"
            )
        elif not built and rows >= MANY_ROWS:
            self.notes.append(f"{corpus}: {rows:,} vectors were read one by one; --build-index makes searches quick")
        return built

    def _exact(self, slices: Sequence[Slice], ranking: Ranking) -> None:
        advance: Callable[[int], None] | None = None
        if sum(piece.stop - piece.start for piece in slices) >= MANY_ROWS:
            self._watch.stage("search", sum(1 for _ in blocks(slices)), 0)
            advance = lambda count: self._watch.advance("search", count)  # noqa: E731
        search_exact(self._store, slices, ranking, self._allowed, advance)


def _segments(numbered: Sequence[tuple[int, EmbeddedPart]], kind: Kind) -> list[index.Segment]:
    """The segments of a corpus's index; none for a corpus that goes without."""
    rows = sum(part.rows for _, part in numbered)
    return index.plan_segments(numbered, kind) if rows >= index.LEAST_ROWS else []


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
            f"{run.url}: has no embeddings: set score.clip.embeddings: true in its recipe and run it again"
        )
    return found


def _corpora(run: Run, scorer: str, asked: Iterable[str], kind: Kind) -> dict[str, list[EmbeddedPart]]:
    """The parts with embeddings of each corpus that is searched, by name.

    Raises:
        UsageError: an unknown corpus, or one without embeddings; or none has any.
    """
    recipe, names = run.recipe, sorted(set(asked))
    unknown = [name for name in names if name not in recipe.corpora]
    if unknown:
        known = ", ".join(sorted(recipe.corpora))
        raise UsageError(f"search: --corpus {unknown[0]}: the run has no such corpus; it has {known}")
    found = {
        name: find_parts(run.store, run.committed(score_stage(scorer), name), scorer, kind)
        for name in names or sorted(run.recipe.corpora)
    }
    empty = [name for name, parts in found.items() if not parts]
    if names and empty:
        raise UsageError(
            f"search: --corpus {empty[0]}: has no embeddings: none of its images is scored, or the run has not come "
            "to them yet"
        )
    if len(empty) == len(found):
        raise UsageError(f"{run.url}: no image has an embedding: none was scored, or the run has not come to them yet")
    return {name: parts for name, parts in found.items() if parts}


def _vector(run: Run, scorer: str, question: Question) -> NDArray[np.float32]:
    """The query's vector, [D] of unit length."""
    config: Scorer = run.recipe.score[scorer]
    if question.model is not None:
        config = config.model_copy(update={"model": question.model, "revision": None})
    check_model(config, run.scorer_fingerprints.get(scorer))
    clip = config.open()
    if question.text is not None:
        return text_vector(clip, question.text)
    assert question.image is not None
    return image_vector(clip, question.image, run.recipe.download)
