"""Scenes and the sentences about them: the grammar of the sample's pictures.

A scene is a few words ("three small red boats on the open sea"); `draw.py` draws
it and this file writes about it. Everything is a function of the generator given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "diamond", "cross")
OBJECTS = (
    "house", "tree", "boat", "fish", "flower", "car", "balloon", "cup", "kite", "mushroom", "umbrella", "butterfly",
)  # fmt: skip
THINGS = SHAPES + OBJECTS
PLURALS = {"cross": "crosses", "fish": "fish", "butterfly": "butterflies"}
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 214, 50),
    "green": (50, 150, 70),
    "blue": (40, 90, 200),
    "purple": (130, 60, 170),
    "pink": (245, 140, 185),
    "brown": (125, 80, 45),
    "black": (28, 28, 32),
    "white": (248, 248, 246),
}
COUNTS = ("", "one", "two", "three", "four", "five")
PATTERNS = ("plain", "striped", "dotted", "checkered")
PLACES = ("left", "right", "top", "bottom", "middle")
SETTINGS = ("meadow", "sea", "night", "snow", "desert")
CLASHES = {"meadow": "green", "sea": "blue", "night": "black", "snow": "white", "desert": "yellow"}
SKIES = ("", "sun", "clouds")

FIELD_WORDS = {
    "plain": ("on a plain {c} background", "on a {c} field", "against a plain {c} wall"),
    "striped": ("on a striped {c} field", "on a {c} background with stripes", "against {c} stripes"),
    "dotted": ("on a dotted {c} field", "on a {c} background with dots", "against {c} polka dots"),
    "checkered": ("on a checkered {c} field", "on a {c} background with checks", "against {c} checks"),
}
SETTING_WORDS = {
    "meadow": ("in a green meadow", "on the grass", "on a green lawn"),
    "sea": ("on the open sea", "out on the water", "over the waves"),
    "night": ("under a starry sky", "at night under the moon", "on a dark night"),
    "snow": ("in the snow", "on a snowy field", "in a white winter landscape"),
    "desert": ("in a sandy desert", "on the sand", "among the dunes"),
}
SKY_WORDS = {"sun": ("under a bright sun", "with the sun above"), "clouds": ("under white clouds", "with clouds above")}
PLACE_WORDS = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}
ALT_TEXTS = (
    "{np} {loc}",
    "{np} {loc}",
    "{np} {loc}, illustration",
    "Drawing of {np} {loc}",
    "{np} {loc} - clip art",
    "A picture of {np} {loc}",
    "Simple drawing: {np} {loc}",
    "{np} {loc} | free poster",
)
SENTENCES = (
    "Here you can see {np} {loc}.",
    "The next picture shows {np} {loc}.",
    "Someone painted {np} {loc}.",
    "My favourite one is {np} {loc}.",
    "Look at {np} {loc}.",
    "Then we drew {np} {loc}.",
    "This page of the book has {np} {loc}.",
    "On the card there is {np} {loc}.",
    "We hung up a print of {np} {loc}.",
    "Among the entries was {np} {loc}.",
)
FILLERS = (
    "We met in the {room} on {day} {time}.",
    "Everybody brought {item} and a little patience.",
    "It took {much} than we had planned.",
    "Thank you for all your {kind} letters.",
    "The {who} asked us to do it again on {day}.",
    "I have been keeping this diary since {month}.",
    "Read on to find out how it ended for the {who}.",
    "Please write to us if you know more about the {room}.",
    "The class starts again in {month} and costs nothing.",
    "By {time} the {who} had already gone home.",
    "There was {item} for everyone in the {room}.",
    "Prices were {much} than last {month}.",
    "Nobody remembers who had this idea first.",
    "The {who} told a long story about {month}.",
    "We will be back on {day} with {item}.",
    "All of this was done in a single {time}.",
)
FILLER_WORDS = {
    "room": ("library", "kitchen", "old school", "town hall", "workshop", "museum"),
    "day": ("Monday", "Tuesday", "Thursday", "Friday", "Sunday"),
    "time": ("morning", "afternoon", "evening", "lunchtime"),
    "item": ("bread", "music", "coffee", "good advice", "paper", "soup"),
    "much": ("longer", "less", "more", "rather more"),
    "kind": ("kind", "long", "patient", "funny"),
    "who": ("teacher", "neighbours", "children", "mayor", "visitors", "editor"),
    "month": ("March", "May", "June", "September", "November"),
}


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `ground` is a pattern (with `field`, its colour) or a setting (with `sky`)."""

    thing: str
    colour: str
    count: int
    large: bool
    place: str
    ground: str
    field: str
    sky: str

    @property
    def is_field(self) -> bool:
        """Whether the ground is a coloured pattern and not a landscape."""
        return self.ground in PATTERNS


