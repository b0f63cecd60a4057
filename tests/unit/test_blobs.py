"""Large blobs as files: whole or not there, owned, healed where they were damaged, and never lost to a collection."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rlm.errors import BlobError, StoreError
from rlm.ports import Content, Owned
from rlm.stores.blobs import LARGE, BlobFiles, digest_of
from rlm.stores.sqlite import SQLiteLease, SQLiteStore
from rlm.types import Called, Recorded
from tests.store_processes import child, own_mounts, said

DATA = os.urandom(1 << 16) * 24
DIGEST = digest_of(DATA)


def event(number: int) -> Recorded:
    return Recorded(number, 1_000.0, Called(f"t1/c0/f:{number}#0", "f"))


@pytest.fixture
def files(tmp_path: Path) -> BlobFiles:
    return BlobFiles(tmp_path / "store" / "blobs")


def stray(files: BlobFiles) -> list[str]:
    """Names of all files below the folder."""
    return sorted(path.name for path in files.folder.rglob("*") if not path.is_dir())


@pytest.fixture(params=["bytes", "a worker's file", "our own file"])
def content(request: pytest.FixtureRequest, tmp_path: Path) -> Content:
    if request.param == "bytes":
        return DATA
    path = tmp_path / "content"
    path.write_bytes(DATA)
    return path if request.param == "a worker's file" else Owned(path)


# -- placing -----------------------------------------------------------------------------------------------------------


def test_a_large_blob_is_a_file_that_nobody_writes_to(files: BlobFiles, content: Content) -> None:
    assert files.place(DIGEST, content) == len(DATA)
    path = files.path(DIGEST)
    assert path == files.folder / DIGEST[:2] / DIGEST
    assert path.read_bytes() == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert stray(files) == [DIGEST]


def test_a_small_blob_is_no_file(files: BlobFiles, tmp_path: Path) -> None:
    small = DATA[: LARGE - 1]
    (tmp_path / "file").write_bytes(small)
    for content in (small, tmp_path / "file", Owned(tmp_path / "file")):
        assert files.place(digest_of(small), content) == small
    assert not files.folder.exists()


def test_our_own_file_is_taken_without_a_copy(files: BlobFiles, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    files.place(DIGEST, Owned(path))
    assert files.path(DIGEST).samefile(path)
    assert files.place(DIGEST, Owned(path)) == len(DATA)


def test_a_workers_file_is_always_a_copy(files: BlobFiles, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    files.place(DIGEST, path)
    assert not files.path(DIGEST).samefile(path)


def test_our_own_file_is_copied_from_another_file_system(tmp_path: Path) -> None:
    code = """
