"""Conversations about the sample's pictures, captions of them, and text-only instructions, as their files have them.

Pictures are files of site/, each at most once in a corpus of conversations; `ODD` names the flaws of the last rows.
"""

from __future__ import annotations

import base64
import csv
import io
from functools import cache
from random import Random
from typing import Any

import plan
from draw import draw_scene
from lessons import Lesson, lessons, talk
from PIL import Image
from questions import ORDINALS, Exchange, exchanges_about, exchanges_across
from scenes import Scene, alt_text, scene_location, scene_nouns

MARK = "<image>"
SOUND = ("plain", "slow", "redirect", "busy_once", "limited_once", "unrelated")  # behaviours of whole pictures
ONE_IMAGE, SEVERAL_IMAGES, NO_IMAGE = 73, 42, 30
FAILED = ("image_count", "turn_order", "empty_conversation")  # rows that are no conversations, by their reason
ODD = ("other_suffix", "no_file", *FAILED)  # the last rows of chat.json
CHATS = ONE_IMAGE + SEVERAL_IMAGES + NO_IMAGE + len(ODD)
ALIGNED, CAPTIONED, CAPTIONS_EACH = 120, 20, 5
INSTRUCTIONS, TALKS = 200, 60
VFLAN_ONE, VFLAN_SEVERAL, VFLAN_NONE = 24, 18, 18
VFLAN_SIDE_PX, VFLAN_QUALITY = 64, 70
BRIEFLY = (
    "Describe the picture briefly.",
    "Describe the image concisely.",
    "Give a short caption.",
    "What is this?",
    "Write a brief title for this drawing.",
    "Say in one line what is shown.",
)
Row = dict[str, Any]


@cache
def pictures_of(folder: str) -> tuple[plan.Picture, ...]:
    """The whole pictures under site/`folder`, each once, in the order of the plan."""
    found = {
        link.picture.name: link.picture
        for link in plan.links()
        if link.behaviour in SOUND and link.picture.name.startswith(f"{folder}/")
    }
    return tuple(found.values())


def _shuffled(folder: str, rng: Random) -> list[plan.Picture]:
    pictures = list(pictures_of(folder))
    rng.shuffle(pictures)
    return pictures


def _turns(exchanges: list[Exchange]) -> list[Row]:
    return [
        {"from": role, "value": value} for pair in exchanges for role, value in zip(("human", "gpt"), pair, strict=True)
    ]


def _with_mark(exchanges: list[Exchange], rng: Random) -> list[Exchange]:
    """The exchanges with one image's mark before or after the first question."""
    question, answer = exchanges[0]
    marked = f"{MARK}\n{question}" if rng.random() < 0.75 else f"{question}\n{MARK}"
    return [(marked, answer), *exchanges[1:]]


def _in_one_turn(scenes: list[Scene], rng: Random) -> list[Exchange]:
    """All marks in the first question, in a row or named."""
    (question, answer), *more = exchanges_across(scenes, rng.randint(1, 3), rng)
    named = [f"The {ORDINALS[i]} picture: {MARK}" for i in range(len(scenes))]
    before = rng.choice((f"{MARK}\n" * len(scenes), MARK * len(scenes) + " ", "\n".join(named) + "\n"))
    return [(before + question, answer), *more]


def _turn_by_turn(scenes: list[Scene], rng: Random) -> list[Exchange]:
    """Each picture in a question of its own, then questions about all of them."""
    exchanges: list[Exchange] = []
    for i, scene in enumerate(scenes):
        question = "What does this picture show?" if i == 0 else rng.choice(("And this one?", "What is on the next?"))
        answer = f"It shows {scene_nouns(scene, rng)} {scene_location(scene, rng)}."
        exchanges.append((f"{MARK}\n{question}" if rng.random() < 0.6 else f"{question} {MARK}", answer))
    return exchanges + exchanges_across(scenes, rng.randint(1, 3), rng)


def _chat_rows(pool: list[plan.Picture], rng: Random) -> list[Row]:
    """The sound rows: with one image, with several, without; images are taken from the end of `pool`."""
    rows: list[Row] = []
    for i in range(ONE_IMAGE):
        picture = pool.pop()
        turns = 1 if i % 2 else rng.randint(2, 6)
        exchanges = _with_mark(exchanges_about(picture.scene, turns, rng), rng)
        rows.append({"image": picture.name, "conversations": _turns(exchanges)})
    for i in range(SEVERAL_IMAGES):
        pictures = [pool.pop() for _ in range(rng.choice((2, 2, 2, 3, 3, 4)))]
        scenes = [picture.scene for picture in pictures]
        exchanges = _turn_by_turn(scenes, rng) if i % 3 == 0 else _in_one_turn(scenes, rng)
        rows.append({"image": [picture.name for picture in pictures], "conversations": _turns(exchanges)})
    rows += [{"conversations": _turns(talk(rng.randint(1, 4), rng))} for _ in range(NO_IMAGE)]
    rng.shuffle(rows)
    return rows


def _odd_row(why: str, picture: plan.Picture, rng: Random) -> Row:
    """One row with what `why` names."""
    turns = _turns(_with_mark(exchanges_about(picture.scene, 2, rng), rng))
    image: str | list[str] = picture.name
    if why == "no_file":
        image = "docs/not-there.jpg"
    elif why == "image_count":
        image = [picture.name, picture.name]
    elif why == "turn_order":
        turns = [turns[0], turns[1], turns[3], turns[2]]
    elif why == "empty_conversation":
        turns = []
    return {"image": image, "conversations": turns}


