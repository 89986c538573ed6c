"""An independent reading of texts about pictures: what they claim, held against the scene."""

from __future__ import annotations

import re
from collections.abc import Sequence

import plan
from scenes import (
    COLOURS,
    COUNTS,
    FIELD_WORDS,
    PATTERNS,
    PLACE_WORDS,
    PLACES,
    PLURALS,
    SETTING_WORDS,
    SETTINGS,
    SHAPES,
    SKY_WORDS,
    THINGS,
    Scene,
)

SCENES = {link.picture.name: link.picture.scene for link in plan.links()}
SEVERAL = {thing: PLURALS.get(thing, thing + "s") for thing in THINGS}
KIND = {name: thing for thing, many in SEVERAL.items() for name in (thing, many)}
NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
ORDER = ["first", "second", "third", "fourth"]
CLAIMS = {
    *COLOURS, *KIND, *NUMBERS, *PATTERNS, *PLACES, *SETTINGS, "large", "small", "stripes", "dots", "checks", "polka",
    "sun", "clouds", "moon", "stars", "starry", "dark", "snowy", "sandy", "grass", "lawn", "water", "waves", "sand",
    "dunes", "winter", "rows", "side", "day", "sky",
}  # fmt: skip
"""Words that say something about a picture."""


def true_phrases(scene: Scene) -> list[str]:
    """Phrases about ground, sky and place that are true of a scene, longest first."""
    if scene.is_field:
        phrases = [words.format(c=scene.field).replace("a orange", "an orange") for words in FIELD_WORDS[scene.ground]]
        phrases.append(f"is {scene.ground} and {scene.field}")
    else:
        phrases = [*SETTING_WORDS[scene.ground], "it is night" if scene.ground == "night" else "it is day"]
    phrases += SKY_WORDS.get(scene.sky, ())
    phrases += {"sun": ["sun is in the sky"], "clouds": ["white clouds are in the sky"]}.get(scene.sky, [])
    phrases.append(
        PLACE_WORDS[scene.place] if scene.count == 1 else "side by side" if scene.count < 4 else "in two rows"
    )
    return sorted(phrases, key=len, reverse=True)


def untrue_words(text: str, scene: Scene) -> list[str]:
    """The words of a text that claim what is not so; empty where all of it is true of the scene."""
    rest = text.lower()
    for phrase in true_phrases(scene):
        rest = rest.replace(phrase, " ")
    noun = scene.thing if scene.count == 1 else SEVERAL[scene.thing]
    true = {scene.colour, noun, COUNTS[scene.count], "large" if scene.large else "small"}
    single = rf"\b(?:an?|one) (?:large |small )?(?:(?:{'|'.join(COLOURS)}) )?{scene.thing}\b"
    wrong_number = re.findall(single, rest) if scene.count > 1 else []
    return wrong_number + [word for word in re.findall("[a-z]+", rest) if word in CLAIMS - true]


def is_right(question: str, answer: str, scene: Scene) -> bool:
    """Whether an answer about one picture is right, and says what was asked for."""
    said = answer.split(".")[0].split(",")[0]
    noun = f"({'|'.join(KIND)})"
    verdicts = {
        rf"(?:Is|Are) the {noun} ({'|'.join(COLOURS)})\?": lambda m: KIND[m[1]] == scene.thing and m[2] == scene.colour,
        rf"Are there ({'|'.join(COUNTS[2:])}) {noun}\?": lambda m: (
            (COUNTS.index(m[1]), KIND[m[2]]) == (scene.count, scene.thing)
        ),
        rf"Is there an? {noun} in the picture\?": lambda m: KIND[m[1]] == scene.thing,
        r"Is the sun in the sky\?": lambda _: scene.sky == "sun",
    }
    for pattern, truth in verdicts.items():
        if found := re.fullmatch(pattern, question):
            return said == ("Yes" if truth(found) else "No") and not untrue_words(answer, scene)
    wanted = {
        rf"How many {noun} are there\?": COUNTS[scene.count],
        rf"What colour (?:is|are) the {noun}\?": scene.colour,
        rf"(?:Is|Are) the {noun} large or small\?": "large" if scene.large else "small",
        r"Is it day or night\?": "night" if scene.ground == "night" else "day",
        r"What is the background like\?": scene.field or "never",
    }
    for pattern, word in wanted.items():
        if re.match(pattern, question):
            return word in answer.lower() and not untrue_words(answer, scene)
    return said not in ("Yes", "No") and not untrue_words(answer, scene)


def _ordinal(answer: str) -> int:
    return next(i for i, word in enumerate(ORDER) if word in answer)


def _is_right_yes(question: str, answer: str, scenes: Sequence[Scene]) -> bool:
    first, second = scenes
    if "colour" in question:
        told = re.findall("|".join(COLOURS), answer)
        same, wanted = first.colour == second.colour, [first.colour, second.colour]
    else:
        told = [KIND[word] for word in re.findall("[a-z]+", answer) if word in KIND]
        same, wanted = first.thing == second.thing, [first.thing, second.thing]
    return answer.startswith("Yes, " if same else "No, ") and told == (wanted[:1] if same else wanted)


def is_right_across(question: str, answer: str, scenes: Sequence[Scene]) -> bool:
    """Whether an answer about several pictures is right; an unknown question is an error."""
    if question.startswith(("What does each picture", "Describe the pictures")):
        told = [part for part in re.split(r"(?=The (?:first|second|third|fourth) )", answer) if part]
        parts = [re.sub(r"^The \w+ ", "", part) for part in told]
        return len(parts) == len(scenes) and not any(map(untrue_words, parts, scenes))
    if question.startswith("Which picture has the most"):
        chosen = scenes[_ordinal(answer)]
        rest = answer.split("with ")[1]
        return not untrue_words(rest, chosen) and sum(scene.count >= chosen.count for scene in scenes) == 1
    if question.startswith("How many things"):
        return answer.lower().startswith(NUMBERS[sum(scene.count for scene in scenes)] + ":")
    if question.startswith("How many of the pictures show plain shapes"):
        return answer.lower() == NUMBERS[sum(scene.thing in SHAPES for scene in scenes)] + "."
    if found := re.fullmatch(r"Which picture shows (an?|\w+) (\w+)\?", question):
        fitting = [scene.thing == KIND[found[2]] for scene in scenes]
        return sum(fitting) == 1 and fitting[_ordinal(answer)]
    if found := re.fullmatch(r"In which picture is the main thing (\w+)\?", question):
        fitting = [scene.colour == found[1] for scene in scenes]
        return sum(fitting) == 1 and fitting[_ordinal(answer)]
    if question.startswith(("Do both pictures", "Is it the same thing", "Do the things in both")):
        return _is_right_yes(question, answer, scenes)
    raise AssertionError(f"no reading of {question!r}")