import subprocess
from rlm.stores.blobs import BlobFiles
here, there = Path(sys.argv[1]), Path(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "none", there], check=True)
data = bytes(3 << 20)
(there / "file").write_bytes(data)
files = BlobFiles(here / "blobs")
say(files.place(digest_of(data), Owned(there / "file")), files.path(digest_of(data)).read_bytes() == data)
say(files.path(digest_of(data)).samefile(there / "file"))
"""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    assert said(code, tmp_path / "here", tmp_path / "there", under=own_mounts()) == [f"{3 << 20} True", "False"]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_content_with_another_digest_leaves_nothing(files: BlobFiles, content: Content) -> None:
    wrong = digest_of(b"something else")
    with pytest.raises(BlobError, match="have the digest"):
        files.place(wrong, content)
    assert stray(files) == []


def test_a_link_is_not_followed(files: BlobFiles, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(DATA)
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    for content in (tmp_path / "link", Owned(tmp_path / "link")):
        with pytest.raises(BlobError, match="link is no regular file"):
            files.place(DIGEST, content)


def test_nothing_waits_for_a_pipe_or_a_device(files: BlobFiles, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(BlobError, match="is no regular file"):
            files.place(DIGEST, path)


def test_a_file_that_grows_for_ever_is_read_up_to_where_it_ended_at_first(files: BlobFiles, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    stop = threading.Event()

    def grow() -> None:
        with path.open("ab") as file:
            while not stop.is_set() and file.tell() < 1 << 30:
                file.write(DATA)

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        with pytest.raises(BlobError, match="have the digest"):
            files.place(digest_of(b""), path)
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "A" * 64, "../" * 22, "0" * 63 + "/", None, 7])
def test_only_a_digest_names_a_blob(digest: str, tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        lease = await store.lease("s")
        for doing in (store.blob(digest), lease.append([], {digest: DATA}), lease.hold([digest])):
            with pytest.raises(BlobError, match="is no digest"):
                await doing
        await store.close()

    asyncio.run(main())


# -- damage ------------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, len(DATA) // 2)


def flip(path: Path) -> None:
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, flip, remove], ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_mended_by_the_same_content(damage, files: BlobFiles, content: Content) -> None:
    files.place(DIGEST, DATA)
    damage(files.path(DIGEST))
    files.place(DIGEST, content)
    assert files.path(DIGEST).read_bytes() == DATA
    assert stray(files) == [DIGEST]


@pytest.mark.parametrize("damage", [truncate, remove], ids=lambda damage: damage.__name__)
def test_a_file_that_is_missing_or_cut_is_told_and_not_referred_to_again(damage, tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        lease = await store.lease("s")
        await lease.append([event(0)], {DIGEST: DATA})
        damage(store.files.path(DIGEST))
        with pytest.raises(BlobError, match=f"{DIGEST} is (missing|damaged: {len(DATA) // 2} bytes instead)"):
            await store.blob(DIGEST)
        with pytest.raises(BlobError, match="give its content"):
            await lease.append([event(1)], {DIGEST: None})
        await lease.append([event(1)], {DIGEST: DATA})
        assert await store.blob(DIGEST) == store.files.path(DIGEST)
        assert await store.check() == []
        await store.close()

    asyncio.run(main())


def test_a_damaged_row_is_told_and_mended_by_the_same_content(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        lease = await store.lease("s")
        digest = digest_of(b"small")
        await lease.append([event(0)], {digest: b"small"})
        other = sqlite3.connect(store.path, isolation_level=None)
        for wrong in (b"smalL", b"", "small", 7):
            other.execute("UPDATE blobs SET data = ?", (wrong,))
            with pytest.raises(BlobError, match="is damaged"):
                await store.blob(digest)
            assert [f"blob {digest} is damaged" in line for line in await store.check()] == [True]
        other.close()
        await lease.append([], {digest: b"small"})
        assert await store.blob(digest) == b"small"
        await store.close()

    asyncio.run(main())


# -- collections -------------------------------------------------------------------------------------------------------


def test_a_file_that_is_collected_just_before_it_is_referred_to_is_written_again(
    tmp_path: Path, content: Content
) -> None:
    """The append has found the file, or written it, and waits for its transaction; a collection comes first."""

    async def main() -> None:
        store = SQLiteStore(tmp_path / "store")
        lease = await store.lease("s")
        await lease.append([event(0)], {DIGEST: DATA})
        await lease.hold([])
        blocker = sqlite3.connect(store.path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        append = asyncio.ensure_future(lease.append([event(1)], {DIGEST: content}))
        await asyncio.sleep(0.1)  # its blob is placed by now; it makes no difference where a machine is slower
        store.files.path(DIGEST).unlink()
        blocker.execute("DELETE FROM blobs WHERE digest = ?", (DIGEST,))
        blocker.execute("COMMIT")
        blocker.close()
        await append
        assert store.files.path(DIGEST).read_bytes() == DATA
        assert await store.collect() == 0
        assert await store.check() == []
        await store.close()

    asyncio.run(main())


def test_files_that_were_never_referred_to_are_collected(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        lease = await store.lease("s")
        await lease.append([event(0)])
        store.files.place(DIGEST, DATA)
        [told] = await store.check()
        assert told == f"{store.files.path(DIGEST)} belongs to no session: collect removes it"
        assert await store.collect() == len(DATA)
        assert await store.check() == []
        await store.close()

    asyncio.run(main())


# -- a file of ours before its event stands ----------------------------------------------------------------------------


@asynccontextmanager
async def begun(folder: Path) -> AsyncIterator[tuple[SQLiteStore, SQLiteLease, Content]]:
    """A store, a lease, and what `place` made of a file of ours."""
    store = SQLiteStore(folder / "store")
    lease = await store.lease("s")
    (lease.folder / "content").write_bytes(DATA)
    digest, content = await lease.place(Owned(lease.folder / "content"))
    assert digest == DIGEST
    yield store, lease, content
    await store.close()


def test_a_file_is_taken_over_before_its_event_stands_and_not_copied(tmp_path: Path) -> None:
    async def main() -> None:
        async with begun(tmp_path) as (store, lease, content):
            await lease.append([event(0)], {DIGEST: content})
            assert store.files.path(DIGEST).samefile(lease.folder / "content")
            assert stat.S_IMODE(store.files.path(DIGEST).stat().st_mode) == 0o400
            assert await store.collect() == 0
            assert await store.check() == []
            await lease.append([event(1)], {DIGEST: content})  # it may be said again

    asyncio.run(main())


def test_a_file_that_was_begun_and_is_referred_to_by_nothing_is_collected(tmp_path: Path) -> None:
    async def main() -> None:
        async with begun(tmp_path) as (store, lease, content):
            while not store.files.path(DIGEST).exists():
                continue
            assert await store.collect() == len(DATA)
            await lease.append([event(0)], {DIGEST: content})  # so late that it has to be placed once more
            assert store.files.path(DIGEST).read_bytes() == DATA
            assert await store.check() == []

    asyncio.run(main())


def test_a_file_that_was_begun_counts_under_no_other_digest(tmp_path: Path) -> None:
    async def main() -> None:
        async with begun(tmp_path) as (store, lease, content):
            other = digest_of(b"another")
            with pytest.raises(BlobError, match="not " + other[:16]):
                await lease.append([event(0)], {other: content})
            assert await store.read("s") == []

    asyncio.run(main())


def test_a_file_that_was_begun_on_another_file_system_is_copied(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs /dev/shm on a file system of its own")

    async def main() -> None:
        store = SQLiteStore(tmp_path)
        lease = await store.lease("s")
        with tempfile.NamedTemporaryFile(dir=other) as file:
            file.write(DATA)
            file.flush()
            digest, content = await lease.place(Owned(Path(file.name)))
            await lease.append([event(0)], {digest: content})
        assert store.files.path(DIGEST).read_bytes() == DATA
        await store.close()

    asyncio.run(main())


def test_a_small_file_of_ours_is_a_row_and_one_that_is_not_there_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path / "store")
        lease = await store.lease("s")
        (tmp_path / "small").write_bytes(DATA[: LARGE - 1])
        digest, content = await lease.place(Owned(tmp_path / "small"))
        await lease.append([event(0)], {digest: content})
        assert await store.blob(digest) == DATA[: LARGE - 1]
        with pytest.raises(StoreError, match="missing"):
            await lease.place(Owned(tmp_path / "missing"))
        await store.close()

    asyncio.run(main())


UNFINISHED = """
from rlm.stores.blobs import BlobFiles
store, content = Path(sys.argv[1]), Path(sys.argv[2])
os.truncate(content, 8 << 30)  # it takes far longer to copy this than the process lives
say("begun")
BlobFiles(store / "blobs").place("0" * 64, content)
"""


def unfinished(store: SQLiteStore) -> list[Path]:
    return list((store.files.folder / "new").glob("*"))


def test_unfinished_files_of_dead_processes_are_collected_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path / "store")
        await (await store.lease("s")).release()
        (tmp_path / "content").touch()
        with child(UNFINISHED, store.folder, tmp_path / "content") as writer:
            assert writer.line() == "begun"
            while not unfinished(store):
                continue
            [path] = unfinished(store)
            assert await store.check() == []
            assert await store.collect() == 0
            assert unfinished(store) == [path]
            writer.kill()
            assert await store.check() == [f"{path} was left unfinished by a process that ended: collect removes it"]
            await store.collect()
            assert unfinished(store) == []
        await store.close()

    asyncio.run(main())


def test_a_process_does_not_collect_the_file_that_it_is_writing(tmp_path: Path) -> None:
    """Appends of one process go on beside its own collections, through other store objects too."""
    datas = [bytes([number]) * (2 << 20) for number in range(12)]

    async def main() -> None:
        one, other = SQLiteStore(tmp_path), SQLiteStore(tmp_path)
        lease = await one.lease("s")
        appends = [
            asyncio.ensure_future(lease.append([event(number)], {digest_of(data): data}))
            for number, data in enumerate(datas)
        ]
        while not all(append.done() for append in appends):
            await other.collect()
        await asyncio.gather(*appends)
        assert await other.check() == []
        await one.close()
        await other.close()

    asyncio.run(main())


def test_two_processes_append_and_collect_the_same_blobs_without_losing_one(tmp_path: Path) -> None:
    code = """