@cache
def chat_rows() -> tuple[Row, ...]:
    """chat.json: LLaVA's form, `image` absent for text-only rows, a list for several images; the odd rows last."""
    rng = Random(f"{plan.SEED} chat")
    other = next(picture for picture in pictures_of("pairs") if picture.name.endswith(".png"))
    pool = _shuffled("docs", rng)
    rows = _chat_rows(pool, rng)
    for why in ODD:
        rows.append(_odd_row(why, other if why == "other_suffix" else pool.pop(), rng))
        if why == "other_suffix":
            rows[-1]["image"] = other.name.replace(".png", ".jpg")
    return tuple({"id": f"chat-{number:04d}", **row} for number, row in enumerate(rows))


@cache
def align_rows() -> tuple[Row, ...]:
    """align.json: one image and its caption, as LLaVA's projector is aligned."""
    rng = Random(f"{plan.SEED} align")
    rows: list[Row] = []
    for number, picture in enumerate(_shuffled("pairs", rng)[:ALIGNED]):
        exchanges = _with_mark([(rng.choice(BRIEFLY), alt_text(picture.scene, rng))], rng)
        rows.append({"id": f"align-{number:04d}", "image": picture.name, "conversations": _turns(exchanges)})
    return tuple(rows)


@cache
def caption_rows() -> tuple[tuple[str, str], ...]:
    """captions.csv: (file, caption), several different captions a picture."""
    rng = Random(f"{plan.SEED} captions")
    rows: list[tuple[str, str]] = []
    for picture in _shuffled("docs", rng)[:CAPTIONED]:
        captions: dict[str, None] = {}
        while len(captions) < CAPTIONS_EACH:
            captions.setdefault(alt_text(picture.scene, rng))
        rows += [(picture.name, caption) for caption in captions]
    return tuple(rows)


def captions_file() -> str:
    """captions.csv, with commas quoted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("image", "caption"))
    writer.writerows(caption_rows())
    return out.getvalue()


@cache
def instruction_lessons() -> tuple[Lesson, ...]:
    """The tasks of instructions.jsonl."""
    return tuple(lessons(INSTRUCTIONS, Random(f"{plan.SEED} instructions")))


@cache
def talk_rows() -> tuple[Row, ...]:
    """talks.json: ShareGPT's form, one to eight exchanges."""
    rng = Random(f"{plan.SEED} talks")
    return tuple(
        {"id": f"talk-{number:04d}", "conversations": _turns(talk(rng.randint(1, 8), rng))} for number in range(TALKS)
    )


def tiny_picture(scene: Scene, rng: Random) -> str:
    """A small square JPEG of a scene, as base64."""
    out = io.BytesIO()
    image: Image.Image = draw_scene(scene, (VFLAN_SIDE_PX, VFLAN_SIDE_PX), rng)
    image.save(out, "JPEG", quality=VFLAN_QUALITY)
    return base64.b64encode(out.getvalue()).decode()


@cache
def vflan_scenes() -> tuple[tuple[Scene, ...], ...]:
    """What the pictures of each row of vflan.jsonl show: scenes of the sample, drawn again."""
    rng = Random(f"{plan.SEED} vflan scenes")
    pool = [picture.scene for picture in _shuffled("pairs", rng)]
    counts = [1] * VFLAN_ONE + [rng.choice((2, 2, 3)) for _ in range(VFLAN_SEVERAL)] + [0] * VFLAN_NONE
    rng.shuffle(counts)
    return tuple(tuple(pool.pop() for _ in range(count)) for count in counts)


@cache
def vflan_rows() -> tuple[Row, ...]:
    """vflan.jsonl: `image` is [], one base64 string, or a list of them; the marks are not in the question."""
    rng = Random(f"{plan.SEED} vflan")
    texts = lessons(VFLAN_NONE, rng)
    rows: list[Row] = []
    for scenes in vflan_scenes():
        images = [tiny_picture(scene, rng) for scene in scenes]
        if not scenes:
            one = texts.pop()
            rows.append({"question": one.prompt, "answer": one.completion, "image": []})
            continue
        ((question, answer),) = (
            exchanges_about(scenes[0], 1, rng) if len(scenes) == 1 else exchanges_across(scenes, 1, rng)
        )
        alone = len(images) == 1 and rng.random() < 0.7
        rows.append({"question": question, "answer": answer, "image": images[0] if alone else images})
    return tuple(rows)


def expected() -> dict[str, dict[str, Any]]:
    """Counts by corpus; rows of chat.json that are no conversations count in `rows` and `failed` alone."""
    chats, talks, vflan = chat_rows(), talk_rows(), vflan_rows()
    sound = chats[: len(chats) - len(FAILED)]
    images = [[row["image"]] if isinstance(row.get("image"), str) else row.get("image", []) for row in sound]
    return {
        "chat": {
            "rows": len(chats),
            "conversations": len(sound),
            "failed": dict.fromkeys(FAILED, 1),
            "without_image": sum(not found for found in images),
            "with_one_image": sum(len(found) == 1 for found in images),
            "with_several_images": sum(len(found) > 1 for found in images),
            "images": sum(map(len, images)),
            "image_outcomes": {"no_file": 1, "ok": sum(map(len, images)) - 1},
            "turns": sum(len(row["conversations"]) for row in sound),
        },
        "align": {"rows": ALIGNED, "images": ALIGNED},
        "captions": {"rows": len(caption_rows()), "files": CAPTIONED},
        "instructions": {"rows": len(instruction_lessons())},
        "talks": {"rows": len(talks), "turns": sum(len(row["conversations"]) for row in talks)},
        "vflan": {
            "rows": len(vflan),
            "without_image": VFLAN_NONE,
            "images": sum(map(len, vflan_scenes())),
        },
    }


def odd_chats() -> dict[str, str]:
    """What is wrong with which row of chat.json, by id."""
    return {row["id"]: why for row, why in zip(chat_rows()[-len(ODD) :], ODD, strict=True)}