def random_scene(rng: Random, things: Sequence[str] = THINGS) -> Scene:
    """One scene; a thing never has its ground's colour."""
    thing = rng.choice(things)
    count = rng.choice((1, 1, 1, 1, 2, 2, 3, 3, 4, 5))
    on_field = thing in SHAPES or rng.random() < 0.3
    ground = rng.choice(PATTERNS if on_field else SETTINGS)
    field = rng.choice(tuple(COLOURS)) if on_field else ""
    clash = field if on_field else CLASHES[ground]
    colour = rng.choice([name for name in COLOURS if name != clash])
    sky = rng.choice(SKIES) if not on_field and ground != "night" else ""
    place = rng.choice(PLACES) if count == 1 else ""
    return Scene(thing, colour, count, rng.random() < 0.5, place, ground, field, sky)


def scene_nouns(scene: Scene, rng: Random) -> str:
    """The scene's subject: "three small red boats"; the size is left out now and then."""
    size = ("large" if scene.large else "small") if rng.random() < 0.8 else ""
    noun = scene.thing if scene.count == 1 else PLURALS.get(scene.thing, scene.thing + "s")
    words = [word for word in (size, scene.colour, noun) if word]
    article = "an" if words[0][0] in "aeiou" else "a"
    number = COUNTS[scene.count] if scene.count > 1 else rng.choice((article, article, "one"))
    return " ".join([number, *words])


def scene_location(scene: Scene, rng: Random) -> str:
    """Where the subject is: its ground, often its place in the picture, the sky."""
    if scene.is_field:
        text = rng.choice(FIELD_WORDS[scene.ground]).format(c=scene.field)
    else:
        text = rng.choice(SETTING_WORDS[scene.ground])
        if scene.sky and rng.random() < 0.7:
            text = f"{text} {rng.choice(SKY_WORDS[scene.sky])}"
    if scene.place and rng.random() < 0.3:
        text = f"{PLACE_WORDS[scene.place]} {text}"
    return text.replace("a orange", "an orange")


def _write(scene: Scene, templates: Sequence[str], rng: Random) -> str:
    text = rng.choice(templates).format(np=scene_nouns(scene, rng), loc=scene_location(scene, rng))
    return text[0].upper() + text[1:]


def alt_text(scene: Scene, rng: Random) -> str:
    """A caption as an image's alternative text would say it."""
    return _write(scene, ALT_TEXTS, rng)


def sentence(scene: Scene, rng: Random) -> str:
    """A sentence of a page that speaks of the picture."""
    return _write(scene, SENTENCES, rng)


def filler(rng: Random) -> str:
    """A sentence of a page that speaks of no picture."""
    words = {slot: rng.choice(choices) for slot, choices in FILLER_WORDS.items()}
    return rng.choice(FILLERS).format(**words)


def overlap(scene: Scene, other: Scene) -> float:
    """How much two scenes share, 0 to 1: thing 0.45, colour 0.2, ground 0.2, count 0.1, size 0.05."""
    same_ground = scene.ground == other.ground and scene.field == other.field
    weights = (
        (0.45, scene.thing == other.thing),
        (0.2, scene.colour == other.colour),
        (0.2, same_ground),
        (0.1, scene.count == other.count),
        (0.05, scene.large == other.large),
    )
    return sum(weight for weight, same in weights if same)
