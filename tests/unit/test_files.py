"""What a user has written to a file is there as a whole or not at all, and nobody else reads it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from rlm import files


@pytest.mark.parametrize("there", [False, True])
def test_a_text_is_written_for_its_owner_alone(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "page"
    if there:
        path.write_text("before")
        path.chmod(0o644)
    files.write(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "page"
    path.write_text("before")

    def fail() -> None:
        with files.replacing(path) as part:
            part.write_text("half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "page")
    files.write(path, "new")
    assert path.is_symlink()
    assert (tmp_path / "page").read_text() == "new"


def test_a_pipe_is_written_itself(tmp_path: Path) -> None:
    path, read = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    files.write(path, "text")
    reader.join()
    assert read == ["text"]
    assert path.is_fifo()


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        files.write(tmp_path, "text")
