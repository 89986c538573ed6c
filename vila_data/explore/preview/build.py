"""`preview`: write one page of records of a run, a shard set or a shard."""

from __future__ import annotations

import os
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from vila_data.core.errors import DataError, StorageError, UsageError
from vila_data.core.store import Store
from vila_data.explore.preview.records import FATES, CorpusCounts, PreviewPack, PreviewPage, PreviewRecord, Source
from vila_data.explore.preview.render import PageBudget, PageCounts, render_page
from vila_data.explore.preview.run_source import RunSource
from vila_data.explore.preview.select import Choice, Selection, select
from vila_data.explore.preview.shard_source import SetSource, TarSource
from vila_data.explore.recipe_text import shown_message
from vila_data.explore.thumbnail import data_uri
from vila_data.runs.progress import NoProgress, Progress
from vila_data.runs.run import Run, kind_of, open_run

PAGE_BYTES: Final = 15_000_000
_PAGE_RECORDS: Final = 200
"""So many records take so many bytes at most; where there are more, each takes its share."""
PAGE_BUDGETS: Final = (PageBudget(360, 76), PageBudget(240, 66), PageBudget(96, 44, images=8, text_bytes=3_000))
"""The first one whose page fits is used. With the last one, every page fits."""
_SAMPLED: Final = 16
"""Images made small to estimate the size of all."""
_CERTAIN: Final = 0.95
"""A budget is skipped if so much of its estimate is too large."""


