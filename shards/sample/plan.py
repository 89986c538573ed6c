"""Which pictures, documents and pairs the sample web has, and what goes wrong with which.

The tables below say everything that is not drawn at random; what is drawn depends
on `SEED` and the item's own number only, so one item can be built alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from random import Random

from scenes import THINGS, Scene, alt_text, filler, overlap, random_scene, sentence

SEED = 17
HOST = "http://127.0.0.1:8765"
GONE_HOST = "http://gone.invalid"
DOCUMENTS = 100
PAIRS = 200
SIZES = {
    (640, 480): 26,
    (480, 360): 22,
    (360, 480): 12,
    (400, 400): 12,
    (320, 240): 12,
    (800, 600): 7,
    (200, 150): 5,
    (1024, 768): 4,
}

# What is wrong with a link: document or pair numbers by behaviour; a document's trouble is with its second image.
DOCUMENT_TROUBLE = {
    "missing": (3, 17, 41, 58, 91),
    "gone_host": (22, 73),
    "forbidden": (35,),
    "broken_server": (66,),
    "truncated": (9, 84),
    "html": (47,),
    "empty": (62,),
    "opt_out": (13, 79),
    "private": (28, 95),
    "redirect": (5, 44, 71),
    "slow": (11, 38, 64, 88),
    "busy_once": (19, 53),
    "limited_once": (31,),
    "thumbnail": (7, 49, 82),
    "banner": (25, 68),
    "copy": (33, 56, 97),
    "near_copy": (36, 60, 99),
    "unrelated": (2, 15, 27, 43, 51, 70, 86, 93),
}
PAIR_TROUBLE = {
    "missing": (4, 21, 47, 68, 95, 123, 158, 186),
    "gone_host": (12, 89, 171),
    "forbidden": (33,),
    "broken_server": (141,),
    "redirect_loop": (57,),
    "truncated": (26, 150),
    "html": (74, 163),
    "empty": (102,),
    "drawing": (138,),
    "huge": (116,),
    "bomb": (180,),
    "opt_out": (17, 131),
    "private": (61, 192),
    "redirect": (8, 53, 109, 177),
    "slow": (15, 70, 127, 188),
    "busy_once": (39, 144),
    "limited_once": (84,),
    "thumbnail": (29, 77, 119, 166),
    "banner": (44, 98, 153),
    "copy": (50, 92, 136, 199),
    "near_copy": (55, 106, 147, 195),
}
# Encodings other than JPEG, by the number of a document (its first image) or a pair.
DOCUMENT_FORMS = {
    "png_alpha": (10, 40, 80),
    "png_palette": (14, 54),
    "png_gray16": (24,),
    "jpeg_cmyk": (30, 76),
    "gif_animated": (46,),
    "webp": (18, 50, 90),
    "jpeg_turned": (20, 63),
    "jpeg_progressive": (1, 34, 69),
}
PAIR_FORMS = {
    "png_alpha": (3, 67, 128),
    "png_palette": (11, 79, 156),
    "png_gray16": (35, 113),
    "jpeg_cmyk": (19, 100),
    "gif_animated": (42, 87, 160),
    "webp": (27, 64, 149),
    "jpeg_turned": (51, 75, 169),
    "jpeg_progressive": (7, 96, 132),
}
_ODD = {number for table in (PAIR_TROUBLE, PAIR_FORMS) for numbers in table.values() for number in numbers}
# Pairs whose text is another pair's: nothing else is odd about them, and no copy is made of them.
WRONG_CAPTIONS = tuple(n for n in range(PAIRS) if not {n, n + 1} & _ODD)[1::3][:24]
LARGE_DOCUMENTS, LARGE_PAIRS = (8, 61), (24, 105)  # 1600 x 1200
CROWDED_DOCUMENT = 77  # six images on four sentences
DUPLICATE_OF = 21  # this document's line occurs twice
OUTCOMES = {  # the download's result by behaviour; what is not named here succeeds
    "missing": "http_status",
    "forbidden": "http_status",
    "broken_server": "http_status",
    "gone_host": "dns",
    "redirect_loop": "too_many_redirects",
    "truncated": "truncated_image",
    "html": "not_an_image",
    "empty": "not_an_image",
    "drawing": "not_an_image",
    "huge": "too_large",
    "bomb": "too_many_pixels",
    "opt_out": "opted_out",
    "private": "robots_txt",
}
SUFFIXES = {"png_alpha": "png", "png_palette": "png", "png_gray16": "png", "gif_animated": "gif", "webp": "webp"}


@dataclass(frozen=True)
class Picture:
    """One drawn picture: `name` is its file under site/ and the seed of its drawing."""

    name: str
    scene: Scene
    size: tuple[int, int]
    form: str = "jpeg"


@dataclass(frozen=True)
class Link:
    """One image reference: its URL, the picture meant, and how the web behaves there."""

    url: str
    picture: Picture
    behaviour: str = "plain"

    @property
    def outcome(self) -> str:
        """`ok`, or the error a downloader should find."""
        return OUTCOMES.get(self.behaviour, "ok")


@dataclass(frozen=True)
class Document:
    """A page: its sentences, its images, and each image's sentence (None where no sentence is about it)."""

    number: int
    url: str
    texts: tuple[str, ...]
    links: tuple[Link, ...]
    matches: tuple[int | None, ...]
    about: tuple[Scene | None, ...]  # a sentence's scene


