"""Writes the sample web: `site/` (pictures, robots.txt, behaviour.json) and `meta/` (every corpus, truth.json).

    python shards/sample/make.py [--out DIR]

The same bytes every time, for one version of Pillow and pyarrow.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import conversations
import metadata
import pictures
import plan
import pyarrow.parquet as parquet
import webpages

HERE = Path(__file__).resolve().parent
ROBOTS = "User-agent: *\nDisallow: /private/\n"
HUGE_BYTES = 25_000_000
ROWS_A_FILE, ROWS_A_GROUP = 100, 30
FIXED_TIME = (2024, 1, 1, 0, 0, 0)


def behaviour_of(link: plan.Link) -> dict[str, Any] | None:
    """What the server does at a link's path, where that is not just sending the file."""
    name = link.picture.name
    table: dict[str, dict[str, Any]] = {
        "forbidden": {"status": 403},
        "broken_server": {"status": 500},
        "redirect": {"status": 302, "location": f"/{name}"},
        "redirect_loop": {"status": 302, "location": f"/around/{name}"},
        "html": {"type": "image/jpeg"},
        "empty": {"type": "image/jpeg"},
        "huge": {"zeros": HUGE_BYTES, "type": "image/jpeg"},
        "opt_out": {"headers": {"X-Robots-Tag": "noai"}},
        "private": {"file": f"/{name}"},
        "slow": {"delay_s": 0.3},
        "busy_once": {"first": {"status": 503}},
        "limited_once": {"first": {"status": 429, "headers": {"Retry-After": "1"}}},
        "copy": {"file": f"/{name}"},
    }
    return table.get(link.behaviour)


def behaviour_table(links: list[plan.Link]) -> dict[str, dict[str, Any]]:
    """Behaviours by path; `file` says which file of site/ is sent if not the path's own."""
    found = {urlsplit(link.url).path: behaviour_of(link) for link in links}
    return {path: entry for path, entry in sorted(found.items()) if entry is not None}


def file_name(link: plan.Link) -> str:
    """Where a link's file lies under site/."""
    return urlsplit(link.url).path[1:] if link.behaviour in ("drawing", "bomb") else link.picture.name


def link_file(link: plan.Link) -> bytes | None:
    """The bytes of the file a link needs; None where it has none of its own."""
    if link.behaviour == "near_copy":
        return pictures.near_copy_file(link.picture, metadata.original_of(link))
    return pictures.served_file(link)


def documents_by_shard() -> list[list[str]]:
    """The lines of both MMC4 files; the second holds a malformed line and a document of the first once more."""
    lines = [json.dumps(metadata.mmc4_line(document)) for document in plan.documents()]
    half = len(lines) // 2
    first, second = lines[:half], lines[half:]
    second.insert(25, first[plan.DUPLICATE_OF])
    second.insert(30, second[30][: len(second[30]) // 2])
    return [first, second]


def write_meta(out: Path) -> None:
    """The metadata files and truth.json."""
    out.mkdir(parents=True, exist_ok=True)
    zipped, plain = ("".join(line + "\n" for line in lines) for lines in documents_by_shard())
    (out / "docs_shard_1_v2.jsonl").write_text(plain, encoding="utf-8")
    write_zip(out / "docs_shard_0_v2.jsonl.zip", "docs_shard_0_v2.jsonl", zipped.encode())
    rows = [metadata.coyo_row(pair) for pair in plan.pairs()]
    for number, start in enumerate(range(0, len(rows), ROWS_A_FILE)):
        table = metadata.coyo_table(rows[start : start + ROWS_A_FILE])
        parquet.write_table(table, out / f"coyo-sample-{number:04d}.parquet", row_group_size=ROWS_A_GROUP)
    write_texts(out)
    parquet.write_table(webpages.obelics_table(), out / "obelics.parquet", row_group_size=webpages.ROWS_A_GROUP)
    write_json(out / "truth.json", truth())


def write_texts(out: Path) -> None:
    """The corpora with local pictures or none: conversations, captions and instructions."""
    write_json(out / "chat.json", conversations.chat_rows())
    write_json(out / "align.json", conversations.align_rows())
    write_json(out / "talks.json", conversations.talk_rows())
    write_lines(out / "instructions.jsonl", [asdict(lesson) for lesson in conversations.instruction_lessons()])
    write_lines(out / "vflan.jsonl", conversations.vflan_rows())
    (out / "captions.csv").write_text(conversations.captions_file(), encoding="utf-8")


def write_zip(path: Path, member: str, data: bytes) -> None:
    """A zip with one member, whose bytes do not depend on the time or the machine."""
    info = zipfile.ZipInfo(member, FIXED_TIME)
    info.compress_type, info.external_attr, info.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, data, compresslevel=9)


def write_json(path: Path, value: object) -> None:
    """Indented JSON with a final line end."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _image_truth(link: plan.Link) -> dict[str, Any]:
    return {"behaviour": link.behaviour, "outcome": link.outcome, "form": link.picture.form}


def truth() -> dict[str, Any]:
    """What is so, apart from what the metadata says: pairs by id, documents by URL, image references by URL,
    odd conversations by id, counts."""
    pairs, documents, links = plan.pairs(), plan.documents(), plan.links()
    twice = documents[plan.DUPLICATE_OF].links
    document_links = [link for document in documents for link in document.links] + list(twice)
    return {
        "expected": {
            "documents": {
                "lines": len(documents) + 2,
                "valid": len(documents) + 1,
                "distinct": len(documents),
                "malformed": 1,
                "images": len(document_links),
                "with_a_failed_image": sum(any(link.outcome != "ok" for link in d.links) for d in documents),
            },
            "pairs": {"rows": len(pairs), "wrong_captions": sum(pair.caption_of != pair.number for pair in pairs)},
            "image_outcomes": {
                "documents": dict(sorted(Counter(link.outcome for link in document_links).items())),
                "pairs": dict(sorted(Counter(pair.link.outcome for pair in pairs).items())),
            },
            "behaviours": {
                "documents": dict(sorted(Counter(link.behaviour for link in document_links).items())),
                "pairs": dict(sorted(Counter(pair.link.behaviour for pair in pairs).items())),
            },
            **conversations.expected(),
            "obelics": webpages.expected(),
        },
        "pairs": {
            str(pair.id): {
                "right": pair.caption_of == pair.number,
                "caption": plan.own_caption(pair.number),
                **_image_truth(pair.link),
            }
            for pair in pairs
        },
        "documents": {document.url: {"matches": list(document.matches)} for document in documents},
        "images": {link.url: _image_truth(link) for link in links},
        "chat": conversations.odd_chats(),
    }


def write_site(out: Path) -> None:
    """Every file the server sends, robots.txt, and the table of behaviours."""
    links = plan.links()
    for link in links:
        data = link_file(link)
        if data is not None:
            path = out / file_name(link)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    (out / "robots.txt").write_text(ROBOTS, encoding="utf-8")
    write_json(out / "behaviour.json", behaviour_table(links))


def main() -> None:
    """Write site/ and meta/ under the folder given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE)
    out = parser.parse_args().out
    write_site(out / "site")
    write_meta(out / "meta")
    files = [path for path in sorted((out / "site").rglob("*")) if path.is_file()]
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.2f} MB under {out / 'site'}")


if __name__ == "__main__":
    main()
