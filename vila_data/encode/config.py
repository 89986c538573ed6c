"""Recipe values under `pack:`: how samples become token sequences, and how long a sequence is."""

from __future__ import annotations

from datetime import date as Date
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from vila_data.core.config import StrictModel
from vila_data.encode.image_tokens import AnyImageTokens, Fixed, ImageTokens

VILA_IMAGES: Final = 6
"""Images per document in VILA v1.0."""
MICRO_BATCH: Final = 8

Template = Literal["plain", "vicuna_v1", "llama_2", "chat"]
Semantics = Literal["paper", "released_code", "improved"]


class PackConfig(StrictModel):
    """How samples become token sequences.

    tokenizer:               hub id or directory of a Hugging Face tokenizer: tokenizer.json, or tokenizer.model alone.
    sequence_length:         sequence length in tokens, including image tokens.
    tokens_per_image:        256 (224 px, patch 14), 576 (336 px), 144 (336 px, 2 x 2 down-sampled) … Short for
                             `image_tokens: {policy: fixed, tokens: …}`; one of the two is required.
    image_tokens:            number of tokens per image, by a policy that sees its width and height; policies other than
                             `fixed` need semantics `improved`.
    max_images_per_document: further images of a document are omitted. Default: `paper` and `released_code`
                             use 6, as VILA does (docs/sources.md), and `improved` uses all that fit.
    max_images_per_pack:     maximum images per sequence, in addition to the token limit.
    template:                conversation template; `chat` uses the tokenizer's own chat template (docs/conversations.md).
    semantics:               `paper` and `released_code` as VILA does (docs/sources.md); `improved` chooses images by
                             similarity, keeps their places in a conversation and the end token, and never cuts
                             through an image. `released_code` alone trains the first token of each sample.
    images_first:            all images before the text: the paper's ablation.
    micro_batch:             with `released_code`: items packed together (VILA's per-device batch size). Default: 8.
                             An item is a sample, or four pairs.
    date:                    the date that a chat template writes if it writes today's date. Default: the day on
                             which encoding began.
    """

    tokenizer: str
    sequence_length: Annotated[int, Field(gt=1)]
    tokens_per_image: Annotated[int, Field(gt=0)] | None = None
    image_tokens: AnyImageTokens | None = None
    max_images_per_document: Annotated[int, Field(gt=0)] | None = None
    max_images_per_pack: Annotated[int, Field(gt=0)] | None = None
    template: Template = "vicuna_v1"
    semantics: Semantics = "improved"
    images_first: bool = False
    micro_batch: Annotated[int, Field(gt=0)] | None = None
    date: Date | None = None

    @model_validator(mode="after")
    def _fits(self) -> PackConfig:
        if (self.tokens_per_image is None) == (self.image_tokens is None):
            raise ValueError("set tokens_per_image or image_tokens, and not both")
        if isinstance(self.image_tokens, Fixed):  # one form for both ways to write it, so that fingerprints are equal
            self.__dict__.update(tokens_per_image=self.image_tokens.tokens, image_tokens=None)
        if self.image_tokens is not None and self.faithful:
            raise ValueError(
                f"semantics {self.semantics} is VILA's, where every image takes as many tokens: set tokens_per_image, or "
                "semantics: improved"
            )
        if self.tokens_per_image is not None and self.tokens_per_image + 2 > self.sequence_length:
            raise ValueError(
                f"tokens_per_image {self.tokens_per_image}: an image and one word do not fit into a sequence of "
                f"{self.sequence_length} tokens"
            )
        if self.micro_batch is not None and self.semantics != "released_code":
            raise ValueError("micro_batch is only valid with semantics: released_code")
        return self

    @model_serializer(mode="wrap")
    def _as_it_is_set(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit whichever of `tokens_per_image` and `image_tokens` is not set."""
        unset = {key for key in ("tokens_per_image", "image_tokens") if getattr(self, key) is None}
        return {key: value for key, value in dump(self).items() if key not in unset}

    @property
    def images(self) -> ImageTokens:
        """How many tokens an image takes."""
        return self.image_tokens or _fixed(self.tokens_per_image or 0)

    @property
    def faithful(self) -> bool:
        """Whether published behavior is kept, flaws included."""
        return self.semantics != "improved"

    @property
    def samples_per_micro_batch(self) -> int:
        """Items that `released_code` packs together."""
        return self.micro_batch or MICRO_BATCH

    def document_images(self) -> int | None:
        """Maximum images per document under both limits; None: no limit. Fidelity modes ignore the limit per pack."""
        if self.faithful:
            return self.max_images_per_document or VILA_IMAGES
        limits = [limit for limit in (self.max_images_per_document, self.max_images_per_pack) if limit is not None]
        return min(limits) if limits else None


@lru_cache(maxsize=16)
def _fixed(tokens: int) -> Fixed:
    """Cached, since encoding needs it for every sample."""
    return Fixed(tokens=tokens)
