"""`preview`: a run, a shard set or a shard as one page to look at."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final

from vila_data.core.errors import UsageError
from vila_data.core.store import Store
from vila_data.explore.preview.choice import Choice, ListedRecord
from vila_data.explore.preview.choose import Chosen, choose
from vila_data.explore.preview.drawn_packs import PackLegend, ShownPack
from vila_data.explore.preview.faults import TokenFaults
from vila_data.explore.preview.run import RunSource
from vila_data.explore.preview.shards import SetSource, TarSource
from vila_data.explore.preview.source import Source
from vila_data.explore.preview.values import FATES, ROOMS, CorpusLine, PreviewPage, ShownRecord
from vila_data.explore.preview.write import Written, check_target, write_page
from vila_data.explore.recipe_text import shown_message
from vila_data.runs.progress import Silence, Watch
from vila_data.runs.run import Run, kind_of, open_run

__all__ = ["Choice", "ListedRecord", "PreviewReport", "preview"]

_PAGE_BYTES: Final = 15_000_000
_PAGE_RECORDS: Final = 200
"""So many records take so many bytes at most; where there are more, each takes its share."""


@dataclass(frozen=True)
class PreviewReport:
    """What a page holds.

    bytes: of the file. records: shown; of: looked at; matching: as the choice asks. pictures: in it; left_out: for want of
    room; broken: stored bytes that cannot be decoded. side_px, quality: of its pictures; shrunk: whether they had to be
    made smaller than usual to fit. characters_cut: of texts. token_faults: files that cannot be read, and the sequences
    and packs that are not shown for it; empty where all can. fates: of the records shown. ids: (corpus, record_id) in
    the page's order.
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
    watch: Watch | None = None,
) -> PreviewReport:
    """Write a page of the records that `choice` means, at `out`: one file of HTML that needs nothing else.

    Args:
        path: a run, a shard set (of a run or copied alone), or a shard's tar; a folder or URL.
        out: the page; its folder must be there. It appears whole or not at all.
        choice: 200 records at random unless given.
        watch: is told how far the work is.

    Raises:
        UsageError: nothing that can be shown lies there; the choice asks for what cannot be; no folder for the page.
        DataError: a file of it is damaged, or a listed record is not there. Token files apart: what they hold is left
            out, and the page and a warning say so.
    """
    choice, watch = choice or Choice(), watch or Silence()
    where, target = path.url if isinstance(path, Run) else os.fspath(path), os.fspath(out)
    check_target(target)
    source = RunSource(path) if isinstance(path, Run) else _source(where)
    if choice.reason is not None and isinstance(source, RunSource):
        source.check_reason(choice.reason)
    parts = sum(len(source.parts(corpus)) for corpus in range(len(source.corpora)))
    watch.stage("choose", parts, 0)
    chosen = choose(source, choice, lambda records: watch.advance("choose", records))
    page = _page(source, choice, chosen, Store(where).url)
    if source.faults.note:
        warnings.warn(source.faults.note, stacklevel=2)
    watch.stage("draw", len(page.records), 0)
    max_bytes = _PAGE_BYTES * max(_PAGE_RECORDS, choice.count) // _PAGE_RECORDS
    written = write_page(target, page, max_bytes, lambda: watch.advance("draw", 1))
    return _report(where, target, page, written, chosen, source.faults)


def _source(path: str) -> Source:
    kind = kind_of(path)
    if kind == "recipe":
        raise UsageError(f"{path}: is a recipe; preview shows runs, shard sets and shards (plan shows recipes)")
    if kind == "shard":
        return TarSource(path)
    return SetSource(path) if kind == "set" else RunSource(open_run(path))


def _page(source: Source, choice: Choice, chosen: Chosen, where: str) -> PreviewPage:
    places = [place for place, _ in chosen.places]
    tokens = source.tokens(places)
    shown = Counter(place.corpus for place in places)
    records: dict[int, ShownRecord] = {}
    for number in sorted(range(len(places)), key=places.__getitem__):  # part by part, as the tables are read
        place, asked = chosen.places[number]
        records[number] = source.record(place, asked, tokens.get(place))
    lines = (
        CorpusLine(name, total, matching, shown[number])
        for number, (name, total, matching) in enumerate(
            zip(source.corpora, chosen.records, chosen.matching, strict=True)
        )
    )
    packs: tuple[ShownPack, ...] = ()
    legend, missing = PackLegend(), ""
    if choice.packs and isinstance(source, RunSource):
        packs, legend, missing = source.packs(choice.packs)
    return PreviewPage(
        title=choice.heading or f"Preview of {source.title}",
        chosen=choice.words(len(places), sum(chosen.matching), sum(chosen.records)),
        corpora=tuple(line for line in lines if line.records),
        records=[records[number] for number in range(len(places))],
        packs=packs,
        legend=legend,
        notes=tuple(shown_message(note, [where]) for note in (*source.notes, missing, source.faults.note) if note),
        thresholds=source.thresholds,
    )


def _report(
    path: str, out: str, page: PreviewPage, written: Written, chosen: Chosen, faults: TokenFaults
) -> PreviewReport:
    tally, room = written.tally, written.room
    return PreviewReport(
        path=path,
        out=out,
        bytes=written.bytes,
        records=len(page.records),
        of=sum(chosen.records),
        matching=sum(chosen.matching),
        corpora={
            line.name: {"records": line.records, "matching": line.matching, "shown": line.shown}
            for line in page.corpora
        },
        fates={fate: count for fate in FATES if (count := sum(record.fate == fate for record in page.records))},
        pictures=tally.pictures,
        pictures_left_out=tally.pictures_left_out,
        pictures_broken=tally.pictures_broken,
        characters_cut=tally.characters_cut,
        side_px=room.side_px,
        quality=room.quality,
        shrunk=room != ROOMS[0],
        packs=len(page.packs),
        token_faults=faults.counts(),
        notes=written.notes,
        ids=tuple((record.corpus, record.record_id) for record in page.records),
    )


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
