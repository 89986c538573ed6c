"""Recipe values under `filter:`: thresholds of the rules, with overrides a corpus."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, model_validator

from vila_data.core.config import StrictModel

Condition = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]


class ImageRules(StrictModel):
    """Rules for single images. None disables a rule.

    min_side_px:      minimum shorter side of the original image, in pixels.
    aspect_ratio:     [lowest, highest] width / height, inclusive.
    min_similarity:   minimum CLIP cosine similarity to the caption or matched sentence (inclusive).
    exact_duplicates: `drop` keeps the first of identical images in the corpus's order,
                      among those that pass the other rules.
    """

    min_side_px: Annotated[int, Field(ge=1)] | None = None
    aspect_ratio: Annotated[tuple[float, float], Field()] | None = None
    min_similarity: Annotated[float, Field(ge=-1, le=1)] | None = None
    exact_duplicates: Literal["keep", "drop"] = "keep"

    @model_validator(mode="after")
    def _ordered(self) -> ImageRules:
        if self.aspect_ratio is not None and not 0 < self.aspect_ratio[0] <= self.aspect_ratio[1]:
            raise ValueError("aspect_ratio is [lowest, highest] width / height, above 0")
        return self


class DocumentRules(StrictModel):
    """Rules on a document's images, after the rules on each image.

    min_images:       minimum number of kept images per record.
    max_images:       maximum number of kept images per record.
    on_missing_image: what to do with a document when one of its images could not be downloaded
                      (VILA drops the document; MMC4 itself drops the image).
    on_dropped_image: what to do with a document when a rule dropped one of its images.
    reassign:         recompute the image-sentence assignment instead of using the published one.
    """

    min_images: Annotated[int, Field(ge=0)] = 1
    max_images: Annotated[int, Field(ge=1)] | None = None
    on_missing_image: Literal["drop_document", "drop_image"] = "drop_document"
    on_dropped_image: Literal["drop_document", "drop_image"] = "drop_image"
    reassign: bool = False


_WHOLE: Final = {"on_missing_image": "drop_document", "on_dropped_image": "drop_document", "reassign": False}
"""What always holds for conversations: a mark without its image, or with another's, would be a lie."""


class Rules(StrictModel):
    """The rules for one corpus.

    rules:     conditions on columns of download, scorers and stages, as "clip.similarity > 0.2"; what they do not hold
               for is dropped: the image, or, where all columns are a record's, the record.
    images:    rules on each image.
    documents: rules on each record, from what became of its images.
    """

    rules: Annotated[tuple[Condition, ...], Field(max_length=100)] = ()
    images: ImageRules = ImageRules()
    documents: DocumentRules = DocumentRules()

    def against_conversations(self) -> str | None:
        """The first key under `documents` that is set to what conversations cannot have, or None."""
        found = self.documents.model_dump(exclude_unset=True)
        return next((key for key, value in _WHOLE.items() if found.get(key, value) != value), None)


class FilterConfig(Rules):
    """The rules for all corpora, and what differs for some.

    per_corpus: keys that differ for a corpus, under its name.
    """

    per_corpus: dict[str, Rules] = Field(default_factory=dict)

    def rules_for(self, corpus: str, *, conversations: bool = False) -> Rules:
        """The rules for one corpus: the common ones, with the keys that `per_corpus` sets put in their place.

        A conversation is kept with all its images or not at all. Of the common rules, those that mean
        documents and captions are not for it: one picture stands rightly in several conversations, a
        turn is no caption, and many conversations have no image; `per_corpus` may set them. Conditions
        (`rules`) hold for it as for others.
        """
        own = self.per_corpus.get(corpus, Rules())
        images, documents = self.images.model_dump(), self.documents.model_dump()
        if conversations:
            images |= {"min_similarity": None, "exact_duplicates": "keep"}
            documents |= {"min_images": 0} | _WHOLE
        images |= own.images.model_dump(exclude_unset=True)
        documents |= own.documents.model_dump(exclude_unset=True)
        rules = own.rules if "rules" in own.model_fields_set else self.rules
        return Rules(rules=rules, images=ImageRules(**images), documents=DocumentRules(**documents))
