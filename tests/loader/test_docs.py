"""What README.md and docs/streaming.md show is what the loader does."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import vila_data as vd
from tests.conftest import REPO
from vila_data.core.ranges.prefetch import ReadOptions
from vila_data.loader.batch import PackedBatch
from vila_data.loader.faults import FaultBudget
from vila_data.loader.loader import StreamLoader
from vila_data.loader.pool import Timeout

PAGE = (REPO / "docs" / "streaming.md").read_text()
README = (REPO / "README.md").read_text()


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def calls(text: str) -> list[ast.Call]:
    return [node for block in blocks(text) for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]


def test_the_readme_streams(made_folder: Path) -> None:
    (block,) = (block for block in blocks(README) if "vd.stream(" in block)
    block = block.replace("recipes/sample.yaml", str(made_folder / "recipe.yaml"))
    block = block.replace("runs/demo", str(made_folder / "run"))
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["batch"].pixels.shape[1:] == (3, 336, 336) and names["inputs"].pixel_values is not None
    assert names["state"]["packs"] == names["batch"].packs == 4


def test_every_call_of_the_page_can_be_made() -> None:
    known = set(inspect.signature(vd.stream).parameters)
    found = [call for call in calls(PAGE) if isinstance(call.func, ast.Attribute)]
    streams = [call for call in found if call.func.attr == "stream"]  # type: ignore[attr-defined]
    assert len(streams) >= 2
    for call in streams:
        assert {keyword.arg for keyword in call.keywords} <= known
        for keyword in call.keywords:
            if keyword.arg == "read":
                ReadOptions(**ast.literal_eval(keyword.value))
    homes = {"batch": PackedBatch, "loader": StreamLoader}
    for call in found:
        home = homes.get(getattr(call.func.value, "id", ""))  # type: ignore[attr-defined]
        if home is not None:
            method = inspect.signature(getattr(home, call.func.attr))  # type: ignore[attr-defined]
            named = {keyword.arg: None for keyword in call.keywords}
            method.bind(None, *[None] * len(call.args), **named)


def test_every_field_of_the_page_is_one() -> None:
    fields = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.M)
    named = {name for cell in fields for name in re.findall(r"`(\w+)`", cell)}
    own = set(PackedBatch.__dataclass_fields__)
    assert named <= own and own - named <= {"packs", "tokens", "epoch", "step"}


def test_defaults_of_the_page_are_those_of_the_code() -> None:
    assert FaultBudget().largest_fraction == 0.001 and '`{"fraction": 0.001}` (the default' in PAGE
    assert (Timeout().warn_s, Timeout().fail_s) == (30, 1_800)
    assert '`timeout={"warn_s": 30, "fail_s": 1800}`' in PAGE
