"""Questions about pictures, and answers that are true of their scenes: about one picture, and across several.

A question is drawn from the kinds that a scene allows; an exchange is (question, answer).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from scenes import (
    COLOURS,
    COUNTS,
    OBJECTS,
    PLACE_WORDS,
    PLURALS,
    SETTING_WORDS,
    THINGS,
    Scene,
    scene_location,
    scene_nouns,
)

Exchange = tuple[str, str]
ORDINALS = ("first", "second", "third", "fourth")
SMALL_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ONE_WORD = " Answer in one word."
DESCRIBE = (
    "Describe the picture.",
    "What do you see?",
    "Tell me what this picture shows.",
    "Please describe this drawing in some detail.",
    "What is going on here?",
)


def number_words(number: int) -> str:
    """A number from 0 to 999 in words: "three hundred and twenty-one"."""
    if number < len(SMALL_NUMBERS):
        return SMALL_NUMBERS[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens] + (f"-{SMALL_NUMBERS[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{SMALL_NUMBERS[hundreds]} hundred" + (f" and {number_words(rest)}" if rest else "")


def plural(thing: str) -> str:
    """Several of a thing."""
    return PLURALS.get(thing, thing + "s")


def with_article(words: str) -> str:
    """Words after "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[0].upper() + text[1:]


def noun(scene: Scene) -> str:
    """The scene's thing in the number it has."""
    return scene.thing if scene.count == 1 else plural(scene.thing)


def counted(scene: Scene) -> str:
    """ "a boat" or "three boats"."""
    return with_article(scene.thing) if scene.count == 1 else f"{COUNTS[scene.count]} {noun(scene)}"


def _verb(scene: Scene) -> str:
    return "is" if scene.count == 1 else "are"


def arrangement(scene: Scene) -> str:
    """Where one thing is, or how several stand."""
    if scene.count == 1:
        return PLACE_WORDS[scene.place]
    return "side by side" if scene.count <= 3 else "in two rows"


def _background(scene: Scene) -> str:
    """A sentence about the ground and, now and then seen, the sky."""
    if scene.is_field:
        return f"The background is {scene.ground} and {scene.field}."
    sky = {"sun": " The sun is in the sky.", "clouds": " White clouds are in the sky."}.get(scene.sky, "")
    return f"All of this is {SETTING_WORDS[scene.ground][0]}.{sky}"


def description(scene: Scene, rng: Random) -> str:
    """One to four sentences about the picture, about 8 to 45 words."""
    opening = rng.choice(("The picture shows", "This is a drawing of", "I see", "Here we have"))
    first = f"{opening} {scene_nouns(scene, rng)} {scene_location(scene, rng)}."
    pronoun = "It is" if scene.count == 1 else "They are"
    size = "large" if scene.large else "small"
    where = "" if arrangement(scene) in first else f"{pronoun} {arrangement(scene)}."
    more = [where, f"The {noun(scene)} {_verb(scene)} {size} and {scene.colour}.", _background(scene)]
    return " ".join([first, *(text for text in more if text and rng.random() < 0.5)])


def _describe(scene: Scene, rng: Random) -> Exchange:
    return rng.choice(DESCRIBE), description(scene, rng)


def _what(scene: Scene, rng: Random) -> Exchange:
    question = rng.choice(("What is drawn here?", "What is the main thing in the picture?", "Name what you see."))
    return question, f"{capital(counted(scene))}."


def _count(scene: Scene, rng: Random) -> Exchange:
    question = f"How many {plural(scene.thing)} are there?"
    if rng.random() < 0.5:
        return question + ONE_WORD, capital(COUNTS[scene.count])
    return question, f"There {_verb(scene)} {COUNTS[scene.count]} {noun(scene)}."


def _colour(scene: Scene, rng: Random) -> Exchange:
    question = f"What colour {_verb(scene)} the {noun(scene)}?"
    if rng.random() < 0.5:
        return question + ONE_WORD, capital(scene.colour)
    return question, f"The {noun(scene)} {_verb(scene)} {scene.colour}."


def _where(scene: Scene, rng: Random) -> Exchange:
    if scene.count == 1:
        question = rng.choice((f"Where in the picture is the {scene.thing}?", f"Where do you see the {scene.thing}?"))
        return question, f"{capital(arrangement(scene))}."
    return f"How are the {noun(scene)} arranged?", f"{capital(arrangement(scene))}."


def _ground(scene: Scene, rng: Random) -> Exchange:
    if scene.is_field:
        return "What is the background like?", f"It is {scene.ground} and {scene.field}."
    return "Where does this take place?", f"{capital(rng.choice(SETTING_WORDS[scene.ground]))}."


def _size(scene: Scene, rng: Random) -> Exchange:
    ending = ONE_WORD if rng.random() < 0.5 else ""
    answer = "Large" if scene.large else "Small"
    return f"{capital(_verb(scene))} the {noun(scene)} large or small?{ending}", answer if ending else f"{answer}."


def _is_colour(scene: Scene, rng: Random) -> Exchange:
    asked = scene.colour if rng.random() < 0.5 else rng.choice([c for c in COLOURS if c != scene.colour])
    question = f"{capital(_verb(scene))} the {noun(scene)} {asked}?"
    if asked == scene.colour:
        return question, rng.choice(("Yes.", f"Yes, {'it is' if scene.count == 1 else 'they are'} {asked}."))
    return question, f"No, {'it is' if scene.count == 1 else 'they are'} {scene.colour}."


