"""Files that are handed over as descriptors: each arrives once, under its name, in whatever order it is asked for."""

from __future__ import annotations

import importlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import sandboxed  # noqa: F401 - which has the modules of sandboxes found

handed = importlib.import_module("handed")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, int]]:
    """The host's end, and the descriptor of the worker's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        yield ours, theirs.detach()


def give(host: socket.socket, name: str, path: Path, flags: int = os.O_RDONLY) -> None:
    descriptor = os.open(path, flags)
    socket.send_fds(host, [name.encode()], [descriptor])
    os.close(descriptor)


def content(descriptor: int) -> str:
    with open(descriptor) as file:
        return file.read()


def test_without_a_socket_a_name_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("of a path")
    arriving = handed.Handed(None)
    assert content(arriving.open(str(tmp_path / "a"))) == "of a path"
    with pytest.raises(FileNotFoundError):
        arriving.open(str(tmp_path / "nothing"))
    with pytest.raises(OSError, match="no socket for files"):
        arriving.open("fd:0")


def test_a_path_may_be_opened_to_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    descriptor = handed.Handed(None).open(str(tmp_path / "a"), os.O_RDWR)
    assert not os.get_inheritable(descriptor)
    os.write(descriptor, b"written")
    os.close(descriptor)
    assert (tmp_path / "a").read_text() == "written"


def test_files_may_be_asked_for_in_another_order(pair: tuple[socket.socket, int], tmp_path: Path) -> None:
    host, theirs = pair
    arriving = handed.Handed(theirs)
    for number in range(3):
        (tmp_path / str(number)).write_text(f"file {number}")
        give(host, f"fd:{number}", tmp_path / str(number))
        (tmp_path / str(number)).unlink()  # its bytes are there for as long as somebody has it open
    assert [content(arriving.open(f"fd:{number}")) for number in (2, 0, 1)] == ["file 2", "file 0", "file 1"]
    arriving.socket.close()


def test_each_is_handed_out_once_and_is_its_takers_to_close(pair: tuple[socket.socket, int], tmp_path: Path) -> None:
    host, theirs = pair
    arriving = handed.Handed(theirs)
    (tmp_path / "a").write_text("once")
    give(host, "fd:7", tmp_path / "a")
    assert content(arriving.open("fd:7")) == "once"
    host.close()
    with pytest.raises(OSError, match="the host has closed the socket"):
        arriving.open("fd:7")
    arriving.socket.close()


def test_a_lent_file_takes_what_is_written(pair: tuple[socket.socket, int], tmp_path: Path) -> None:
    host, theirs = pair
    arriving = handed.Handed(theirs)
    (tmp_path / "spool").touch()
    give(host, "fd:0", tmp_path / "spool", os.O_RDWR)
    descriptor = arriving.open("fd:0", os.O_RDWR)
    os.pwrite(descriptor, b"back", 0)
    os.close(descriptor)
    assert (tmp_path / "spool").read_text() == "back"
    arriving.socket.close()


def test_whoever_asks_first_waits_for_it(pair: tuple[socket.socket, int], tmp_path: Path) -> None:
    host, theirs = pair
    arriving = handed.Handed(theirs)
    found: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda name=name: found.update({name: content(arriving.open(name))}))
        for name in ("fd:0", "fd:1", "fd:2")
    ]
    for thread in threads:
        thread.start()
    for number in (2, 1, 0):
        (tmp_path / str(number)).write_text(str(number))
        give(host, f"fd:{number}", tmp_path / str(number))
    for thread in threads:
        thread.join(30)
    assert found == {"fd:0": "0", "fd:1": "1", "fd:2": "2"}
    arriving.socket.close()