@dataclass(frozen=True)
class Pair:
    """A link with a text; `caption_of` is the number of the pair that the text is about."""

    number: int
    id: int
    link: Link
    text: str
    caption_of: int


def _lookup(table: dict[str, tuple[int, ...]], number: int, default: str) -> str:
    return next((name for name, numbers in table.items() if number in numbers), default)


def _scene_for(form: str, scene: Scene) -> Scene:
    """A scene that its encoding can show: no colour in gray, no ground behind alpha, nothing tiny."""
    if form == "png_alpha":
        colour = "red" if scene.colour == "white" else scene.colour
        return replace(scene, ground="plain", field="white", sky="", colour=colour)
    if form == "png_gray16":
        return replace(scene, ground="plain", field="black", sky="", colour="white")
    if form in ("thumbnail", "banner"):
        return replace(scene, count=1, place="middle", large=True)
    return scene


def _picture(name: str, rng: Random, form: str, behaviour: str, large: bool, things: tuple[str, ...]) -> Picture:
    size = rng.choices(list(SIZES), weights=list(SIZES.values()))[0]
    scene = random_scene(rng, things)
    if behaviour in ("thumbnail", "banner"):
        size = {"thumbnail": (48, 36), "banner": (728, 90)}[behaviour]
    if large:
        size = (1600, 1200)
    return Picture(f"{name}.{SUFFIXES.get(form, 'jpg')}", _scene_for(behaviour, _scene_for(form, scene)), size, form)


def _link(picture: Picture, behaviour: str, original: Picture | None = None) -> Link:
    """The reference to a picture; a copy refers to `original` under another address."""
    if behaviour == "copy" and original is not None:
        return Link(f"{HOST}/mirror/{picture.name}", original, behaviour)
    if behaviour == "near_copy" and original is not None:
        width, height = original.size
        smaller = (round(width * 0.9), round(height * 0.9))
        return Link(f"{HOST}/{picture.name}", replace(picture, scene=original.scene, size=smaller), behaviour)
    paths = {
        "private": f"/private/{picture.name}",
        "redirect": f"/moved/{picture.name}",
        "redirect_loop": f"/around/{picture.name}",
        "drawing": f"/{picture.name.replace('.jpg', '.svg')}",
        "bomb": f"/{picture.name.replace('.jpg', '.png')}",
    }
    host = GONE_HOST if behaviour == "gone_host" else HOST
    return Link(host + paths.get(behaviour, f"/{picture.name}"), picture, behaviour)


