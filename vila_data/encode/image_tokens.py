"""How many placeholder tokens an image takes in a sequence: a pure function of its stored width and height.

Lengths, packs and order are made from that number alone, and batches have as many columns, so no image is read for it. A
policy is one class below `ImageTokens`, and one line in POLICIES or an entry point of an installed package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainValidator, SerializeAsAny

from vila_data.core.config import StrictModel
from vila_data.core.errors import DataError
from vila_data.core.plugins import ModelRegistry

Sides = Sequence[int] | NDArray[np.int32]
"""Of images, in pixels."""


class ImageTokens(StrictModel):
    """The value of `pack.image_tokens`, its keys being those of its policy.

    revision: to be raised when the same keys give other numbers: token files are then made again.
    """

    revision: ClassVar[int] = 1

    policy: str

    def count(self, width: int, height: int) -> int:
        """Tokens of an image of that many pixels, at least 1."""
        raise NotImplementedError

    def counts(self, widths: Sides, heights: Sides) -> list[int]:
        """Tokens of each image.

        Raises:
            DataError: an image's size is not known, or the policy gives no number of tokens for it.
        """
        found = []
        for width, height in zip(map(int, widths), map(int, heights), strict=True):
            if width < 1 or height < 1:
                raise DataError(
                    f"image of {width} x {height} pixels: policy {self.policy} needs the size of each image"
                )
            tokens = self.count(width, height)
            if not isinstance(tokens, int) or tokens < 1:
                raise DataError(
                    f"image of {width} x {height} pixels: policy {self.policy} must return an integer of at least 1, "
                    f"found {tokens!r}"
                )
            found.append(tokens)
        return found


class Fixed(ImageTokens):
    """The same number of tokens for every image, whatever its size.

    policy: fixed.
    tokens: 256 (224 px, patch 14), 576 (336 px), 144 (336 px, 2 x 2 down-sampled) …
    """

    policy: Literal["fixed"] = "fixed"
    tokens: Annotated[int, Field(gt=0)]

    def count(self, width: int, height: int) -> int:
        """See ImageTokens."""
        return self.tokens

    def counts(self, widths: Sides, heights: Sides) -> list[int]:
        """See ImageTokens; sizes may be unknown."""
        return [self.tokens] * len(widths)


OWN: Final[dict[str, type[ImageTokens]]] = {
    "fixed": Fixed,
}
POLICIES: Final = ModelRegistry("image_tokens", OWN, ImageTokens, "policy")
"""OWN, and those that installed packages add."""

AnyImageTokens = Annotated[SerializeAsAny[ImageTokens], PlainValidator(POLICIES.validate)]
"""The value of the recipe's `pack.image_tokens`."""
