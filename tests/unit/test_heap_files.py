"""The session's own folder in a checkpoint: what changed of it, what it may hold, and putting it there again."""

# ruff: noqa: E501 - programs in tables, a line each

from __future__ import annotations

from pathlib import Path

import pytest

from rlm.environments.payload import pack
from rlm.errors import ContextError
from rlm.types import HeapImage, SavedFile
from tests.heaps import Session, session

LISTING = (
    "import os\nfor at, folders, files in sorted(os.walk('.')):\n    for f in sorted([*files, *folders]):\n"
    "        p = os.path.join(at, f)\n        s = os.lstat(p)\n"
    "        print(p, oct(s.st_mode), os.readlink(p) if os.path.islink(p) else open(p, 'rb').read() if os.path.isfile(p) else '')"
)


def test_files_links_and_folders_come_back_with_their_permissions() -> None:
    async def script(s: Session) -> None:
        await s.cells(
            "import os\nos.makedirs('a/b'); open('a/x.txt', 'w').write('hello'); open('empty', 'w').close()\n"
            "open('run', 'w').write('#!'); os.chmod('run', 0o755); os.symlink('a/x.txt', 'link'); os.mkdir('bare', 0o700)\n"
            "os.symlink('/nowhere', 'dangling'); open('big', 'wb').write(bytes(1_000_000)); open('ä', 'w').write('ö')"
        )
        before = await s.run(LISTING)
        assert await s.restore() == {}
        assert await s.run(LISTING) == before

    session(script)


def test_only_what_changed_is_saved_again() -> None:
    async def script(s: Session) -> None:
        await s.cells("open('a', 'w').write('1'); open('b', 'w').write('2')")
        assert set(s.change.files) == {"a", "b"}
        await s.cells("open('a', 'w').write('3')")
        assert set(s.change.files) == {"a"}
        await s.cells("import os; os.chmod('b', 0o600); os.utime('a')")
        assert s.change.files == {"b": SavedFile(s.heap.files["b"].digest, 1, 0o600)}
        await s.cells("os.unlink('a'); os.rename('b', 'c')")
        assert (set(s.change.files), set(s.change.files_gone)) == ({"c"}, {"a", "b"})
        await s.restore()
        await s.cells("x = 1")
        assert (set(s.change.files), set(s.change.files_gone)) == (set(), set())

    session(script)


def test_a_change_within_one_tick_of_the_clock_is_seen() -> None:
    async def script(s: Session) -> None:
        for n in range(20):
            await s.cells(f"open('a', 'w').write('{n % 10}')")
            assert s.blobs[s.heap.files["a"].digest] == b"%d" % (n % 10)

    session(script)


def test_what_is_too_much_or_no_file_is_named() -> None:
    async def script(s: Session) -> None:
        await s.run("import os; os.mkfifo('pipe'); open('a', 'w').write('x' * 600); open('b', 'w').write('x' * 600)")
        await s.capture(limit=1_000)
        assert set(s.change.files) == {"a"}
        assert s.change.files_lost["pipe"].reason == "neither a file nor a link nor a folder"
        assert "over its limit of 1,000" in s.change.files_lost["b"].reason
        await s.run("os.unlink('a'); os.unlink('pipe')")
        await s.capture(limit=1_000)
        assert set(s.change.files) == {"b"}
        assert set(s.change.files_gone) == {"a", "pipe"}
        assert not s.heap.files_lost

    session(script)


def test_many_files_do_not_hold_up_the_next_cell() -> None:
    async def script(s: Session) -> None:
        await s.run("import os; os.mkdir('many')\nfor n in range(3_000): open(f'many/{n}', 'w').close()")
        change = await s.capture()
        assert len(change.files) == 3_000
        assert change.seconds > change.pause

    session(script)


@pytest.mark.parametrize("path", ["../out", "/tmp/out-of-it", "a/../../out", "link/out", "", "a//b"])
def test_nothing_is_put_outside_of_the_folder(path: str) -> None:
    async def script(s: Session) -> None:
        await s.run("import os; os.mkdir('../outside'); os.symlink('../outside', 'link')")
        beside = await s.run("print(sorted(os.listdir('..')))")
        digest = "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9"
        image = HeapImage(files={path: SavedFile(digest, 1)})
        lost = await s.kernel.restore(image, {digest: b"0"})
        assert list(lost) == ["./" + path]
        assert await s.run("import os; print(os.listdir('../outside'), os.path.exists('/tmp/out-of-it'))") == "[] False"
        assert await s.run("print(sorted(os.listdir('..')))") == beside

    session(script)


def test_a_link_never_leads_a_file_out() -> None:
    async def script(s: Session) -> None:
        digest = "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9"
        await s.run("with open('/tmp/outside', 'w') as file: file.write('mine')")
        files = {
            "a": SavedFile("0" * 64, 0, link="/tmp/outside"),
            "a/b": SavedFile(digest, 1),
            "c": SavedFile(digest, 1),
        }
        assert list(await s.kernel.restore(HeapImage(files=files), {digest: b"0"})) == ["./a/b"]
        assert await s.run("print(open('/tmp/outside').read())") == "mine"

    session(script)


def test_a_context_whose_bytes_have_another_digest_is_refused(tmp_path: Path) -> None:
    async def script(s: Session) -> None:
        import hashlib

        for value in ("text", "long text " * 10_000, ["a list"], list(range(50_000))):
            payload = pack(value, tmp_path)
            raw = payload.path.read_bytes() if payload.path else __import__("base64").b64decode(payload.text or "")
            await s.kernel.load(["context"], payload, hashlib.sha256(raw).hexdigest())
            with pytest.raises(ContextError, match="damaged"):
                await s.kernel.load(["context"], payload, "0" * 64)
            assert await s.run("print(len(context))") == str(len(value))  # type: ignore[arg-type]

    session(script)
