"""The preview page: records in reading order, packs as bars; one file, read without a server and without a script."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vila_data.explore.page import page_pieces
from vila_data.explore.preview.drawn_packs import draw_packs
from vila_data.explore.preview.record import Scale, draw_records
from vila_data.explore.preview.text import plain
from vila_data.explore.preview.values import FATES, PreviewPage, Room, Tally, fates_of, reasons_of


def draw(page: PreviewPage, room: Room, tally: Tally, advance: Callable[[], None] = lambda: None) -> Iterator[str]:
    """The HTML in pieces; pictures are read and made small as it goes, and `tally` counts.

    advance: is called after each record.
    """
    scale = Scale.of(page)
    return page_pieces(
        "preview.html",
        title=plain(page.title, 120),
        scripts=["preview.js"],
        styles=["preview.css"],
        page=page,
        chosen=plain(page.chosen, 400),
        notes=[plain(note, 400) for note in page.notes],
        sets=[plain(name, 60) for name in page.legend.sets],
        records=draw_records(page, room, scale, tally, advance),
        packs=draw_packs(page.packs, page.legend),
        corpora=[(plain(line.name, 60), line) for line in page.corpora],
        shown_corpora=list(dict.fromkeys(plain(record.corpus, 60) for record in page.records)),
        fates=[fate for fate in FATES if any(fate in fates_of(record) for record in page.records)],
        reasons=sorted({plain(reason, 60) for record in page.records for reason in reasons_of(record)}),
        scale=scale,
    )