def _is_count(scene: Scene, rng: Random) -> Exchange:
    asked = scene.count if scene.count > 1 and rng.random() < 0.5 else rng.randint(2, 5)
    question = f"Are there {COUNTS[asked]} {plural(scene.thing)}?"
    if asked == scene.count:
        return question, "Yes."
    return question, "No, there is only one." if scene.count == 1 else f"No, there are {COUNTS[scene.count]}."


def _is_thing(scene: Scene, rng: Random) -> Exchange:
    asked = scene.thing if rng.random() < 0.5 else rng.choice([thing for thing in THINGS if thing != scene.thing])
    question = f"Is there {with_article(asked)} in the picture?"
    return question, "Yes." if asked == scene.thing else f"No, there {_verb(scene)} {counted(scene)}."


def _is_night(scene: Scene, rng: Random) -> Exchange | None:
    if scene.is_field:
        return None
    if scene.ground == "night":
        return "Is it day or night?", "It is night."
    if rng.random() < 0.5:
        return "Is it day or night?", "It is day."
    return "Is the sun in the sky?", "Yes." if scene.sky == "sun" else "No."


ONE_PICTURE: tuple[Callable[[Scene, Random], Exchange | None], ...] = (
    _describe, _what, _count, _colour, _where, _ground, _size, _is_colour, _is_count, _is_thing, _is_night,
)  # fmt: skip


def exchanges_about(scene: Scene, turns: int, rng: Random) -> list[Exchange]:
    """`turns` exchanges about one picture, each of another kind."""
    found: list[Exchange] = []
    for kind in rng.sample(ONE_PICTURE, len(ONE_PICTURE)):
        exchange = kind(scene, rng)
        if exchange is not None and len(found) < turns:
            found.append(exchange)
    return found


def _shown(scenes: Sequence[Scene], rng: Random) -> Exchange:
    told = [
        f"The {ORDINALS[i]} {'picture shows' if i == 0 else 'shows'} {scene_nouns(scene, rng)} "
        f"{scene_location(scene, rng)}."
        for i, scene in enumerate(scenes)
    ]
    return rng.choice(("What does each picture show?", "Describe the pictures, one after the other.")), " ".join(told)


def _most(scenes: Sequence[Scene], _: Random) -> Exchange | None:
    counts = [scene.count for scene in scenes]
    if counts.count(max(counts)) > 1:
        return None
    best = counts.index(max(counts))
    return "Which picture has the most things in it?", f"The {ORDINALS[best]}, with {counted(scenes[best])}."


def _total(scenes: Sequence[Scene], _: Random) -> Exchange:
    parts = " and ".join(counted(scene) for scene in scenes)
    total = number_words(sum(scene.count for scene in scenes))
    return "How many things are there in all the pictures together?", f"{capital(total)}: {parts}."


def _which_thing(scenes: Sequence[Scene], rng: Random) -> Exchange | None:
    things = [scene.thing for scene in scenes]
    single = [i for i, thing in enumerate(things) if things.count(thing) == 1]
    if not single:
        return None
    chosen = rng.choice(single)
    return f"Which picture shows {counted(scenes[chosen])}?", f"The {ORDINALS[chosen]}."


def _which_colour(scenes: Sequence[Scene], rng: Random) -> Exchange | None:
    colours = [scene.colour for scene in scenes]
    single = [i for i, colour in enumerate(colours) if colours.count(colour) == 1]
    if not single:
        return None
    chosen = rng.choice(single)
    return f"In which picture is the main thing {colours[chosen]}?", f"In the {ORDINALS[chosen]}."


def _same_thing(scenes: Sequence[Scene], rng: Random) -> Exchange | None:
    if len(scenes) != 2:
        return None
    question = rng.choice(("Do both pictures show the same thing?", "Is it the same thing in both pictures?"))
    first, second = scenes
    if first.thing == second.thing:
        return question, f"Yes, both are of {plural(first.thing)}."
    return question, f"No, the first shows {counted(first)} and the second {counted(second)}."


def _same_colour(scenes: Sequence[Scene], _: Random) -> Exchange | None:
    if len(scenes) != 2:
        return None
    first, second = scenes
    question = "Do the things in both pictures have the same colour?"
    if first.colour == second.colour:
        return question, f"Yes, both are {first.colour}."
    return question, f"No, {first.colour} in the first and {second.colour} in the second."


def _drawn_shapes(scenes: Sequence[Scene], _: Random) -> Exchange:
    number = sum(scene.thing not in OBJECTS for scene in scenes)
    return "How many of the pictures show plain shapes, such as stars or rings?", f"{capital(number_words(number))}."


SEVERAL: tuple[Callable[[Sequence[Scene], Random], Exchange | None], ...] = (
    _shown, _most, _total, _which_thing, _which_colour, _same_thing, _same_colour, _drawn_shapes,
)  # fmt: skip


def exchanges_across(scenes: Sequence[Scene], turns: int, rng: Random) -> list[Exchange]:
    """`turns` exchanges that compare 2 to 4 pictures, each of another kind."""
    found: list[Exchange] = []
    for kind in rng.sample(SEVERAL, len(SEVERAL)):
        exchange = kind(scenes, rng)
        if exchange is not None and len(found) < turns:
            found.append(exchange)
    return found
