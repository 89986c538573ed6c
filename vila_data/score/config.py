"""Recipe values of kind clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from vila_data.score.scorer import Column, Needs, NotThere, Scorer

if TYPE_CHECKING:
    from vila_data.score.clip import Clip

_COSINE = (-1.0, 1.0)


class ClipConfig(Scorer):
    """Similarity of images and texts by CLIP, SigLIP or a model like them.

    kind:       clip.
    backend:    "transformers" (a hub id or a folder) or "onnx" (a folder with image.onnx,
                text.onnx, tokenizer.json and config.json).
    model:      hub id, or path of the folder.
    revision:   commit, tag or branch of a hub model; null is the default branch.
    batch_size: items a call on a GPU. On a CPU each item runs alone, whatever this says.
    embeddings: also write the vectors in clip-retrieval's layout.
    """

    cost: ClassVar[float] = 1.0
    needs: ClassVar[Needs] = "pixels and texts"
    harmless: ClassVar[frozenset[str]] = frozenset({"batch_size", "model"})
    switches: ClassVar[frozenset[str]] = frozenset({"embeddings"})
    on_demand: ClassVar[bool] = True  # a turn is no caption

    kind: Literal["clip"] = "clip"
    backend: Literal["transformers", "onnx"] = "transformers"
    model: str = Field(min_length=1)
    revision: str | None = None
    batch_size: int = Field(default=256, ge=1, le=65536)
    embeddings: bool = False

    def columns(self) -> tuple[Column, ...]:
        """The columns of core.schemas.SCORE_IMAGES."""
        index, many = pa.int32(), pa.list_(pa.float32())
        return (
            Column("similarity", pa.float32(), "cosine", _COSINE, "to its caption, or to its published sentence"),
            Column("matched_text_index", index, "", None, "sentence that was published for it"),
            Column("assigned_text_index", index, "", None, "sentence of a fresh linear assignment", joint=True),
            Column("assigned_similarity", pa.float32(), "cosine", _COSINE, "to that sentence", joint=True),
            Column("similarities", many, "cosine", _COSINE, "to every text of its document"),
        )

    def fingerprint(self) -> str:
        """See Scorer; equals `open().fingerprint`."""
        from vila_data.score.clip import clip_fingerprint

        return clip_fingerprint(self)

    def open(self) -> Clip:
        """See Scorer."""
        from vila_data.score.clip import load_clip

        return load_clip(self)

    def located(self, folder: Path) -> ClipConfig:
        """See Scorer; what is no folder is the id of a hub model, unless it cannot be one."""
        if (folder / self.model).is_dir():
            return self.model_copy(update={"model": str((folder / self.model).resolve())})
        if self.backend == "onnx" or self.model.startswith((".", "/")):
            raise NotThere("model", self.model, "folder")
        return self
