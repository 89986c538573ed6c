"""On a GPU: the share of a training step that is spent waiting for data, with the reference trainer at full speed.

    python benchmarks/gpu_stream.py [--photos DIR] [--data DIR] --json benchmarks/results/gpu_stream.json
    python benchmarks/gpu_stream.py --model tiny --recipe RECIPE --run-dir RUN --attention sdpa      # elsewhere: that it runs

A CLIP ViT-L/14-336 and a Llama of 1.1 billion weights, both random, stage `pretrain`, bf16, packs of 4,096 tokens of
documents, pairs and conversations with 576 tokens an image. Steps after the tenth count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO / "examples"), str(REPO / "benchmarks")]

import torch  # noqa: E402
from stream_data import made_run  # noqa: E402
from train_vila import Options, Trainer  # noqa: E402


def measured(options: Options, warm: int) -> dict[str, Any]:
    trainer = Trainer(options)
    try:
        steps = list(trainer.steps())[warm:]
        loader = trainer.loader.metrics()
    finally:
        trainer.close()
    seconds = sum(step.seconds for step in steps)
    return {
        "steps": len(steps),
        "step_s": statistics.median(step.seconds for step in steps),
        "waited_share": sum(step.waited * step.seconds for step in steps) / seconds,
        "tokens_per_s": sum(step.tokens for step in steps) / seconds,
        "images_per_s": sum(step.images for step in steps) / seconds,
        "workers_blocked_s": loader.stage_seconds["blocked"],
        "slowest_stage": loader.slowest_stage,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--data", type=Path, help="where the run is made, and kept")
    parser.add_argument("--recipe", help="with --run-dir: a run of your own")
    parser.add_argument("--run-dir")
    parser.add_argument("--model", default="vila-1b-shape")
    parser.add_argument("--attention", default="flash", choices=("flash", "flex", "sdpa"))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--num-workers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--warm", type=int, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.data or Path(scratch)
        if given.recipe is None:
            made_run(folder, given.photos)
        options = Options(
            recipe=given.recipe or str(folder / "mixed.yaml"),
            run_dir=given.run_dir or str(folder),
            stage="pretrain",
            model=given.model,
            batch_size=given.batch_size,
            epochs=4,
            attention=given.attention,
            bf16=torch.cuda.is_available(),
            num_workers=given.num_workers,
            stop_after=given.steps + given.warm,
        )
        found = measured(options, given.warm)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    conditions = {
        "device": name,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.write_text(json.dumps({"conditions": conditions, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
