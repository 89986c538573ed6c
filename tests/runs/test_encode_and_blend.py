"""Encoding and blending as stages of a run: what is done again, what is refused, and when."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

import vila_data as vd
from tests.faults.kills import tree
from vila_data.cli.tables import print_run
from vila_data.core.store import Store
from vila_data.encode.tokenizer import load_tokenizer
from vila_data.encode.tokens import open_tokens
from vila_data.explore.inspection import check, inspect
from vila_data.recipe.recipe import Recipe, load_recipe
from vila_data.runs.plan_summary import summarize_plan

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SAMPLE = RECIPES.parent / "shards" / "sample"


def recipe(stand_ins: Path, *settings: str) -> Recipe:
    """Instruction tuning on the sample: local files only, so a run takes a second."""
    return load_recipe(RECIPES / "vila_sft.yaml", stand_ins, settings)


@pytest.fixture(scope="module")
def finished(sample_stand_ins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft") / "run"
    vd.run(recipe(sample_stand_ins), out, runner="local")
    return out


def tokens_of(out: Path) -> dict[str, str]:
    return {path: digest for path, digest in tree(out).items() if path.startswith("tokens/")}


def test_encodings_lie_side_by_side(finished: Path, sample_stand_ins: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = tokens_of(out)
    report = vd.run(recipe(sample_stand_ins, "pack.template=llama_2"), out, runner="local")
    after = tokens_of(out)
    assert len(after) == 2 * len(before)
    assert {path: after[path] for path in before} == before
    again = vd.run(recipe(sample_stand_ins), out, runner="local")
    assert tokens_of(out) == after
    assert report.tokens["chat"]["tokens"] != again.tokens["chat"]["tokens"]
    assert list(check(out)) == []


def test_token_files_of_another_encoding_or_tokenizer_are_not_taken(
    finished: Path, sample_stand_ins: Path, tmp_path: Path
) -> None:
    other = tmp_path / "tokenizer"
    shutil.copytree(SAMPLE / "tokenizer", other)
    config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<unk>"}))
    there = load_tokenizer(str(SAMPLE / "tokenizer")).fingerprint
    for setting in ("pack.sequence_length=2048", f"pack.tokenizer={other}"):
        changed = recipe(sample_stand_ins, setting)
        with pytest.raises(vd.UsageError, match=rf"set 'chat' has no token files of .*found: tokenizer {there}, enc"):
            vd.run(changed, finished, runner="local", only="blend")


def test_new_shards_are_encoded_again_and_old_token_files_go(
    finished: Path, sample_stand_ins: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    small = recipe(sample_stand_ins, "shards.chat.max_mb=1")
    report = vd.run(small, out, runner="local")
    shards = len(report.sets["chat"].shards)
    assert shards > 1
    assert sum(path.endswith(".arrow") and "/chat/" in path for path in tokens_of(out)) == shards
    vd.run(recipe(sample_stand_ins), out, runner="local")
    assert tokens_of(out) == tokens_of(finished)
    assert list(check(out)) == []


def test_blending_again_tells_the_same(finished: Path, sample_stand_ins: Path) -> None:
    first = vd.run(recipe(sample_stand_ins), finished, runner="local")
    again = vd.run(recipe(sample_stand_ins), finished, runner="local", only="blend")
    assert first.blend and again.blend == first.blend and again.tokens == first.tokens


def test_what_is_committed_is_not_encoded_again(finished: Path, sample_stand_ins: Path) -> None:
    arrows = {path: path.stat().st_mtime_ns for path in finished.rglob("*.arrow")}
    vd.run(recipe(sample_stand_ins), finished, runner="local")
    assert arrows and {path: path.stat().st_mtime_ns for path in finished.rglob("*.arrow")} == arrows


def test_a_lost_token_file_is_made_again(finished: Path, sample_stand_ins: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    lost = next(out.rglob("flan-000000.arrow"))
    lost.unlink()
    assert any("flan-000000.arrow: missing" in problem for problem in check(out))
    vd.run(recipe(sample_stand_ins), out, runner="local")
    assert tree(out) == tree(finished)


def test_a_flipped_byte_of_a_token_file_is_found(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    file = next(out.rglob("chat-000000.arrow"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert any("sha256" in problem and file.name in problem for problem in check(out))


def test_a_tokenizer_that_cannot_do_it_is_refused_before_any_download(sample_stand_ins: Path, tmp_path: Path) -> None:
    bad = tmp_path / "tokenizer"
    shutil.copytree(SAMPLE / "tokenizer", bad)
    config = json.loads((bad / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (bad / "tokenizer_config.json").write_text(json.dumps(config))
    (bad / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(vd.UsageError, match="has no chat template"):
        vd.run(
            recipe(sample_stand_ins, f"pack.tokenizer={bad}", "pack.template=chat"), tmp_path / "run", runner="local"
        )
    assert not (tmp_path / "run").exists()


def test_lengths_that_are_gone_are_made_again(finished: Path, sample_stand_ins: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (lengths,) = out.glob("tokens/*/chat/*/lengths.parquet")
    lengths.unlink()
    (problem,) = check(out)
    assert problem.endswith(
        "chat/" + lengths.parent.name + "/lengths.parquet: missing: run the recipe again to encode it"
    )
    vd.run(recipe(sample_stand_ins), out, runner="local")
    assert tokens_of(out) == tokens_of(finished) and list(check(out)) == []


def test_samples_longer_than_a_sequence_are_cut_and_counted(
    sample_stand_ins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = recipe(sample_stand_ins, "pack.sequence_length=160", "pack.tokens_per_image=64")
    report = vd.run(short, tmp_path / "run", runner="local")
    chat = report.tokens["chat"]
    failed = sum(count for name, count in chat.items() if name.startswith("failed:"))
    assert chat["samples_cut"] > 0 and failed > 0 and chat["sequences"] + failed == chat["samples"]
    print_run(Console(width=250), inspect(tmp_path / "run")[1])
    cut, of = chat["tokens_cut"], chat["tokens_cut"] + chat["tokens"]
    row = rf"chat +│ tokens truncated, in {chat['samples_cut'] + failed:,} samples +│ +{cut / of:.1%} │ +{cut:,} │ +{of:,} tokens"
    assert re.search(row, capsys.readouterr().out)
    told = json.loads((tmp_path / "run" / "run.json").read_text())["tokens"]["chat"]["left_out"]
    assert (told[0]["unit"], told[0]["count"], told[0]["of"], told[0]["share"]) == ("tokens", cut, of, cut / of)
    assert told[0]["change"] == "pack.sequence_length or pack.tokens_per_image"
    assert sum(entry["count"] for entry in told if entry["reason"]) == failed
    assert report.blend is not None
    tokens = open_tokens(Store(str(tmp_path / "run")), "chat", short.pack, load_tokenizer(short.pack.tokenizer))  # type: ignore[arg-type,union-attr]
    lengths = tokens.lengths().column("tokens").to_pylist()
    assert max(lengths) <= 160 and lengths.count(0) == failed
    in_packs = {source["label"]: source["samples"] for source in report.blend["sources"]}
    assert in_packs["chat"] == chat["sequences"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("pack.tokens_per_image",), "write dotted.key=value"),
        (("name.first=x",), "name is not a mapping"),
        (("pack.semantics=papers",), "pack.semantics: found 'papers'; did you mean paper"),
        (("pack.micro_batch=8",), "micro_batch is only valid with semantics: released_code"),
        (("blend.sources.0.weight=0",), "blend.sources.0.weight: weight must be greater than 0, found 0"),
        (("blend.sources.7.weight=1",), "blend.sources.7 does not exist"),
        (("pack.tokens_per_image=5000",), "do not fit into a sequence of 4096 tokens"),
        (("blend.sources=[{shards: docs, weight: 1}]",), "no shard set 'docs'"),
        (("blend.sources=[{shards: chat, weight: -1}]",), "weight must be greater than 0, found -1"),
        (("blend.weight_unit=rows",), "found 'rows'"),
        (
            ("pack.semantics=released_code", "pack.micro_batch=8"),
            "vila_sft.yaml:36 blend: semantics released_code takes",
        ),
        (("pack=null",), "`blend` needs a `pack` section"),
        (("blend.sources=[{shards: chat, weight: 1, subset: {include_ids: no.txt}}]",), "file 'no.txt' does not exist"),
    ],
)
def test_a_wrong_setting_is_one_clear_message(sample_stand_ins: Path, settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(vd.UsageError) as caught:
        recipe(sample_stand_ins, *settings)
    assert message in str(caught.value)


def test_stand_ins_must_have_every_kind(tmp_path: Path) -> None:
    (tmp_path / "few.yaml").write_text("corpora: {mmc4: {files: [x.jsonl]}}\n")
    with pytest.raises(
        vd.UsageError, match=r"vila_sft.yaml:\d+ corpora.chat.kind: .*few.yaml has no substitute for corpus kind 'll"
    ):
        load_recipe(RECIPES / "vila_sft.yaml", tmp_path / "few.yaml")


def test_a_subset_that_leaves_nothing_is_an_error(finished: Path, sample_stand_ins: Path) -> None:
    nothing = recipe(sample_stand_ins, 'blend.sources=[{shards: chat, weight: 1, subset: {where: "n_images > 99"}}]')
    with pytest.raises(vd.UsageError, match=r"subset 'n_images > 99' keeps no sample of set 'chat'"):
        vd.run(nothing, finished, runner="local", only="blend")


def test_a_list_that_leaves_nothing_out_is_an_error(finished: Path, sample_stand_ins: Path, tmp_path: Path) -> None:
    """Published ids are not record_ids: held-out rows would be trained on without a word."""
    (tmp_path / "held_out.txt").write_text("000000033471\n")
    source = f"{{shards: chat, weight: 1, subset: {{exclude_ids: {tmp_path}/held_out.txt}}}}"
    with pytest.raises(vd.UsageError, match=r"held_out.txt: none of its 1 ids is a record_id in set 'chat'"):
        vd.run(recipe(sample_stand_ins, f"blend.sources=[{source}]"), finished, runner="local", only="blend")
    (tmp_path / "held_out.txt").write_text("chat-000000001\nelsewhere-000000001\n")
    report = vd.run(recipe(sample_stand_ins, f"blend.sources=[{source}]"), finished, runner="local", only="blend")
    assert report.blend is not None
    assert report.blend["sources"][0]["samples"] == report.tokens["chat"]["sequences"] - 1


def test_the_released_order_and_packs(finished: Path, sample_stand_ins: Path, tmp_path: Path) -> None:
    sources = (
        "blend.sources=[{shards: chat, weight: 1}, {shards: vflan, weight: 1}, {shards: flan, weight: 1, repeat: 2}]"
    )
    released = recipe(sample_stand_ins, "pack.semantics=released_code", "pack.micro_batch=4", sources)
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    report = vd.run(released, out, runner="local")
    assert report.blend is not None
    samples = {source["label"]: source["samples"] for source in report.blend["sources"]}
    in_sets = {name: report.tokens[name]["sequences"] // 4 * 4 for name in samples}
    assert samples == {"chat": in_sets["chat"], "vflan": in_sets["vflan"], "flan": 2 * in_sets["flan"]}
    packs = report.blend["packs"]
    assert packs["samples"] / 4 <= packs["packs"] < packs["samples"]


def test_a_subset_says_what_it_took(finished: Path, sample_stand_ins: Path, tmp_path: Path) -> None:
    rows = vd.open_shards(finished / "shards" / "chat")
    listed = [sample.json["source"]["record_id"] for sample in rows][:7]
    (tmp_path / "held_out.txt").write_text("\n".join([*listed, "nobody-000000001"]))
    sources = f"blend.sources=[{{shards: chat, weight: 1, subset: {{exclude_ids: {tmp_path}/held_out.txt}}}}]"
    report = vd.run(recipe(sample_stand_ins, sources), finished, runner="local", only="blend")
    assert report.blend is not None
    assert report.blend["subsets"] == [{"name": "chat", "samples": len(rows), "kept": len(rows) - 7, "ids_not_met": 1}]
    assert report.blend["packs"]["samples"] == len(rows) - 7


def test_a_share_that_is_not_the_recipes_is_told_with_its_subset(finished: Path, sample_stand_ins: Path) -> None:
    sources = 'blend.sources=[{shards: chat, weight: 3, subset: {where: "text_chars > 60"}}, {shards: flan, weight: 1}]'
    changed = recipe(sample_stand_ins, sources)
    report = vd.run(changed, finished, runner="local", only="blend")
    assert report.blend is not None
    (subset,) = report.blend["subsets"]
    chat, flan = report.blend["warnings"]
    assert (chat["source"], chat["recipe"], flan["recipe"]) == ("chat", 0.75, 0.25)
    assert f"its subset keeps {subset['kept']:,} of {subset['samples']:,} samples" in chat["text"]
    assert "blend.sources.0.subset" in chat["change"] and "blend.sources.0.repeat" in flan["change"]
    value = json.loads((finished / "run.json").read_text())["blend"]
    assert value["warnings"] == report.blend["warnings"]
    assert value["sources"][0]["of_whole"]["actual"] == value["sources"][0]["actual"] == chat["actual"]
    planned = [node for node in summarize_plan(changed, finished)["children"][-1]["children"] if "warning" in node]
    assert [node["warning"] for node in planned] == value["warnings"]
    assert planned[0]["label"] == f"warning: {chat['text']}"


def test_room_left_by_rule_is_given_no_reason(finished: Path, sample_stand_ins: Path) -> None:
    improved = vd.run(recipe(sample_stand_ins), finished, runner="local", only="blend").blend
    assert improved is not None and "unfilled_tokens" in improved["packs"]
    paper = vd.run(recipe(sample_stand_ins, "pack.semantics=paper"), finished, runner="local").blend
    assert paper is not None and "unfilled_tokens" not in paper["packs"]