async def main():
    store = SQLiteStore(sys.argv[1], patience=30)
    lease = await store.lease(sys.argv[2])
    sys.stdin.readline()
    for number in range(25):
        data = bytes([number % 2]) * (1 << 20)
        await lease.append([event(number)], {digest_of(data): data})
        blob = await store.blob(digest_of(data))
        assert digest_of(blob.read_bytes()) == digest_of(data)
        await lease.hold([])
        await store.collect()
    await store.close()
    say("done")

asyncio.run(main())
"""
    with child(code, tmp_path, "a") as a, child(code, tmp_path, "b") as b:
        a.tell()
        b.tell()
        assert [a.line(), b.line()] == ["done", "done"]


def test_a_full_disk_leaves_no_part_of_a_blob(tmp_path: Path) -> None:
    code = """
import subprocess
folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], check=True)

async def main():
    store = SQLiteStore(folder / "store")
    lease = await store.lease("s")
    big, fits = bytes(16 << 20), bytes(1 << 20)
    try:
        await lease.append([event(0)], {digest_of(big): big})
    except StoreError as error:
        say(error)
    say([path.name for path in store.files.folder.rglob("*") if path.is_file()])
    await lease.append([event(0)], {digest_of(fits): fits})
    say(len(await store.read("s")), await store.check())
    await store.close()

asyncio.run(main())
"""
    told, left, after = said(code, tmp_path, under=own_mounts())
    assert "as the disk is full" in told
    assert "nothing was recorded; make room" in told
    assert (left, after) == ("[]", "1 []")
