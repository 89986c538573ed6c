"""Read an interleaved set with NeMo Curator's reader, as a pipeline on Ray Data.

    python read_nemo_curator.py OUT SET_FOLDER

Writes JSON: the version; each sample as [id, {"source", "texts": [[place, text]], "images": [[place, type, sha256]]}].
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.metadata import version
from typing import Any

from nemo_curator.backends.ray_data import RayDataExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.interleaved.io import InterleavedWebdatasetReader


def main(out: str, folder: str) -> None:
    pipeline = Pipeline(name="read")
    pipeline.add_stage(
        InterleavedWebdatasetReader(file_paths=folder, sample_id_field="sample_id", materialize_on_read=True)
    )
    samples: dict[str, dict[str, Any]] = {}
    for batch in pipeline.run(RayDataExecutor()) or []:
        for row in batch.to_pyarrow().to_pylist():
            assert row["materialize_error"] is None, row
            sample = samples.setdefault(row["sample_id"], {"source": [], "texts": [], "images": []})
            if row["modality"] == "metadata":
                sample["source"].append(row["source"])
            elif row["modality"] == "text":
                sample["texts"].append([row["position"], row["text_content"]])
            else:
                digest = hashlib.sha256(row["binary_content"]).hexdigest()
                sample["images"].append([row["position"], row["content_type"], digest])
    with open(out, "w") as stream:
        json.dump({"version": version("nemo-curator"), "samples": sorted(samples.items())}, stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
