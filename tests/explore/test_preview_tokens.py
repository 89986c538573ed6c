"""Training sequences and packs in previews: those of the stream; those of damaged token files are omitted and counted."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import vila_data as vd
from tests.loader.made_stream import opened
from tests.made_preview import streamed_run
from vila_data.cli import main
from vila_data.core.errors import DataError
from vila_data.core.tables import IGNORED
from vila_data.explore.preview import Choice, PreviewReport, preview
from vila_data.explore.preview.records import Highlight, RecordLocation
from vila_data.explore.preview.run_source import RunSource


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with token files and a blend of docs, pairs and chat; not scored."""
    return streamed_run(tmp_path_factory.mktemp("stream"))


@pytest.fixture
def run(streamed: Path, tmp_path: Path) -> Path:
    shutil.copytree(streamed, tmp_path / "run")
    return tmp_path / "run"


def file_of(run: Path, name: str) -> Path:
    return next(run.glob(f"tokens/*/{name.split('-')[0].split('/')[0]}/*/{name.split('/')[-1]}"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nothing_in_it(path: Path) -> None:
    path.write_bytes(b"")


def other_ids(path: Path) -> None:
    """Ids that no tokenizer has; the file is whole."""
    with pa.ipc.open_file(path.read_bytes()) as file:
        table = file.read_all()
    column = table.schema.get_field_index("ids")
    ids = table.column("ids").combine_chunks()
    wrong = pa.ListArray.from_arrays(ids.offsets, pa.array([-5] * len(ids.values), pa.int32()))
    table = table.set_column(column, table.schema.field("ids"), wrong)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def page_of(path: Path, out: Path) -> tuple[PreviewReport, str]:
    return preview(path, out, Choice(count=30, packs=9)), out.read_text()


def test_trained_tokens_are_the_answers(streamed: Path) -> None:
    source = RunSource(vd.open_run(streamed))
    talk = source.corpora.index("talk")
    locations = [RecordLocation(talk, part, row) for part in (0, 1) for row in range(20)]
    sequences = source.sequences(locations)
    assert len(sequences) > 30
    fates: set[str] = set()
    for location, found in sequences.items():
        record = source.record(location, Highlight(), found)
        assert record.sequence is found and found.shard_set == "chat"
        assert (found.fate == "ok") == (found.tokens > 0)
        fates.add(found.fate)
        trained = [piece.text for piece in found.pieces if piece.trained]
        asked = "".join(piece.text for piece in found.pieces if not piece.trained)
        images = [piece.image for piece in found.pieces if piece.image is not None]
        if found.tokens and not (found.truncated or found.more or found.images_omitted):
            answers = [text for text, role in zip(record.texts, record.roles, strict=True) if role == "gpt"]
            said = "".join(trained)
            for answer in answers:
                words = answer.replace("<image>", "").split()
                assert all(word in said for word in words), (answer, said)
            assert images == list(range(len(record.images)))
            assert "USER:" in asked and "USER:" not in said
        assert (found.trained > 0) == (found.tokens > 0)
    assert len(fates) > 1


def test_packs_are_those_of_the_stream(streamed: Path, tmp_path: Path) -> None:
    packs, shard_sets, missing = RunSource(vd.open_run(streamed)).token_files.packs(9)
    assert len(packs) == 9 and shard_sets == ("docs", "pairs", "chat") and not missing
    with opened(streamed.parent) as loader:
        for number, (pack, batch) in enumerate(zip(packs, loader, strict=False)):
            assert pack.number == number + 1 and pack.length == batch.labels.shape[1] == 512
            labels = np.asarray(batch.labels[0])
            mask = np.zeros(512, np.bool_)
            segments = np.zeros(512, np.int64)
            at = 0
            for sample_number, sample in enumerate(pack.samples, 1):
                for first, stop in sample.trained:
                    mask[at + first : at + stop] = True
                segments[at : at + sample.tokens] = sample_number
                at += sample.tokens
            shifted = np.flatnonzero(labels != IGNORED)
            assert np.array_equal(np.flatnonzero(mask), shifted)
            assert np.array_equal(np.asarray(batch.segments[0]) > 0, segments > 0)
    report = preview(streamed, tmp_path / "page.html", Choice(packs=9))
    assert report.packs == 9 and (tmp_path / "page.html").read_text().count('class="card pack"') == 9


def test_tokens_without_their_tokenizer_are_left_out_with_a_note(streamed: Path, tmp_path: Path) -> None:
    shutil.copytree(streamed, tmp_path / "run")
    path = tmp_path / "run" / "recipe.lock.yaml"
    text = path.read_text()
    line = next(line for line in text.splitlines() if "tokenizer:" in line)
    path.write_text(text.replace(line, f"    tokenizer: {tmp_path / 'gone'}"))
    report = preview(tmp_path / "run", tmp_path / "page.html", Choice(packs=2))
    assert report.packs == 0 and report.records == 151
    assert any("Tokens are not shown" in note for note in report.notes)
    assert any("Packs are not shown" in note for note in report.notes)


# Damaged token files


@pytest.mark.parametrize("damage", [Path.unlink, cut, nothing_in_it, other_ids])
def test_a_damaged_token_file_costs_its_sequences_and_packs(
    run: Path, streamed: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    whole, _ = page_of(streamed, tmp_path / "whole.html")
    damage(file_of(run, "chat-000000.arrow"))
    with pytest.warns(
        UserWarning, match=r"1 token file damaged or missing: .* not shown; first error: .*chat-0"
    ) as said:
        report, text = page_of(run, tmp_path / "page.html")
    assert len([one for one in said if "token file" in str(one.message)]) == 1
    assert text.count("1 token file damaged or missing") == 1
    lost = report.token_faults
    assert lost["files"] == 1 and lost["sequences"] > 0 and report.packs + lost["packs"] == 9 == whole.packs
    assert report.ids == whole.ids and report.pictures == whole.pictures and not whole.token_faults
    assert sum("damaged or missing" in note for note in report.notes) == 1


def test_what_is_not_lost_is_shown(run: Path, tmp_path: Path) -> None:
    file_of(run, "chat-000000.arrow").unlink()
    with pytest.warns(UserWarning, match="token file"):
        _, text = page_of(run / "shards" / "chat", tmp_path / "chat.html")
    assert "chat-000000" in text
    report, _ = page_of(run / "shards" / "docs", tmp_path / "docs.html")
    assert not report.token_faults


@pytest.mark.parametrize("name", ["chat/manifest.json", "chat/lengths.parquet"])
def test_damaged_facts_of_a_set(run: Path, tmp_path: Path, name: str) -> None:
    """Its manifest is needed for its sequences, lengths for packs alone."""
    cut(file_of(run, name))
    if name.endswith("manifest.json"):
        with pytest.warns(UserWarning, match=r"1 token file damaged or missing; first error: .*manifest\.json"):
            report, _ = page_of(run, tmp_path / "page.html")
    else:
        report, _ = page_of(run, tmp_path / "page.html")
    assert report.records == 30 and report.packs == 0
    assert any("Packs are not shown" in note and "chat" in note for note in report.notes)


def test_a_run_itself_damaged_is_an_error(run: Path, tmp_path: Path) -> None:
    cut(next(run.glob("filter/*/*.parquet")))
    with pytest.raises(DataError):
        preview(run, tmp_path / "page.html")


def test_the_command_says_it_once_on_stderr(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(message: Any, category: Any, file: str, line: int, *rest: Any) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, file, line))

    file_of(run, "chat-000000.arrow").unlink()
    command = ["vila-data", "preview", str(run), "--out", str(tmp_path / "page.html"), "--count", "9"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main() sets it
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        monkeypatch.setattr(warnings, "showwarning", written)
        with pytest.raises(SystemExit, match="0"):
            main()
    lines = [line for line in capsys.readouterr().err.splitlines() if "damaged or missing" in line]
    assert len(lines) == 1 and lines[0].startswith("vila-data: 1 token file damaged or missing: ")
    assert "Warning" not in lines[0] and (tmp_path / "page.html").exists()
    assert "Warning" in warnings.formatwarning("another's", DeprecationWarning, __file__, 1)
