"""Peak memory of a score task does not grow with the part, but for one dict entry per distinct text and image."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ENTRY_BYTES = 150
"""Of a digest and its slot in a dict; flat arrays took 60, and three times as long."""
SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.score.fake_clip import FakeClip, score_part
from tests.score.parts import document, jpeg, write_part
from vila_data.core.store import Store
from vila_data.score.clip import ClipConfig
mode, folder, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = Store(folder)
from vila_data.core.layout import Part
part = Part("docs", 0, "meta.jsonl", "meta", 0, count, count, "inputs-0")
if mode == "write":
    items = [document(f"d{{i}}", [f"sentence {{i}} {{j}}" for j in range(20)], [jpeg(2 * i), jpeg(2 * i + 1)], [0, 1])
             for i in range(count)]
    write_part(store, items)
else:
    config = ClipConfig(model="fake", embeddings=True)
    receipt = score_part(store, part, None, FakeClip(64, 256, count=False), config, "in")
    status = Path("/proc/self/status").read_text()  # ru_maxrss would carry the parent's
    facts = dict(receipt.counts, kib=int(status.split("VmHWM:")[1].split()[0]))
    print(json.dumps(facts))
"""


@pytest.mark.slow
def test_ten_times_the_records_in_the_same_memory(tmp_path: Path) -> None:
    found = {}
    script = SCRIPT.format(tests=str(Path(__file__).parents[2]))
    for count in (1_000, 10_000):
        for mode in ("write", "score"):
            command = [sys.executable, "-c", script, mode, str(tmp_path / str(count)), str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[count] = json.loads(done.stdout)
        assert found[count]["images_scored"] == 2 * count
        assert found[count]["distinct_texts"] == 20 * count
    print(found)
    distinct = [sum(found[count][f"distinct_{what}"] for what in ("images", "texts")) for count in (1_000, 10_000)]
    entries_kib = (distinct[1] - distinct[0]) * ENTRY_BYTES / 1024
    assert found[10_000]["kib"] <= 1.1 * found[1_000]["kib"] + entries_kib, found
