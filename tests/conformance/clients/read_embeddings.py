"""Read a folder of embeddings with embedding-reader, and ask clip-retrieval's search service over indexes made of it.

    python read_embeddings.py OUT EMBEDDINGS INDEXES QUERY

QUERY: a .npy with one vector. Writes JSON: versions; rows as the reader joins them, and its sums of vectors; the sums of the vectors that the indexes hold; the
service's answers, 100 or all, over the image index and over the text index.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

import faiss
import numpy
from clip_retrieval.clip_back import ClipResource, KnnService, load_metadata_provider
from embedding_reader import EmbeddingReader

COLUMNS = ["key", "record_id", "image_index", "caption", "url", "image_path"]


def read(folder: str, kind: str) -> dict[str, Any]:
    """All rows through the reader, in its batches."""
    reader = EmbeddingReader(
        embeddings_folder=f"{folder}/{kind}",
        metadata_folder=f"{folder}/metadata",
        meta_columns=COLUMNS,
        file_format="parquet_npy",
    )
    rows, sums = [], []
    for vectors, table in reader(batch_size=64, show_progress=False):
        rows += [[record[name] for name in COLUMNS] for record in table.to_dict("records")]
        sums += vectors.astype("f8").sum(axis=1).tolist()
    return {"count": int(reader.count), "dimension": int(reader.dimension), "rows": rows, "sums": sums}


def held(indexes: str, modality: str) -> list[float]:
    """Sums of the vectors of an index, in its order."""
    index = faiss.read_index(f"{indexes}/{modality}.index")
    return [float(index.reconstruct(number).astype("f8").sum()) for number in range(index.ntotal)]


def answers(indexes: str, modality: str, query: Any, count: int) -> list[dict[str, Any]]:
    """The nearest rows, nearest first."""
    index = faiss.read_index(f"{indexes}/{modality}.index")
    provider, _ = load_metadata_provider(indexes, False, False, index, COLUMNS, False)
    resource = ClipResource(
        device="cpu",
        model=None,
        preprocess=None,
        tokenizer=None,
        model_txt_mclip=None,
        safety_model=None,
        violence_detector=None,
        metadata_provider=provider,
        image_index=index,
        text_index=index,
        ivf_old_to_new_mapping=None,
        columns_to_return=COLUMNS,
        metadata_is_ordered_by_ivf=False,
        aesthetic_embeddings=None,
    )
    service = KnnService(clip_resources={"ours": resource})
    found: list[dict[str, Any]] = service.query(
        embedding_input=query.tolist(),
        modality=modality,
        num_images=count,
        num_result_ids=count,
        deduplicate=False,
    )
    return found


def main(out: str, folder: str, indexes: str, query: str) -> None:
    vector = numpy.load(query)
    found = {
        "version": version("clip-retrieval"),
        "reader": version("embedding-reader"),
        "image": read(folder, "img_emb"),
        "text": read(folder, "text_emb"),
    }
    count = min(100, len(found["image"]["rows"]))
    found["held"] = {modality: held(indexes, modality) for modality in ("image", "text")}
    found["answers"] = {modality: answers(indexes, modality, vector, count) for modality in ("image", "text")}
    with open(out, "w") as stream:
        json.dump(found, stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
