"""What encoding left out of a set's sequences: the same on the terminal, in the report and on the card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from vila_data.core.readable import many

NO_SEQUENCE: Final = "without a sequence"
_LENGTH: Final = "pack.sequence_length"
_LENGTHS: Final = f"{_LENGTH} or pack.tokens_per_image"
_TEMPLATE: Final = "the tokenizer's chat template, or pack.template"
_KEYS: Final = {
    "too_many_images": "pack.max_images_per_pack",
    "template_refused": _TEMPLATE,
    "answer_not_found": _TEMPLATE,
    "image_not_placed": _TEMPLATE,
    "no_text": "the data: nothing in these samples can be trained",
}


@dataclass(frozen=True)
class LeftOut:
    """One thing that encoding left out of a set: `count` of the `of` `unit` that there were before.

    what: in words; reason: the fate of samples without a sequence, with the template's own words after a colon, "" else
    and for all of them together; change: which keys of the recipe change it, "" where the rows of the reasons say it.
    """

    what: str
    unit: str
    reason: str
    count: int
    of: int
    change: str

    def as_dict(self) -> dict[str, Any]:
        """The fields and `share`, for JSON."""
        return asdict(self) | {"share": self.count / self.of if self.of else 0.0}


def left_out(counts: Mapping[str, Any]) -> list[LeftOut]:
    """Tokens, images and samples of a set that are in no sequence; empty if there are none. counts: the set's entry under `tokens` in run.json.

    Tokens before the cut are those of samples that the template wrote, without images that were left out before.
    """
    failed = {key.split(":", 1)[1]: count for key, count in counts.items() if key.startswith("failed:") and count}
    found = []
    length = _LENGTHS if counts["images"] + counts["images_left_out"] else _LENGTH
    if counts["tokens_cut"]:
        samples = counts["samples_cut"] + sum(failed.get(fate, 0) for fate in ("too_long", "too_many_images"))
        change = length + " or pack.max_images_per_pack" * bool(failed.get("too_many_images"))
        cut, what = counts["tokens_cut"], f"tokens cut, in {many(samples, 'samples')}"
        found.append(LeftOut(what, "tokens", "", cut, cut + counts["tokens"], change))
    if counts["images_left_out"]:
        images = counts["images_left_out"]
        change = f"pack.max_images_per_document, {_LENGTHS}"
        found.append(LeftOut("images left out", "images", "", images, images + counts["images"], change))
    if len(failed) > 1:
        found.append(LeftOut(NO_SEQUENCE, "samples", "", sum(failed.values()), counts["samples"], ""))
    for reason, count in sorted(failed.items(), key=lambda entry: (-entry[1], entry[0])):
        fate = reason.split(":", 1)[0]
        change = length if fate == "too_long" else _KEYS.get(fate, "")
        found.append(LeftOut(f"{NO_SEQUENCE}: {reason}", "samples", reason, count, counts["samples"], change))
    return found


def changes(rows: Iterable[LeftOut]) -> Iterator[tuple[str, str]]:
    """(what was left out, the keys that change it), each once."""
    yield from dict.fromkeys(
        (row.reason.split(":", 1)[0] or row.what.split(",", 1)[0], row.change) for row in rows if row.change
    )
