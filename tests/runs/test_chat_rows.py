"""A run over rows that chat templates refuse, reshape or date: one record each, counted, and the same bytes again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

import vila_data as vd
from tests.encode import chat_templates
from tests.faults.kills import tree
from vila_data.encode.tokenizer import load_tokenizer
from vila_data.explore.inspection import check
from vila_data.recipe.recipe import load_recipe

DATED = (
    "{% for m in messages %}{% if loop.first %}{{ strftime_now('%Y-%m-%d') }} {% endif %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
)


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ROWS: list[dict[str, Any]] = [
    {"messages": [said("user", "Hi"), said("assistant", "Hello there.")]},
    {"messages": [said("system", "Be brief."), said("user", "Hi"), said("assistant", "Hello.")]},
    {"messages": [said("user", "What is <image>?"), said("assistant", "A mark, <end_of_turn> too.")]},
    {"messages": [said("user", [{"type": "text", "text": "Q"}]), said("assistant", "A")]},
    {
        "messages": [
            said("user", "q"),
            said("assistant", None, tool_calls=[{"function": {"name": "f", "arguments": '{"a": 1}'}}]),
            said("tool", "one"),
            said("tool", "two"),
            said("assistant", "done"),
        ]
    },
    {"messages": [said("user", [{"type": "video"}]), said("assistant", "x")]},
    {"neither": 1},
]


def recipe(folder: Path, template: str, **pack: Any) -> Any:
    chat_templates.tokenizer_with(template, folder / "tokenizer")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    value = {
        "version": 1,
        "name": "chats",
        "corpora": {"chats": {"kind": "text", "files": ["rows.jsonl"]}},
        "shards": {"chats": {"corpus": "chats", "view": "conversations"}},
        "pack": {
            "tokenizer": str(folder / "tokenizer"),
            "sequence_length": 512,
            "tokens_per_image": 8,
            "template": "chat",
        }
        | pack,
        "blend": {"weight_unit": "samples", "sources": [{"shards": "chats", "weight": 1}]},
    }
    (folder / "recipe.yaml").write_text(json.dumps(value))
    return load_recipe(folder / "recipe.yaml")


def token_table(out: Path) -> pa.Table:
    (file,) = out.rglob("chats-000000.arrow")
    return pa.ipc.open_file(str(file)).read_all()


def test_each_refused_row_costs_itself(tmp_path: Path) -> None:
    report = vd.run(recipe(tmp_path, chat_templates.published()["gemma"]), tmp_path / "run", runner="local")
    assert report.funnel["chats"]["download"]["records"] == {
        "kept": 5,
        "failed:missing_field": 1,
        "failed:wrong_type": 1,
    }
    failed = {key: count for key, count in report.tokens["chats"].items() if key.startswith("failed:")}
    assert failed == {
        "failed:template_refused: System role not supported": 1,
        "failed:template_refused: Conversation roles must alternate user/assistant/user/assistant/...": 1,
    }
    table = token_table(tmp_path / "run")
    assert sorted(table.column("fate").to_pylist()) == ["ok"] * 3 + ["template_refused"] * 2
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    texts = [tokenizer.decode(ids) for ids in table.column("ids").to_pylist() if ids]
    assert any("What is <image>?" in text and "A mark, <end_of_turn> too.<end_of_turn>" in text for text in texts)
    assert list(check(tmp_path / "run")) == []


def test_the_date_of_a_template_stays(tmp_path: Path) -> None:
    """It is that of the day when encoding began: noted, read again on a rerun, and fixed by the recipe if it says so."""
    out = tmp_path / "run"
    chats = recipe(tmp_path, DATED)
    vd.run(chats, out, runner="local")
    before = tree(out)
    (note,) = out.rglob("date.json")
    day = json.loads(note.read_text())["date"]
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    assert all(tokenizer.decode(ids).startswith(day) for ids in token_table(out).column("ids").to_pylist() if ids)
    next(out.rglob("chats-000000.arrow")).unlink()
    vd.run(chats, out, runner="local")
    assert tree(out) == before
    note.write_text(json.dumps({"date": "2020-02-29"}) + "\n")
    next(out.rglob("chats-000000.arrow")).unlink()
    vd.run(chats, out, runner="local")
    assert all(
        tokenizer.decode(ids).startswith("2020-02-29") for ids in token_table(out).column("ids").to_pylist() if ids
    )
    fixed = tmp_path / "fixed"
    vd.run(recipe(tmp_path, DATED, date="2024-07-26"), fixed, runner="local")
    assert not list(fixed.rglob("date.json"))
    assert all(
        tokenizer.decode(ids).startswith("2024-07-26") for ids in token_table(fixed).column("ids").to_pylist() if ids
    )