@dataclass(frozen=True)
class PreviewReport:
    """What a page shows; its fields are the keys of `--json`.

    bytes: of the file. records: shown; of: in the source; matching: the choice. pictures: images shown; left_out: beyond
    the page's budget; broken: cannot be decoded. side_px, quality: of its images; shrunk: whether they are smaller than
    usual so that the page fits. characters_cut: of texts. token_faults: files that cannot be read, and sequences and
    packs that are not shown because of it; empty if all could be read. fates: of the records shown. ids: (corpus,
    record_id) in the page's order.
    """

    path: str
    out: str
    bytes: int
    records: int
    of: int
    matching: int
    corpora: dict[str, dict[str, int]]
    fates: dict[str, int]
    pictures: int
    pictures_left_out: int
    pictures_broken: int
    characters_cut: int
    side_px: int
    quality: int
    shrunk: bool
    packs: int
    token_faults: dict[str, int]
    notes: tuple[str, ...]
    ids: tuple[tuple[str, str], ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; lone surrogates are replaced."""
        value = asdict(self)
        value["ids"] = [
            {"corpus": _valid(corpus), "record_id": _valid(record_id)} for corpus, record_id in value["ids"]
        ]
        value["corpora"] = {_valid(name): counts for name, counts in value["corpora"].items()}
        return value


def preview(
    path: str | os.PathLike[str] | Run,
    out: str | os.PathLike[str],
    choice: Choice | None = None,
    *,
    watch: Progress | None = None,
) -> PreviewReport:
    """Write a page of the records that `choice` means at `out`: one self-contained HTML file.

    Args:
        path: a run, a shard set (of a run or copied alone), or a shard's tar; a directory or URL.
        out: the page; its directory must exist. It appears whole or not at all.
        choice: 200 records at random by default.
        watch: is told the progress.

    Raises:
        UsageError: there is nothing to show at `path`; the choice does not fit it; no directory for the page.
        DataError: a file is damaged, or a listed record does not exist. Except for token files: what they have is
            omitted, and the page and a warning say so.
    """
    choice, watch = choice or Choice(), watch or NoProgress()
    where, target = path.url if isinstance(path, Run) else os.fspath(path), os.fspath(out)
    check_target(target)
    source = RunSource(path) if isinstance(path, Run) else _source(where)
    if choice.reason is not None and isinstance(source, RunSource):
        source.check_reason(choice.reason)
    watch.stage("choose", sum(len(source.parts(corpus)) for corpus in range(len(source.corpora))), 0)
    selection = select(source, choice, lambda records: watch.advance("choose", records))
    page = _page(source, choice, selection, Store(where).url)
    if source.damaged.note:
        warnings.warn(source.damaged.note, stacklevel=2)
    watch.stage("draw", len(page.records), 0)
    max_bytes = PAGE_BYTES * max(_PAGE_RECORDS, choice.count) // _PAGE_RECORDS
    written = write_page(target, page, max_bytes, lambda: watch.advance("draw", 1))
    return PreviewReport(
        path=where,
        out=target,
        bytes=written.bytes,
        records=len(page.records),
        of=sum(selection.records),
        matching=sum(selection.matching),
        corpora={
            line.name: {"records": line.records, "matching": line.matching, "shown": line.shown}
            for line in page.corpora
        },
        fates={fate: count for fate in FATES if (count := sum(record.fate == fate for record in page.records))},
        pictures=written.counts.images,
        pictures_left_out=written.counts.images_omitted,
        pictures_broken=written.counts.images_broken,
        characters_cut=written.counts.characters_cut,
        side_px=written.budget.side_px,
        quality=written.budget.quality,
        shrunk=written.budget != PAGE_BUDGETS[0],
        packs=len(page.packs),
        token_faults=source.damaged.counts(),
        notes=written.notes,
        ids=tuple((record.corpus, record.record_id) for record in page.records),
    )


def _source(path: str) -> Source:
    kind = kind_of(path)
    if kind == "recipe":
        raise UsageError(f"{path}: is a recipe; preview shows runs, shard sets and shards (plan shows recipes)")
    if kind == "shard":
        return TarSource(path)
    return SetSource(path) if kind == "set" else RunSource(open_run(path))


def _page(source: Source, choice: Choice, selection: Selection, where: str) -> PreviewPage:
    locations = [location for location, _ in selection.locations]
    sequences = source.sequences(locations)
    records: dict[int, PreviewRecord] = {}
    for number in sorted(range(len(locations)), key=locations.__getitem__):  # part by part, as the tables are read
        location, highlight = selection.locations[number]
        records[number] = source.record(location, highlight, sequences.get(location))
    packs: tuple[PreviewPack, ...] = ()
    shard_sets: tuple[str, ...] = ()
    no_packs = ""
    if choice.packs and isinstance(source, RunSource):
        packs, shard_sets, no_packs = source.token_files.packs(choice.packs)
    shown = Counter(location.corpus for location in locations)
    corpora = zip(source.corpora, selection.records, selection.matching, strict=True)
    return PreviewPage(
        title=choice.heading or f"Preview of {source.title}",
        choice=choice.sentence(len(locations), sum(selection.matching), sum(selection.records)),
        corpora=tuple(
            CorpusCounts(name, total, matching, shown[number])
            for number, (name, total, matching) in enumerate(corpora)
            if total
        ),
        records=[records[number] for number in range(len(locations))],
        packs=packs,
        shard_sets=shard_sets,
        notes=tuple(shown_message(note, [where]) for note in (*source.notes, no_packs, source.damaged.note) if note),
        thresholds=source.thresholds,
    )


class Written(NamedTuple):
    """A page that was written, and the budget that it took."""

    bytes: int
    notes: tuple[str, ...]
    budget: PageBudget
    counts: PageCounts


def check_target(target: str) -> None:
    """Check that a page can be written there.

    Raises:
        UsageError: its directory does not exist, or it is a directory itself.
    """
    if "://" in target:
        return
    path = Path(target)
    if path.is_dir():
        raise UsageError(f"--out {target}: is a directory; pass a file, e.g. {path / 'page.html'}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--out {target}: directory {path.parent} does not exist; create it first")


def write_page(target: str, page: PreviewPage, max_bytes: int, advance: Callable[[], None]) -> Written:
    """Write a page atomically, with the first budget of which it takes at most `max_bytes`.

    advance: is called once for each record.
    """
    told = 0
    with _atomic_file(target) as scratch:
        for budget in _budgets_to_try(page, max_bytes):
            counts, size = PageCounts(), 0
            noted = page if budget is PAGE_BUDGETS[0] else replace(page, notes=(*page.notes, _note(budget, max_bytes)))
            with open(scratch, "wb") as stream:
                for piece in render_page(noted, budget, counts):
                    size += stream.write(piece.encode())
                    if size > max_bytes and budget is not PAGE_BUDGETS[-1]:
                        break
                    while told < counts.records:
                        told += 1
                        advance()
                else:
                    stream.flush()
                    os.fsync(stream.fileno())
                    return Written(size, noted.notes, budget, counts)
    raise AssertionError("every page fits the last budget")


def _budgets_to_try(page: PreviewPage, max_bytes: int) -> Iterator[PageBudget]:
    """The budgets in order, without those for which some of the images show that all of them would be too large."""
    shown = [[image for image in record.images if image.fate != "failed"] for record in page.records]
    images = [image for one in shown for image in one]
    sampled = [jpeg for image in images[:: max(1, len(images) // _SAMPLED)] if (jpeg := image.jpeg()) is not None]
    for budget in PAGE_BUDGETS:
        sizes = []
        for jpeg in sampled if budget is not PAGE_BUDGETS[-1] else []:
            try:
                sizes.append(len(data_uri(jpeg, budget.side_px, budget.quality).uri))
            except DataError:
                continue
        count = sum(min(budget.images, len(one)) for one in shown)
        if sum(sizes) / max(1, len(sizes)) * count * _CERTAIN <= max_bytes:
            yield budget


def _note(budget: PageBudget, max_bytes: int) -> str:
    return (
        f"Images are at most {budget.side_px} pixels on the longer side, so that the page stays below "
        f"{max_bytes / 1e6:,.0f} MB; select fewer records for larger images."
    )


@contextmanager
def _atomic_file(target: str) -> Iterator[Path]:
    """A file to write, which gets its name when the block ends, and is deleted if the block raises."""
    if "://" in target:
        directory, _, name = target.rpartition("/")
        store = Store(directory)
        with store.scratch() as scratch:
            yield scratch / "page"
            store.commit_file(scratch / "page", name)
        return
    path = Path(target)
    scratch_file = path.with_name(f".{uuid.uuid4().hex}.html")
    try:
        yield scratch_file
        os.replace(scratch_file, path)
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror or error}") from error
    finally:
        scratch_file.unlink(missing_ok=True)


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
