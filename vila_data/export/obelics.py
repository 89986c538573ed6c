"""Parquet for Hugging Face `datasets`: documents in OBELICS' form with their images, pairs with an image column.

The schema carries `datasets`' own features, so `load_dataset("parquet", …)` gives decoded images. Files are named as on the
hub, train-00000-of-00004.parquet, and `load_dataset(FOLDER)` finds them too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

import pyarrow as pa
import pyarrow.parquet as pq

from vila_data.core.receipts import Outputs
from vila_data.export.format import Content, ExportCounts, ExportedSet, JpegImage, Part, cut_as_shards
from vila_data.shard.config import View

_GROUP_ROWS: Final = 100  # as `datasets` writes images
_GROUP_BYTES: Final = 32 << 20
_JPEG: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_IMAGE: Final = {"_type": "Image"}


def _value(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "_type": "Value"}


def _list(feature: dict[str, Any]) -> dict[str, Any]:
    return {"feature": feature, "_type": "Sequence"}  # which versions before and after 4 of `datasets` read


def _schema(columns: dict[str, tuple[pa.DataType, dict[str, Any]]]) -> pa.Schema:
    features = {name: feature for name, (_, feature) in columns.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([(name, kind) for name, (kind, _) in columns.items()], metadata=metadata)


_TEXT: Final = (pa.string(), _value("string"))
_TEXTS: Final = (pa.list_(pa.string()), _list(_value("string")))
DOCUMENTS: Final = _schema(
    {
        "images": _TEXTS,  # URLs, null where there is a text
        "texts": _TEXTS,  # null where there is an image; of the same length
        "pictures": (pa.list_(_JPEG), _list(_IMAGE)),  # null where there is a text; of the same length
        "metadata": _TEXT,  # JSON: a list of the same length, what is known of each image
        "general_metadata": _TEXT,  # JSON: the page URL, corpus, record and sample
    }
)
PAIRS: Final = _schema(
    {
        "image": (_JPEG, _IMAGE),
        "text": _TEXT,
        "url": _TEXT,
        "width": (pa.int32(), _value("int32")),
        "height": (pa.int32(), _value("int32")),
        "similarity": (pa.float32(), _value("float32")),
        "sha256": _TEXT,
        "key": _TEXT,
        "corpus": _TEXT,
        "record_id": _TEXT,
    }
)


class Obelics:
    """See the module."""

    name: ClassVar[str] = "obelics"
    views: ClassVar[tuple[View, ...]] = ("interleaved", "pairs")
    revision: ClassVar[int] = 1

    def __init__(self, view: View) -> None:
        self._schema, self._row = (PAIRS, _pair) if view == "pairs" else (DOCUMENTS, _document)

    def cut(self, set_name: str, samples: Sequence[int], shards: int | None) -> list[Part]:
        """One file per shard, or as many as requested."""
        return cut_as_shards(set_name, samples, shards)

    def write_part(self, part: Part, contents: Iterator[Content], files: Outputs) -> ExportCounts:
        """One parquet file, in row groups of at most 100 rows and about 32 MiB of images."""
        counts = ExportCounts()
        rows: list[dict[str, Any]] = []
        held = 0
        path = files.path(part.file(f"train-{part.index:05d}-of-{part.of:05d}.parquet"))
        with pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=False) as writer:
            for content in contents:
                rows.append(self._row(content))
                held += sum(len(image.jpeg) for image in content.images)
                counts.add(content)
                if len(rows) == _GROUP_ROWS or held >= _GROUP_BYTES:
                    writer.write_table(pa.Table.from_pylist(rows, self._schema))
                    rows, held = [], 0
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, self._schema))
        return counts

    def finish(self, exported: ExportedSet, files: Outputs) -> None:
        """Nothing: the files are the dataset."""


def _document(content: Content) -> dict[str, Any]:
    pieces = list(content.reading())
    general = {
        "url": content.source_url,
        "corpus": content.corpus,
        "record_id": content.record_id,
        "sample_id": content.key,
    }
    return {
        "images": [piece.url if isinstance(piece, JpegImage) else None for piece in pieces],
        "texts": [piece if isinstance(piece, str) else None for piece in pieces],
        "pictures": [_image(piece) if isinstance(piece, JpegImage) else None for piece in pieces],
        "metadata": _json(
            [_known(piece, content.source_url) if isinstance(piece, JpegImage) else None for piece in pieces]
        ),
        "general_metadata": _json(general),
    }


def _pair(content: Content) -> dict[str, Any]:
    (image,) = content.images
    return {
        "image": _image(image),
        "text": content.texts[0],
        "url": image.url,
        "width": image.width,
        "height": image.height,
        "similarity": image.similarity,
        "sha256": image.sha256,
        "key": content.key,
        "corpus": content.corpus,
        "record_id": content.record_id,
    }


def _image(image: JpegImage) -> dict[str, Any]:
    return {"bytes": image.jpeg, "path": image.member}


def _known(image: JpegImage, document_url: str | None) -> dict[str, Any]:
    return {
        "document_url": document_url,
        "src": image.url,
        "rendered_width": image.width,
        "rendered_height": image.height,
        "sha256": image.sha256,
        "similarity": image.similarity,
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
