"""Text-only tasks that a generator can answer rightly: sums in words, spelling, order, opposites, reading, writing.

Each kind of lesson is a function of the generator given; prompts and answers are from
a few words to about 150.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from questions import ORDINALS, Exchange, capital, counted, noun, number_words, plural
from scenes import (
    COLOURS,
    OBJECTS,
    SETTING_WORDS,
    SHAPES,
    THINGS,
    Scene,
    filler,
    random_scene,
    scene_location,
    scene_nouns,
    sentence,
)

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("large", "small"), ("old", "young"), ("light", "dark"), ("early", "late"), ("open", "closed"),
    ("full", "empty"), ("left", "right"), ("top", "bottom"), ("fast", "slow"), ("loud", "quiet"), ("wet", "dry"),
    ("first", "last"), ("day", "night"), ("long", "short"), ("black", "white"), ("easy", "hard"), ("near", "far"),
)  # fmt: skip
WORLD = (
    ("What colour is the grass of a meadow?", "Green."),
    ("What colour is the open sea by day?", "Blue."),
    ("What colour is a field after a snowfall?", "White."),
    ("What colour is the sand of a desert?", "Yellow."),
    ("What colour are the clouds on a fine day?", "White."),
    ("What colour is the sun in a child's drawing?", "Yellow."),
    ("When do the stars come out: by day or by night?", "By night."),
    ("Where does a boat belong: on the sea or in the desert?", "On the sea."),
    ("Which of these can fly: a kite, a cup or a house?", "A kite."),
    ("What do you open when it rains: an umbrella or a mushroom?", "An umbrella."),
    ("Which colour do you get from red and yellow paint?", "Orange."),
    ("Which colour do you get from blue and yellow paint?", "Green."),
    ("Which colour do you get from red and blue paint?", "Purple."),
    ("Which colour do you get from red and white paint?", "Pink."),
    ("How many corners has a triangle?", "Three."),
    ("How many corners has a square?", "Four."),
    ("How many points has the star on these pages?", "Five."),
    ("How many sides has a square?", "Four."),
    ("How many wheels has a car?", "Four."),
    ("Is a ring round or square?", "Round."),
)  # fmt: skip
WORDS = tuple(
    dict.fromkeys(
        (*THINGS, *COLOURS, "library", "kitchen", "workshop", "museum", "garden", "morning", "evening", "winter",
         "bread", "coffee", "letter", "paper", "teacher", "window", "picture", "river", "mountain", "island",
         "candle", "bridge", "animal", "number", "village", "pencil", "orchard", "zebra", "yacht", "jacket")
    )
)  # fmt: skip


@dataclass(frozen=True)
class Lesson:
    """A task with its right answer; `task` names the kind."""

    task: str
    prompt: str
    completion: str


def _numbers(rng: Random, low: int, high: int) -> tuple[int, int]:
    return rng.randint(low, high), rng.randint(low, high)


def _addition(rng: Random) -> Exchange:
    first, second = _numbers(rng, 2, 60)
    a, b, total = number_words(first), number_words(second), number_words(first + second)
    name, things, colour = rng.choice(NAMES), plural(rng.choice(OBJECTS)), rng.choice(tuple(COLOURS))
    return rng.choice(
        (
            (f"What is {a} plus {b}?", f"{capital(total)}."),
            (f"Add {b} to {a}.", f"{capital(a)} plus {b} is {total}."),
            (
                f"{name} has {a} {colour} {things} and gets {b} more. How many {things} does {name} have now?",
                f"{name} has {total} {things} now, because {a} plus {b} is {total}.",
            ),
        )
    )


def _subtraction(rng: Random) -> Exchange:
    second, rest = _numbers(rng, 2, 40)
    a, b, left = number_words(second + rest), number_words(second), number_words(rest)
    things, place = plural(rng.choice(OBJECTS)), rng.choice(("on the table", "in the garden", "at the fair"))
    return rng.choice(
        (
            (f"What is {a} minus {b}?", f"{capital(left)}."),
            (f"Take {b} away from {a}.", f"{capital(a)} minus {b} is {left}."),
            (
                f"There were {a} {things} {place}. By evening {b} of them were gone. How many {things} were left?",
                f"There were {left} {things} left, because {a} minus {b} is {left}.",
            ),
        )
    )


def _multiplication(rng: Random) -> Exchange:
    first, second = _numbers(rng, 2, 12)
    a, b, total = number_words(first), number_words(second), number_words(first * second)
    things = plural(rng.choice(THINGS))
    return rng.choice(
        (
            (f"What is {a} times {b}?", f"{capital(total)}."),
            (
                f"A book has {a} pages, and each of them shows {b} {things}. How many {things} are in the book?",
                f"There are {total} {things} in the book, because {a} times {b} is {total}.",
            ),
        )
    )


def _alphabetical(rng: Random) -> Exchange:
    words = rng.sample(WORDS, rng.randint(3, 9))
    ask = rng.choice(("Put these words in alphabetical order", "Sort these words from A to Z"))
    return f"{ask}: {', '.join(words)}.", ", ".join(sorted(words))


def _from_small_to_large(rng: Random) -> Exchange:
    numbers = rng.sample(range(1, 100), rng.randint(3, 8))
    told, answer = (", ".join(map(number_words, some)) for some in (numbers, sorted(numbers)))
    return f"Sort these numbers from small to large: {told}.", answer


def _backwards(rng: Random) -> Exchange:
    word = rng.choice(WORDS)
    if rng.random() < 0.4:
        return f'Spell "{word}" backwards, letter by letter.', "-".join(reversed(word))
    return f'Write "{word}" backwards.', word[::-1]


def _letters(rng: Random) -> Exchange:
    word = rng.choice(WORDS)
    return rng.choice(
        (
            (f'How many letters has the word "{word}"?', f"{capital(number_words(len(word)))}."),
            (f'What is the first letter of "{word}"?', f"{word[0].upper()}."),
            (f'What is the last letter of "{word}"?', f"{word[-1].upper()}."),
            (f'Write "{word}" in capital letters.', word.upper()),
        )
    )


def _opposite(rng: Random) -> Exchange:
    (known, other), (asked, answer) = (rng.sample(pair, 2) for pair in rng.sample(OPPOSITES, 2))
    return rng.choice(
        (
            (f'What is the opposite of "{asked}"?', f"{capital(answer)}."),
            (f"Complete: {known} is to {other} as {asked} is to …", f"{capital(answer)}."),
        )
    )


def _world(rng: Random) -> Exchange:
    return rng.choice(WORLD)


def _plural(rng: Random) -> Exchange:
    thing = rng.choice(THINGS)
    return f'What is the plural of "{thing}"?', f"{capital(plural(thing))}."


def _odd_one_out(rng: Random) -> Exchange:
    odd, others = rng.choice(((SHAPES, OBJECTS), (OBJECTS, SHAPES)))
    chosen = rng.choice(odd)
    words = [*rng.sample(others, 3), chosen]
    rng.shuffle(words)
    kind = "a shape" if chosen in SHAPES else "no shape"
    return f"Which word does not belong: {', '.join(words)}?", f"{capital(chosen)}, because only that is {kind}."


def _next_in_order(rng: Random) -> Exchange:
    order = rng.choice((DAYS, MONTHS))
    place = rng.randrange(len(order))
    if rng.random() < 0.5:
        return f"What comes after {order[place - 1]}?", f"{order[place]}."
    return f"What comes before {order[place]}?", f"{order[place - 1]}."


def _sequence(rng: Random) -> Exchange:
    start, step = rng.randint(1, 20), rng.randint(2, 9)
    told = ", ".join(number_words(start + step * i) for i in range(rng.randint(3, 5)))
    following = start + step * len(told.split(", "))
    return f"How does this go on: {told} …", f"{capital(number_words(following))}."


def _scenes(rng: Random, count: int) -> list[Scene]:
    """Scenes of different things."""
    return [random_scene(rng, (thing,)) for thing in rng.sample(THINGS, count)]


def _page(scenes: list[Scene], fillers: int, rng: Random) -> str:
    """A page about scenes, in their order, with other sentences between."""
    texts = [sentence(scene, rng) for scene in scenes]
    for _ in range(fillers):
        texts.insert(rng.randint(0, len(texts)), filler(rng))
    return " ".join(texts)


def _reading(rng: Random) -> Exchange:
    scenes = _scenes(rng, rng.randint(2, 4))
    page = _page(scenes, rng.randint(1, 8), rng)
    scene = rng.choice(scenes)
    verb = "is" if scene.count == 1 else "are"
    asked = scene.thing if rng.random() < 0.5 else rng.choice(THINGS)
    told = any(other.thing == asked for other in scenes)
    question, answer = rng.choice(
        (
            (f"What colour {verb} the {noun(scene)}?", f"The {noun(scene)} {verb} {scene.colour}."),
            (f"How many {plural(scene.thing)} does it tell of?", f"{capital(counted(scene))}."),
            (f"Does it tell of any {plural(asked)}?", "Yes." if told else "No."),
        )
    )
    return f"{page}\n\nRead this page. {question}", answer


def _summary(rng: Random) -> Exchange:
    scenes = _scenes(rng, rng.randint(2, 5))
    page = _page(scenes, rng.randint(3, 7), rng)
    shown = [counted(scene) for scene in scenes]
    return f"What are the pictures of this page about?\n\n{page}", (
        f"They are about {', '.join(shown[:-1])} and {shown[-1]}."
    )


def _writing(rng: Random) -> Exchange:
    scenes = _scenes(rng, rng.randint(2, 5))
    wanted = [counted(scene) for scene in scenes]
    prompt = f"Write a page of a picture book about {', '.join(wanted[:-1])} and {wanted[-1]}."
    return prompt, _page(scenes, rng.randint(2, 9), rng)


def _story(rng: Random) -> Exchange:
    first, second = _scenes(rng, 2)
    name = rng.choice(NAMES)
    prompt = (
        f"Go on with this story and come back to its beginning.\n\n{name} woke up early and saw "
        f"{scene_nouns(first, rng)} {scene_location(first, rng)}. {filler(rng)}"
    )
    parts = [
        f"Then {name} walked on and found {scene_nouns(second, rng)} {scene_location(second, rng)}.",
        *[filler(rng) for _ in range(rng.randint(0, 6))],
        f"In the end {name} went back to the {noun(first)}, which {'was' if first.count == 1 else 'were'} still there.",
    ]
    return prompt, " ".join(parts)


def _steps(rng: Random) -> Exchange:
    scene = _scenes(rng, 1)[0]
    background = (
        f"Paint a {scene.ground} {scene.field} background"
        if scene.is_field
        else f"Paint what it looks like {SETTING_WORDS[scene.ground][0]}"
    )
    steps = [
        f"The {ORDINALS[0]} step: {background}.",
        f"The {ORDINALS[1]} step: Choose {scene.colour} paint for the {noun(scene)}.",
        f"The {ORDINALS[2]} step: Draw {counted(scene)}, rather {'large' if scene.large else 'small'}.",
        f"The {ORDINALS[3]} step: Let it dry until the {rng.choice(('morning', 'evening', 'afternoon'))}.",
    ]
    return f"How do I paint {scene_nouns(scene, rng)} {scene_location(scene, rng)}?", "\n".join(steps)


SHORT: tuple[Callable[[Random], Exchange], ...] = (
    _addition, _subtraction, _multiplication, _alphabetical, _from_small_to_large, _backwards, _letters, _opposite,
    _world, _plural, _odd_one_out, _next_in_order, _sequence,
)  # fmt: skip
LONG: tuple[Callable[[Random], Exchange], ...] = (_reading, _summary, _writing, _story, _steps)


def lesson(rng: Random, long_share: float = 0.4) -> Lesson:
    """One task; the share of tasks with pages of text is about `long_share`."""
    kind = rng.choice(LONG if rng.random() < long_share else SHORT)
    return Lesson(kind.__name__.strip("_"), *kind(rng))


def lessons(count: int, rng: Random, long_share: float = 0.4) -> list[Lesson]:
    """`count` tasks, no prompt twice."""
    found: dict[str, Lesson] = {}
    while len(found) < count:
        one = lesson(rng, long_share)
        found.setdefault(one.prompt, one)
    return list(found.values())


def talk(turns: int, rng: Random) -> list[Exchange]:
    """A text-only conversation of `turns` exchanges about one thing after the other."""
    found: list[Exchange] = []
    for one in lessons(turns, rng, long_share=0.25):
        thanks = (
            rng.choice(("Thank you. ", "Good. ", "And now: ", "", "")) if found else rng.choice(("Hello. ", "", ""))
        )
        found.append((thanks + one.prompt, one.completion))
    return found
