"""Web documents in OBELICS's form: texts and images in one list, each image where the page has it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from random import Random

import plan
import pyarrow as pa
from scenes import Scene, filler, sentence

PAGES = 40
ROWS_A_GROUP = 15
ENDS_WITH_IMAGE, BEGINS_WITH_IMAGE = (4, 17, 33), (8, 25)
TROUBLE = {"missing": (6, 29), "gone_host": (14,), "truncated": (21,), "redirect": (3,), "busy_once": (37,)}
SCHEMA = pa.schema(
    [
        ("images", pa.list_(pa.string())),
        ("metadata", pa.string()),
        ("general_metadata", pa.string()),
        ("texts", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class WebPage:
    """A page: its parts in order, each a text or an image."""

    url: str
    parts: tuple[str | plan.Link, ...]

    @property
    def links(self) -> tuple[plan.Link, ...]:
        """The page's images."""
        return tuple(part for part in self.parts if isinstance(part, plan.Link))


def _paragraph(about: Scene | None, rng: Random) -> str:
    """Sentences of one text part, the one about the picture at either end."""
    texts = [filler(rng) for _ in range(rng.randint(0 if about else 1, 3))]
    if about is not None:
        texts.insert(rng.choice((0, len(texts))), sentence(about, rng))
    return " ".join(texts) if rng.random() < 0.8 else "\n\n".join(texts)


@cache
def _links_by_behaviour() -> dict[str, tuple[plan.Link, ...]]:
    found: dict[str, tuple[plan.Link, ...]] = {}
    for document in plan.documents():
        for link in document.links:
            found[link.behaviour] = (*found.get(link.behaviour, ()), link)
    return found


@cache
def web_pages() -> tuple[WebPage, ...]:
    """All pages: 1 to 4 images, each before or after the text about it."""
    rng = Random(f"{plan.SEED} web pages")
    by_behaviour = _links_by_behaviour()
    pool = list(by_behaviour["plain"])
    rng.shuffle(pool)
    pages: list[WebPage] = []
    for number in range(PAGES):
        links = [pool.pop() for _ in range(rng.choice((1, 2, 2, 3, 3, 4)))]
        for behaviour, numbers in TROUBLE.items():
            if number in numbers:
                links.append(by_behaviour[behaviour][numbers.index(number)])
        pages.append(WebPage(f"{plan.HOST}/stories/{number:03d}.html", _parts(number, links, rng)))
    return tuple(pages)


def _parts(number: int, links: list[plan.Link], rng: Random) -> tuple[str | plan.Link, ...]:
    parts: list[str | plan.Link] = [] if number in BEGINS_WITH_IMAGE else [_paragraph(None, rng)]
    for i, link in enumerate(links):
        text = _paragraph(link.picture.scene, rng)
        if i == len(links) - 1:
            image_first = number not in ENDS_WITH_IMAGE
        else:
            image_first = rng.random() < 0.75 or (i == 0 and number in BEGINS_WITH_IMAGE)
        parts += [link, text] if image_first else [text, link]
    if number not in ENDS_WITH_IMAGE and rng.random() < 0.3:
        parts.append(_paragraph(None, rng))
    return tuple(parts)


def _row(page: WebPage) -> dict[str, object]:
    facts = [
        None
        if isinstance(part, str)
        else {
            "document_url": page.url,
            "src": part.url,
            "alt_text": "",
            "original_width": part.picture.size[0],
            "original_height": part.picture.size[1],
        }
        for part in page.parts
    ]
    return {
        "images": [None if isinstance(part, str) else part.url for part in page.parts],
        "metadata": json.dumps(facts),
        "general_metadata": json.dumps({"url": page.url}),
        "texts": [part if isinstance(part, str) else None for part in page.parts],
    }


def obelics_table() -> pa.Table:
    """The pages as rows of equally long lists `images` and `texts`, one of both null at each place."""
    return pa.Table.from_pylist([_row(page) for page in web_pages()], schema=SCHEMA)


def expected() -> dict[str, object]:
    """Counts of the pages."""
    links = [link for page in web_pages() for link in page.links]
    outcomes = sorted({link.outcome for link in links})
    return {
        "rows": PAGES,
        "images": len(links),
        "texts": sum(isinstance(part, str) for page in web_pages() for part in page.parts),
        "end_with_an_image": sum(isinstance(page.parts[-1], plan.Link) for page in web_pages()),
        "image_outcomes": {outcome: sum(link.outcome == outcome for link in links) for outcome in outcomes},
    }
