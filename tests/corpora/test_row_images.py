"""Local images: found below their root, under another suffix, or not there."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vila_data.core.errors import StorageError
from vila_data.core.image_formats import ImageError
from vila_data.corpora.images import below, read_image

PIECES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "/", "/data", "x.jpg"]), max_size=6).map("/".join)


@given(PIECES, st.sampled_from(["/data/images", "/data/images/", "/", "s3://bucket/images", "memory://images"]))
def test_no_path_leaves_its_root(path: str, root: str) -> None:
    found = below(root, path)
    if found is not None:
        assert ".." not in found.split("/")
        assert found.startswith(root.rstrip("/") + "/")


def test_paths_inside_the_root() -> None:
    assert below("/data", "a/../b.jpg") == "/data/b.jpg"
    assert below("/data", "/data/b.jpg") == "/data/b.jpg"
    assert below("/", "/data/b.jpg") == "/data/b.jpg"
    assert below("s3://bucket/images", "a/b.jpg") == "s3://bucket/images/a/b.jpg"


@pytest.mark.parametrize(
    ("there", "asked"), [("1.gif", "1.jpg"), ("1.jpg", "1.gif"), ("1.png", "1.jpg"), ("1.jpg", "1.webp")]
)
def test_another_suffix_of_the_same_name(there: str, asked: str, tmp_path: Path) -> None:
    (tmp_path / there).write_bytes(b"picture")
    assert read_image(str(tmp_path / asked), 100) == b"picture"


def test_the_name_itself_goes_first(tmp_path: Path) -> None:
    for name in ("1.jpg", "1.png"):
        (tmp_path / name).write_bytes(name.encode())
    assert read_image(str(tmp_path / "1.png"), 100) == b"1.png"


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("none.jpg", "none", "folder.jpg", "file/inside.jpg", "pipe.jpg", "x" * 300 + ".jpg", "\ud800.jpg"):
        with pytest.raises(ImageError) as caught:
            read_image(str(tmp_path / name), 100)
        assert caught.value.error_class == "no_file"


def test_too_large(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"x" * 101)
    with pytest.raises(ImageError) as caught:
        read_image(str(tmp_path / "1.jpg"), 100)
    assert caught.value.error_class == "too_large"
    assert len(read_image(str(tmp_path / "1.jpg"), 101)) == 101


def test_images_at_a_url() -> None:
    with fsspec.open("memory://pictures/a/1.png", "wb") as stream:
        stream.write(b"picture")
    assert read_image("memory://pictures/a/1.jpg", 100) == b"picture"
    with pytest.raises(ImageError):
        read_image("memory://pictures/a/2.jpg", 100)
    with pytest.raises(ImageError):
        read_image("memory://pictures/a/1.jpg", 3)


def test_a_disk_that_fails_is_an_error_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(StorageError, match=r"1\.jpg: cannot be read"):
        read_image(str(tmp_path / "1.jpg"), 100)
