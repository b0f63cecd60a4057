"""Whatever happens to the bytes of a store, what it says is what was recorded, or an error; and `check` finds it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.errors import LogError, StoreError
from rlm.stores.blobs import digest_of
from rlm.stores.sqlite import SQLiteStore
from rlm.types import Answered, Asked, Called, Opened, Recorded

NAMES = ("one", "two", "three")
SMALL = [b"a small blob", bytes(60_000)]
LARGE = bytes(range(256)) * (1 << 13)


def log(name: str) -> Sequence[Recorded]:
    events = [
        Opened("", name, "provider:model"),
        Asked("t1", f"What of {name}?"),
        *(Called(f"t1/c0/f:{number}#0", "f", value=[name, number, "x" * number * 20]) for number in range(30)),
        Answered("t1"),
    ]
    return [Recorded(number, 1_000.0 + number, event) for number, event in enumerate(events)]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")

    async def make() -> None:
        store = SQLiteStore(folder)
        for name in NAMES:
            lease = await store.lease(name)
            await lease.append(log(name), {digest_of(data): data for data in (*SMALL, LARGE)})
        await store.close()

    asyncio.run(make())
    return folder


def open_files(folder: Path) -> Sequence[str]:
    """Files of the folder that this process still has open, where the system tells.

    SQLite may take a descriptor that was left open for one of the next database that gets the same inode.
    """
    found = []
    for one in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # closed by another thread just now
            found.append(str(one.readlink()))
    return [link for link in found if link.startswith(f"{folder}/")]


async def looked_at(folder: Path) -> tuple[bool, Sequence[str]]:
    """Whether all is there as it was recorded; and what `check` says. What is not there must be an error."""
    store = SQLiteStore(folder)
    whole = True
    try:
        for name in NAMES:
            try:
                assert await store.read(name) == log(name)
            except (StoreError, LookupError):
                whole = False
        for data in SMALL:
            try:
                assert await store.blob(digest_of(data)) == data
            except StoreError:
                whole = False
        try:
            await store.list()
        except StoreError:
            whole = False
        return whole, await store.check()
    finally:
        await store.close()
        assert open_files(folder) == []


def damaged(template: Path, damage: Callable[[bytearray], object]) -> tuple[bool, Sequence[str]]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "store")
        shutil.copytree(template, folder, copy_function=os.link)
        (folder / "store.db").unlink()
        data = bytearray((template / "store.db").read_bytes())
        damage(data)
        (folder / "store.db").write_bytes(data)
        return asyncio.run(looked_at(folder))


def test_an_undamaged_store_is_whole(template: Path) -> None:
    assert damaged(template, len) == (True, [])


@settings(max_examples=150)
@given(place=st.floats(0, 1, exclude_max=True) | st.floats(0, 0.15), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_database_is_an_error_or_nothing(template: Path, place: float, bit: int) -> None:
    def flip(data: bytearray) -> None:
        data[int(place * len(data))] ^= 1 << bit

    whole, told = damaged(template, flip)
    assert whole or told


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"updated REAL", b"uqdated REAL"),
        (b"CREATE TABLE events", b"CRE\xc1TE TABLE events"),
        (b"kind TEXT", b"kinc TEXT"),
    ],
)
def test_damaged_tables_are_an_error(old: bytes, new: bytes, template: Path) -> None:
    def replace(data: bytearray) -> None:
        assert data.count(old) == 1
        data[:] = data.replace(old, new)

    whole, told = damaged(template, replace)
    assert told
    assert whole == (old == b"kind TEXT")  # which nobody reads


@settings(max_examples=40)
@given(place=st.floats(0, 1, exclude_max=True), content=st.binary(min_size=1, max_size=9_000))
def test_a_piece_of_the_database_that_was_overwritten_is_an_error_or_nothing(
    template: Path, place: float, content: bytes
) -> None:
    def overwrite(data: bytearray) -> None:
        at = int(place * len(data))
        content_there = content[: len(data) - at]
        data[at : at + len(content_there)] = content_there

    whole, told = damaged(template, overwrite)
    assert whole or told


@settings(max_examples=40)
@given(place=st.floats(0, 1, exclude_max=True))
def test_a_cut_database_is_an_error(template: Path, place: float) -> None:
    def cut(data: bytearray) -> None:
        del data[max(1, int(place * len(data))) :]

    whole, told = damaged(template, cut)
    assert not whole
    assert told


# -- what check finds --------------------------------------------------------------------------------------------------


def rows_changed(template: Path, statements: str) -> tuple[bool, Sequence[str]]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "store")
        shutil.copytree(template, folder)
        connection = sqlite3.connect(folder / "store.db", isolation_level=None)
        connection.executescript(statements)
        connection.close()
        return asyncio.run(looked_at(folder))


ONE = "(SELECT key FROM sessions WHERE name = 'one')"


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        (f"DELETE FROM events WHERE session = {ONE} AND number = 7", "session 'one': event 7 is missing"),
        (f"DELETE FROM events WHERE session = {ONE} AND number = 32", "32 events are there, and 33 were recorded"),
        (f"UPDATE events SET time = time + 1 WHERE session = {ONE} AND number = 7", "'one': event 7 is damaged"),
        (f"UPDATE events SET data = 'x' WHERE session = {ONE} AND number = 7", "'one': event 7 is damaged"),
        (f"UPDATE events SET data = NULLIF(kind, '') WHERE session = {ONE}", "'one': event 0 is damaged"),
        (f"UPDATE events SET data = x'00' WHERE session = {ONE}", "'one': event 32 is damaged"),
        (f"UPDATE events SET kind = 'asked' WHERE session = {ONE} AND number = 7", "event 7 is listed as 'asked'"),
        ("UPDATE sessions SET turns = 7 WHERE name = 'one'", "'one': what is listed of it is not what its log says"),
        ("UPDATE sessions SET question = '{' WHERE name = 'one'", "'one': a row of a session is damaged"),
        (f"DELETE FROM blobs WHERE digest = '{digest_of(SMALL[0])}'", f"'one': blob {digest_of(SMALL[0])} is missing"),
        (f"UPDATE blobs SET size = 7 WHERE digest = '{digest_of(LARGE)}'", f"{digest_of(LARGE)} is damaged"),
        (
            "UPDATE OR IGNORE refs SET digest = 'x'; UPDATE blobs SET digest = 'x' WHERE data IS NULL",
            "a blob is listed under 'x'",
        ),
    ],
)
def test_check_says_what_is_wrong_with_a_row(template: Path, statements: str, told: str) -> None:
    _, sentences = rows_changed(template, statements + ";")
    assert any(told in sentence for sentence in sentences), sentences


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells which files a process has open")
def test_errors_that_somebody_keeps_keep_no_file_open(template: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    shutil.copytree(template, folder)
    connection = sqlite3.connect(folder / "store.db", isolation_level=None)
    connection.execute("UPDATE sessions SET question = '{'")
    connection.execute(f"UPDATE events SET data = 'x' WHERE session = {ONE}")
    connection.close()

    async def main() -> list[BaseException | object]:
        store = SQLiteStore(folder)
        lease = await store.lease("two")
        asked = Recorded(33, 1.0, Asked("t2", "Why?"))
        doing = [store.list(), store.read("one"), store.read("nobody"), store.blob(digest_of(b"no such blob"))]
        doing += [lease.append(log("two")), lease.append([asked]), lease.hold([digest_of(b"no such blob")])]
        errors = await asyncio.gather(*doing, return_exceptions=True)
        assert len(await store.check()) > 30
        await store.close()
        return errors

    errors = asyncio.run(main())
    assert all(isinstance(error, (StoreError, LookupError)) for error in errors)
    assert open_files(folder) == []


def test_check_does_not_stop_at_the_first_thing(template: Path) -> None:
    _, told = rows_changed(
        template,
        f"""UPDATE events SET data = 'x' WHERE session = {ONE};
        DELETE FROM events WHERE session <> {ONE} AND number = 3;
        UPDATE blobs SET data = x'00' WHERE data IS NOT NULL;""",
    )
    assert len([one for one in told if "is damaged: it is not what was recorded" in one]) == 33
    assert len([one for one in told if "event 3 is missing" in one]) == 2
    assert len([one for one in told if "its content has another digest" in one]) == 2


def test_a_log_of_which_events_are_missing_is_not_read(template: Path) -> None:
    for statements in (
        f"DELETE FROM events WHERE session = {ONE} AND number = 7",
        f"DELETE FROM events WHERE session = {ONE} AND number > 30",
        f"DELETE FROM events WHERE session = {ONE}",
    ):
        with tempfile.TemporaryDirectory() as place:
            shutil.copytree(template, Path(place, "store"))
            connection = sqlite3.connect(Path(place, "store", "store.db"), isolation_level=None)
            connection.execute(statements)
            connection.close()

            async def read() -> None:
                store = SQLiteStore(Path(place, "store"))
                with pytest.raises(LogError, match="session 'one': events are missing, there were 33"):
                    await store.read("one")
                assert await store.read("two") == log("two")
                await store.close()

            asyncio.run(read())


def flipped(path: Path) -> None:
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[1_234_567] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, 1_000)


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flipped, cut, removed], ids=lambda damage: damage.__name__)
def test_check_reads_every_file(damage: Callable[[Path], None], template: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    shutil.copytree(template, folder)
    path = folder / "blobs" / digest_of(LARGE)[:2] / digest_of(LARGE)
    damage(path)
    (folder / "blobs" / "ab").mkdir(exist_ok=True)
    (folder / "blobs" / "ab" / "note").write_text("not ours")
    _, told = asyncio.run(looked_at(folder))
    what = "is missing" if damage is removed else "is damaged: its content has another digest"
    assert sorted(told) == sorted([f"{path} {what}", f"{folder / 'blobs' / 'ab' / 'note'} is no file of a store"])


def test_a_store_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"no database at all" * 500)

    async def main() -> None:
        store = SQLiteStore(tmp_path)
        [told] = await store.check()
        assert told.startswith(f"{tmp_path / 'store.db'} is damaged, or no database of rlm")
        await store.close()

    asyncio.run(main())
