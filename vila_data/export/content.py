"""A sample as formats see it: texts and pictures, whatever its view, each picture checked against its sha256."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from vila_data.core.errors import DataError
from vila_data.core.records import Role
from vila_data.core.samples import SampleImage
from vila_data.shard.config import View
from vila_data.shard.read import Sample


@dataclass(frozen=True, slots=True)
class Picture(SampleImage):
    """An image of a sample, with its JPEG."""

    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Content:
    """A sample: a pair has one text and one picture; a conversation has a role for each text.

    entries:  texts, and numbers of pictures, in reading order (core.samples.SampleContent).
    members:  {name in the tar: bytes}, in the tar's order.
    """

    key: str
    corpus: str
    record_id: str
    source_url: str | None
    entries: tuple[str | int, ...]
    texts: tuple[str, ...]
    pictures: tuple[Picture, ...]
    roles: tuple[Role, ...]
    system: str | None
    members: dict[str, bytes]

    def reading(self) -> Iterator[str | Picture]:
        """Texts and pictures in reading order."""
        return (self.pictures[entry] if isinstance(entry, int) else entry for entry in self.entries)


def read_content(sample: Sample, view: View) -> Content:
    """What a sample holds.

    Raises:
        DataError: its JSON is not of the view's layout, or a picture is not the one that it names.
    """
    found = sample.content
    if found.view != view:
        raise DataError(f"{sample.shard}: {sample.key}.json: a sample of view {found.view} in a set of view {view}")
    return Content(
        key=sample.key,
        corpus=found.corpus,
        record_id=found.record_id,
        source_url=found.source_url,
        entries=found.entries,
        texts=found.texts,
        pictures=tuple([_picture(sample, image) for image in found.images]),
        roles=found.roles,
        system=found.system,
        members={f"{sample.key}.{suffix}": data for suffix, data in sample.members.items()},
    )


def _picture(sample: Sample, image: SampleImage) -> Picture:
    jpeg = sample.members.get(image.member.removeprefix(f"{sample.key}."), b"")
    if hashlib.sha256(jpeg).hexdigest() != image.sha256:
        raise DataError(
            f"{sample.shard}: {image.member}: missing, or not the picture that its JSON names; run check on the set"
        )
    return Picture(**{name: getattr(image, name) for name in SampleImage.__slots__}, jpeg=jpeg)
