"""The sample's text-only instructions are right: each prompt is worked out again here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import make
from lessons import OPPOSITES, WORLD
from scene_facts import KIND, NUMBERS, SEVERAL
from scenes import COLOURS, OBJECTS, SHAPES

META = make.HERE / "meta"
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
VALUES = {word: number for number, word in enumerate(NUMBERS)}
VALUES |= {word: 10 * number for number, word in enumerate(TENS, start=2)}
VALUES |= {f"{ten}-{one}": VALUES[ten] + VALUES[one] for ten in TENS for one in NUMBERS[1:10]}
VALUES |= {f"one hundred and {word}": 100 + number for word, number in list(VALUES.items()) if 0 < number < 100}
VALUES["one hundred"] = 100
NUMBER = "|".join(sorted(VALUES, key=len, reverse=True))
COURTESIES = ("Thank you. ", "Good. ", "And now: ", "Hello. ")
YEAR = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
WEEK = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
OTHER = dict(OPPOSITES) | {second: first for first, second in OPPOSITES}


def numbers(text: str) -> list[int]:
    return [VALUES[word] for word in re.findall(rf"\b({NUMBER})\b", text.lower())]


def words(text: str) -> list[str]:
    return text.split(": ", 1)[1].rstrip(".?").split(", ")


def neighbour(order: list[str], name: str, step: int) -> str:
    return order[(order.index(name) + step) % len(order)]


def told(page: str) -> list[str]:
    """What a page tells of, in order: things with their number."""
    some = rf"\b(an?|one|two|three|four|five) (?:(?:large|small) )?(?:{'|'.join(COLOURS)}) ({'|'.join(KIND)})\b"
    return [
        f"{number.lower()} {name}" if name == SEVERAL[KIND[name]] and number in NUMBERS[2:6] else KIND[name]
        for number, name in re.findall(some, page)
    ]


def without_article(listed: str) -> list[str]:
    return [re.sub("^an? ", "", item) for item in re.split(", | and ", listed)]


def reading(page: str, question: str, answer: str) -> bool:
    said = page + " "
    if found := re.fullmatch(r"What colour (?:is|are) the (\w+)\?", question):
        return re.search(rf"\b{answer.split()[-1].rstrip('.')} {found[1]}\b", said) is not None
    if re.fullmatch(r"How many \w+ does it tell of\?", question):
        return without_article(answer.rstrip(".").lower())[0] in told(said)
    found = re.fullmatch(r"Does it tell of any (\w+)\?", question)
    assert found is not None, question
    return answer == ("Yes." if KIND[found[1]] in {KIND[item.split()[-1]] for item in told(said)} else "No.")


def story(prompt: str, answer: str) -> bool:
    name, number, thing = re.findall(rf"(\w+) woke up early and saw (\w+)[^.]*? ({'|'.join(KIND)})\b", prompt)[0]
    was = "were" if number in NUMBERS[2:6] else "was"
    return f"went back to the {thing}, which {was} still there." in answer and answer.startswith(f"Then {name} ")


def steps(prompt: str, answer: str) -> bool:
    (thing,) = told(prompt)
    colour = re.findall("|".join(COLOURS), prompt.split(thing.split()[-1])[0])[-1]
    lines = answer.splitlines()
    return len(lines) == 4 and f" {colour} paint" in lines[1] and f" {thing}, " in lines[2]


CHECKS: dict[str, Callable[..., bool]] = {
    r"What is (.+) plus (.+)\?|Add .*": lambda q, a: numbers(a)[-1] == sum(numbers(q)),
    r"\w+ has .* and gets .*": lambda q, a: numbers(a)[0] == sum(numbers(q)),
    r"What is (.+) minus (.+)\?": lambda q, a: numbers(a) == [numbers(q)[0] - numbers(q)[1]],
    r"Take .*": lambda q, a: numbers(a)[-1] == numbers(q)[1] - numbers(q)[0],
    r"There were .* were left\?": lambda q, a: numbers(a)[0] == numbers(q)[0] - numbers(q)[1],
    r"What is (.+) times (.+)\?|A book has .*": lambda q, a: numbers(a)[0] == numbers(q)[0] * numbers(q)[1],
    r"(Put these words in alph|Sort these words).*": lambda q, a: a.split(", ") == sorted(words(q)),
    r"Sort these numbers .*": lambda q, a: numbers(a) == sorted(numbers(q)) and len(numbers(a)) > 2,
    r'Spell "(\w+)" backwards.*': lambda q, a: a.replace("-", "")[::-1] == q.split('"')[1],
    r'Write "(\w+)" backwards\.': lambda q, a: a[::-1] == q.split('"')[1],
    r'How many letters has the word "(\w+)"\?': lambda q, a: numbers(a) == [len(q.split('"')[1])],
    r'What is the first letter of "(\w+)"\?': lambda q, a: a == q.split('"')[1][0].upper() + ".",
    r'What is the last letter of "(\w+)"\?': lambda q, a: a == q.split('"')[1][-1].upper() + ".",
    r'Write "(\w+)" in capital letters\.': lambda q, a: a == q.split('"')[1].upper(),
    r'What is the opposite of "(\w+)"\?': lambda q, a: a.lower() == OTHER[q.split('"')[1]] + ".",
    r"Complete: .*": lambda q, a: a.lower() == OTHER[q.split()[-4]] + "." and OTHER[q.split()[1]] == q.split()[4],
    r'What is the plural of "(\w+)"\?': lambda q, a: a.lower() == SEVERAL[q.split('"')[1]] + ".",
    r"Which word does not belong: .*": lambda q, a: (
        sum(word in SHAPES for word in words(q)) == (1 if a.endswith("a shape.") else 3)
        and (a.split(",")[0].lower() in (SHAPES if a.endswith("a shape.") else OBJECTS))
    ),
    r"What comes (after|before) \w+\?": lambda q, a: (
        a.rstrip(".")
        == neighbour(
            WEEK if q.split()[-1][:-1] in WEEK else YEAR, q.split()[-1][:-1], 1 if q.split()[2] == "after" else -1
        )
    ),
    r"How does this go on: .*": lambda q, a: numbers(a)[0] - numbers(q)[-1] == numbers(q)[-1] - numbers(q)[-2],
    r"(?s)(.*)\n\nRead this page\. (.*)": lambda q, a: reading(*q.split("\n\nRead this page. "), a),
    r"(?s)What are the pictures of this page about\?\n\n(.*)": lambda q, a: (
        without_article(a.removeprefix("They are about ").rstrip(".")) == told(q)
    ),
    r"Write a page of a picture book about (.*)\.": lambda q, a: (
        told(a) == without_article(q.removeprefix("Write a page of a picture book about ").rstrip("."))
    ),
    r"(?s)Go on with this story.*": story,
    r"How do I paint .*": steps,
}


def is_right(prompt: str, answer: str) -> bool:
    """Whether an answer is right; a prompt that no check knows is an error."""
    for courtesy in COURTESIES:
        prompt = prompt.removeprefix(courtesy)
    if prompt in dict(WORLD):
        return dict(WORLD)[prompt] == answer
    checks = [check for pattern, check in CHECKS.items() if re.fullmatch(pattern, prompt)]
    assert len(checks) == 1, prompt
    return checks[0](prompt, answer)


def exchanges(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    turns = [[turn["value"] for turn in row["conversations"]] for row in rows]
    return [pair for values in turns for pair in zip(values[::2], values[1::2], strict=True)]


INSTRUCTIONS = [json.loads(line) for line in (META / "instructions.jsonl").read_text("utf-8").splitlines()]
TALKS = json.loads((META / "talks.json").read_text("utf-8"))
EXPECTED = json.loads((META / "truth.json").read_text("utf-8"))["expected"]


def test_instructions_are_right() -> None:
    assert [row for row in INSTRUCTIONS if not is_right(row["prompt"], row["completion"])] == []


def test_talks_and_text_only_rows_are_right() -> None:
    chats = [row for row in json.loads((META / "chat.json").read_text("utf-8")) if "image" not in row]
    vflan = [json.loads(line) for line in (META / "vflan.jsonl").read_text("utf-8").splitlines()]
    asked = exchanges(TALKS) + exchanges(chats)
    asked += [(row["question"], row["answer"]) for row in vflan if not row["image"]]
    assert len(asked) > 300
    assert [(prompt, answer) for prompt, answer in asked if not is_right(prompt, answer)] == []


def test_a_wrong_answer_is_found() -> None:
    """With the answer of the next row of the same task, few prompts stay right."""
    by_task: dict[str, list[dict[str, str]]] = {}
    for row in INSTRUCTIONS:
        by_task.setdefault(row["task"], []).append(row)
    swapped = [
        (row["prompt"], other["completion"])
        for rows in by_task.values()
        for row, other in pairwise(rows)
        if row["completion"] != other["completion"]
    ]
    found = 0
    for prompt, answer in swapped:
        try:
            found += not is_right(prompt, answer)
        except (IndexError, ValueError, KeyError):
            found += 1
    assert found > 0.9 * len(swapped) > 100


def test_the_worlds_facts_are_answers_and_not_repeated() -> None:
    assert len(dict(WORLD)) == len(WORLD) and all(answer.endswith(".") for _, answer in WORLD)


def test_counts_and_lengths() -> None:
    assert len(INSTRUCTIONS) == EXPECTED["instructions"]["rows"] == 200
    assert len({row["prompt"] for row in INSTRUCTIONS}) == 200
    assert len(TALKS) == EXPECTED["talks"]["rows"] == 60
    assert sum(len(row["conversations"]) for row in TALKS) == EXPECTED["talks"]["turns"]
    lengths = sorted(len(f"{row['prompt']} {row['completion']}".split()) for row in INSTRUCTIONS)
    assert lengths[0] < 6 and 100 < lengths[-1] < 200 and lengths[len(lengths) // 2] < 60
    assert len({row["task"] for row in INSTRUCTIONS}) >= 15