def _document_links(number: int, rng: Random) -> list[Link]:
    count = 6 if number == CROWDED_DOCUMENT else rng.choices((2, 3, 4, 5, 6), weights=(46, 27, 14, 8, 5))[0]
    trouble = _lookup(DOCUMENT_TROUBLE, number, "plain")
    links: list[Link] = []
    things: tuple[str, ...] = THINGS
    for i in range(count):
        form = _lookup(DOCUMENT_FORMS, number, "jpeg") if i == 0 else "jpeg"
        behaviour = trouble if i == 1 else "plain"
        large = number in LARGE_DOCUMENTS and i == 0
        picture = _picture(f"docs/{number:03d}-{i}", rng, form, behaviour, large, things)
        if number == CROWDED_DOCUMENT and i >= 4:
            picture = replace(picture, scene=links[i - 4].picture.scene)
        original = document(number - 1).links[0].picture if behaviour in ("copy", "near_copy") else None
        links.append(_link(picture, behaviour, original))
        things = tuple(thing for thing in things if thing != links[-1].picture.scene.thing)
    return links


@cache
def document(number: int) -> Document:
    """Document `number`: pictures of different things, a sentence about each, others between."""
    rng = Random(f"{SEED} document {number}")
    links = _document_links(number, rng)
    spoken = [i for i, link in enumerate(links) if link.behaviour != "unrelated"]
    spoken = [i for i in spoken if not (number == CROWDED_DOCUMENT and i >= 4)]
    extra = 0 if number == CROWDED_DOCUMENT else rng.randint(max(1, 4 - len(spoken)), max(4, 15 - 2 * len(spoken)))
    slots: list[int | None] = [*spoken, *[None] * min(extra, 15 - len(spoken))]
    order = sorted(range(len(slots)), key=lambda i: (rng.random(), i))
    # Images keep their order in the page; the places between are drawn.
    places = sorted(i for i, slot in enumerate(order) if slots[slot] is not None)
    about: list[Scene | None] = [None] * len(slots)
    texts = [filler(rng) for _ in slots]
    matches: list[int | None] = [None] * len(links)
    for image, place in zip(spoken, places, strict=True):
        matches[image] = place
        about[place] = links[image].picture.scene
        texts[place] = sentence(links[image].picture.scene, rng)
    if number == CROWDED_DOCUMENT:
        matches[4:] = matches[: len(links) - 4]
    url = f"{HOST}/pages/{number:03d}.html"
    return Document(number, url, tuple(texts), tuple(links), tuple(matches), tuple(about))


@cache
def _own_pair(number: int) -> tuple[Link, str]:
    """Pair `number` with its own caption."""
    rng = Random(f"{SEED} pair {number}")
    form, behaviour = _lookup(PAIR_FORMS, number, "jpeg"), _lookup(PAIR_TROUBLE, number, "plain")
    picture = _picture(f"pairs/{number:03d}", rng, form, behaviour, number in LARGE_PAIRS, THINGS)
    original = _own_pair(number - 1)[0].picture if behaviour in ("copy", "near_copy") else None
    link = _link(picture, behaviour, original)
    if behaviour == "plain" and number % 9 == 1:
        link = replace(link, url=f"{link.url}?v={number}")
    return link, alt_text(link.picture.scene, rng)


@cache
def pair(number: int) -> Pair:
    """Pair `number`; a wrong one has the caption of the next pair that shows something else altogether."""
    link, text = _own_pair(number)
    about = number
    if number in WRONG_CAPTIONS:
        others = ((number + step) % PAIRS for step in range(1, PAIRS))
        about = next(other for other in others if overlap(link.picture.scene, _own_pair(other)[0].picture.scene) < 0.2)
        text = _own_pair(about)[1]
    row_id = 2_000_000_000_000 + Random(f"{SEED} id {number}").randrange(10**9) * PAIRS + number
    return Pair(number, row_id, link, text, about)


def documents() -> list[Document]:
    """All documents, in order."""
    return [document(number) for number in range(DOCUMENTS)]


def pairs() -> list[Pair]:
    """All pairs, in order."""
    return [pair(number) for number in range(PAIRS)]


def links() -> list[Link]:
    """Every image reference of the documents, then of the pairs."""
    return [link for item in documents() for link in item.links] + [item.link for item in pairs()]


def sample_scenes() -> set[Scene]:
    """Every scene of the sample, which training must not see."""
    return {link.picture.scene for link in links()}


def own_caption(number: int) -> str:
    """The right caption of pair `number`, whatever its text says."""
    return _own_pair(number)[1]
