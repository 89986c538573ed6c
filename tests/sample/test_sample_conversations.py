"""The sample's conversations and captions are well formed, and what they say is true of the pictures."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("onnxruntime")

import clip_scores
import conversations
import make
import numpy as np
from scene_facts import SCENES, is_right, is_right_across, untrue_words

META, SITE = make.HERE / "meta", make.HERE / "site"
EXPECTED = json.loads((META / "truth.json").read_text("utf-8"))["expected"]
ODD = json.loads((META / "truth.json").read_text("utf-8"))["chat"]
CHATS = json.loads((META / "chat.json").read_text("utf-8"))
ALIGNED = json.loads((META / "align.json").read_text("utf-8"))
VFLAN = [json.loads(line) for line in (META / "vflan.jsonl").read_text("utf-8").splitlines()]
SOUND = [row for row in CHATS if row["id"] not in ODD or ODD[row["id"]] in ("other_suffix", "no_file")]
LARGEST_MEAN_DIFFERENCE = 2.0  # of 255: what another version of an encoder may change
ONE_PICTURE_TURNS = ("What does this picture show?", "And this one?", "What is on the next?")


def images_of(row: dict[str, Any]) -> list[str]:
    found = row.get("image", [])
    return found if isinstance(found, list) else [found]


def captions() -> list[tuple[str, str]]:
    with (META / "captions.csv").open(encoding="utf-8", newline="") as file:
        return [(row["image"], row["caption"]) for row in csv.DictReader(file)]


def exchanges(row: dict[str, Any]) -> list[tuple[str, str]]:
    values = [turn["value"] for turn in row["conversations"]]
    return list(zip(values[::2], values[1::2], strict=True))


def unmarked(question: str) -> str:
    """A question without image marks and the words that name them."""
    return re.sub(r"(The \w+ picture: )?<image>", "", question).strip()


# The form


def test_sound_rows_alternate_and_have_a_mark_for_each_image() -> None:
    for row in SOUND + ALIGNED:
        roles = [turn["from"] for turn in row["conversations"]]
        assert roles == ["human", "gpt"] * (len(roles) // 2) and roles, row["id"]
        assert sum(turn["value"].count("<image>") for turn in row["conversations"]) == len(images_of(row)), row["id"]
        assert not any("<image>" in turn["value"] for turn in row["conversations"][1::2])
        assert "image" not in row or row["image"]


def test_odd_rows_are_odd_as_truth_says() -> None:
    by_id = {ODD[row["id"]]: row for row in CHATS if row["id"] in ODD}
    assert by_id.keys() == set(conversations.ODD)
    assert not (SITE / by_id["no_file"]["image"]).exists()
    named = SITE / by_id["other_suffix"]["image"]
    assert named.suffix == ".jpg" and not named.exists() and named.with_suffix(".png").exists()
    assert len(by_id["image_count"]["image"]) == 2
    assert sum(turn["value"].count("<image>") for turn in by_id["image_count"]["conversations"]) == 1
    assert [turn["from"] for turn in by_id["turn_order"]["conversations"]] == ["human", "gpt", "gpt", "human"]
    assert by_id["empty_conversation"]["conversations"] == []


def test_every_other_image_is_a_whole_picture_used_once() -> None:
    used = [name for row in SOUND for name in images_of(row) if row["id"] not in ODD]
    for names in (used, [row["image"] for row in ALIGNED]):
        assert len(names) == len(set(names)) > 100
    for name in {*used, *(row["image"] for row in ALIGNED), *(name for name, _ in captions())}:
        with Image.open(SITE / name) as image:
            assert min(image.size) >= 64 and 0.5 <= image.width / image.height <= 2.0, name


def test_counts_are_those_of_truth() -> None:
    counts = [len(images_of(row)) for row in SOUND]
    wanted = EXPECTED["chat"]
    assert len(CHATS) == wanted["rows"] == conversations.CHATS == 150
    assert len(SOUND) == wanted["conversations"] == wanted["rows"] - sum(wanted["failed"].values())
    assert [counts.count(0), counts.count(1), sum(n > 1 for n in counts)] == [
        wanted[f"{name}"] for name in ("without_image", "with_one_image", "with_several_images")
    ]
    assert {2, 3, 4} <= set(counts) and max(counts) == 4
    assert sum(counts) == wanted["images"] == sum(wanted["image_outcomes"].values())
    assert sum(len(row["conversations"]) for row in SOUND) == wanted["turns"]
    assert sum(not (SITE / name).exists() for row in SOUND for name in images_of(row)) == 2, "no_file, other_suffix"
    assert len(ALIGNED) == EXPECTED["align"]["rows"] == EXPECTED["align"]["images"]
    assert len(captions()) == EXPECTED["captions"]["rows"]
    assert len({name for name, _ in captions()}) == EXPECTED["captions"]["files"]
    images = [[row["image"]] if isinstance(row["image"], str) else row["image"] for row in VFLAN]
    assert [len(VFLAN), sum(map(len, images)), sum(not found for found in images)] == [
        EXPECTED["vflan"][name] for name in ("rows", "images", "without_image")
    ]


def test_marks_stand_in_one_turn_and_in_later_turns() -> None:
    several = [row for row in SOUND if len(images_of(row)) > 1]
    later = sum("<image>" in row["conversations"][2]["value"] for row in several if len(row["conversations"]) > 2)
    assert 5 < later < len(several) - 5
    assert sum(len(row["conversations"]) > 2 for row in SOUND if len(images_of(row)) == 1) > 20


# The truth


def test_answers_about_one_picture_are_true() -> None:
    seen: set[str] = set()
    for row in SOUND:
        name = images_of(row)[0] if len(images_of(row)) == 1 else None
        if name is None or ODD.get(row["id"]) == "no_file":
            continue
        scene = SCENES[name if name in SCENES else name.replace(".jpg", ".png")]
        for question, answer in exchanges(row):
            asked = unmarked(question).removesuffix(" Answer in one word.")
            assert is_right(asked, answer, scene), (row["id"], question, answer, scene)
            assert len(answer.split()) == 1 or not question.endswith("Answer in one word.")
            seen.add(asked.split()[0] + answer.split()[0].strip(".,"))
    assert {"IsYes", "IsNo", "AreYes", "AreNo"} <= seen, "some yes and some no, or this proves nothing"


def test_answers_about_several_pictures_are_true() -> None:
    asked: set[str] = set()
    for row in SOUND:
        scenes = [SCENES[name] for name in images_of(row)] if len(images_of(row)) > 1 else []
        shown = 0
        for question, answer in exchanges(row) if scenes else ():
            shown += question.count("<image>")
            text = unmarked(question)
            if text in ONE_PICTURE_TURNS and shown < len(scenes) + 1 and "<image>" in question:
                assert not untrue_words(answer, scenes[shown - 1]), (row["id"], answer)
            else:
                assert shown == len(scenes)
                assert is_right_across(text, answer, scenes), (row["id"], text, answer)
            asked.add(text[:14])
    assert len(asked) >= 9


def test_answers_about_tiny_pictures_are_true() -> None:
    for row, scenes in zip(VFLAN, conversations.vflan_scenes(), strict=True):
        asked = row["question"].removesuffix(" Answer in one word.")
        assert "<image>" not in asked
        if len(scenes) == 1:
            assert is_right(asked, row["answer"], scenes[0]), row["question"]
        elif scenes:
            assert is_right_across(asked, row["answer"], scenes), row["question"]
        encoded = [row["image"]] if isinstance(row["image"], str) else row["image"]
        for text in encoded:
            image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
            assert (image.format, image.size) == ("JPEG", (64, 64))
    kinds = {(type(row["image"]).__name__, bool(row["image"])) for row in VFLAN}
    assert kinds == {("str", True), ("list", True), ("list", False)}


def test_tiny_pictures_are_what_the_script_draws() -> None:
    for row, drawn in zip(VFLAN, conversations.vflan_rows(), strict=True):
        assert (row["question"], row["answer"]) == (drawn["question"], drawn["answer"])
        assert type(row["image"]) is type(drawn["image"])
        for one, other in zip(tiny_pixels(row), tiny_pixels(drawn), strict=True):
            assert np.abs(one - other).mean() < LARGEST_MEAN_DIFFERENCE


def tiny_pixels(row: dict[str, Any]) -> list[np.ndarray]:
    given = row["image"] if isinstance(row["image"], list) else [row["image"]]
    return [np.asarray(clip_scores.upright_rgb(base64.b64decode(text)), np.float32) for text in given]


def test_captions_are_true() -> None:
    for name, caption in [*captions(), *((row["image"], row["conversations"][1]["value"]) for row in ALIGNED)]:
        assert not untrue_words(caption, SCENES[name]), (name, caption)


def test_the_reading_finds_what_is_untrue() -> None:
    """Each caption is untrue of the picture with any one fact changed that it tells."""
    for name, caption in captions():
        scene = SCENES[name]
        other = "circle" if scene.thing != "circle" else "square"
        assert untrue_words(caption, replace(scene, thing=other))
        assert untrue_words(caption, replace(scene, colour="pink" if scene.colour != "pink" else "red"))
        assert untrue_words(caption, replace(scene, count=scene.count % 5 + 1, place="middle"))
        assert untrue_words(
            caption, replace(scene, ground="dotted" if scene.ground != "dotted" else "plain", field="red")
        )
    assert not is_right("Is the boat red?", "Yes.", replace(scene, thing="boat", colour="blue"))
    assert not is_right("How many boats are there?", "Two", replace(scene, thing="boat", count=3))


def test_the_clip_model_finds_captions_right() -> None:
    told = [
        *captions()[:: conversations.CAPTIONS_EACH],
        *((row["image"], row["conversations"][1]["value"]) for row in ALIGNED),
    ]
    clip = clip_scores.Clip(make.HERE / "clip")
    images = clip.embed_files([(SITE / name).read_bytes() for name, _ in told])
    texts = clip.embed_texts([caption for _, caption in told])
    assert float((images * texts).sum(1).min()) >= clip.config["measured"]["threshold"]["min_similarity"]
    assert float(np.median((images * np.roll(texts, 1, axis=0)).sum(1))) < 0.3


# The files


@pytest.mark.parametrize(
    ("name", "most"),
    [("chat.json", 110), ("align.json", 45), ("talks.json", 100), ("instructions.jsonl", 80), ("vflan.jsonl", 200),
     ("captions.csv", 15), ("obelics.parquet", 40), ("../tokenizer/tokenizer.json", 150)],
)  # fmt: skip
def test_files_are_small(name: str, most: int) -> None:
    path: Path = META / name
    assert 1_000 < path.stat().st_size < most * 1_000
