"""Recipe values under `filter:`: thresholds of the rules, with overrides a corpus."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vila_data.core.config import StrictModel


class ImageRules(StrictModel):
    """Rules on one image; None switches a rule off.

    min_side_px:      shorter side of the picture as served, in pixels.
    aspect_ratio:     [lowest, highest] width / height, inclusive.
    min_similarity:   CLIP cosine to its caption or sentence, inclusive.
    exact_duplicates: `drop` keeps the first of equal pictures in the corpus's order,
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

    on_missing_image: what an image that could not be downloaded means for its document
                      (VILA drops the document; MMC4 itself drops the image).
    reassign:         match images to sentences afresh instead of as published.
    """

    min_images: Annotated[int, Field(ge=0)] = 1
    max_images: Annotated[int, Field(ge=1)] | None = None
    on_missing_image: Literal["drop_document", "drop_image"] = "drop_document"
    reassign: bool = False


class Rules(StrictModel):
    """The rules for one corpus."""

    images: ImageRules = ImageRules()
    documents: DocumentRules = DocumentRules()


class FilterConfig(Rules):
    """The rules for all corpora, and what differs for some."""

    per_corpus: dict[str, Rules] = Field(default_factory=dict)

    def rules_for(self, corpus: str) -> Rules:
        """The rules for one corpus: the common ones, with the keys that `per_corpus` sets put in their place."""
        own = self.per_corpus.get(corpus)
        if own is None:
            return Rules(images=self.images, documents=self.documents)
        return Rules(
            images=ImageRules(**(self.images.model_dump() | own.images.model_dump(exclude_unset=True))),
            documents=DocumentRules(**(self.documents.model_dump() | own.documents.model_dump(exclude_unset=True))),
        )
