"""The store on disk beyond what every store promises: its files, group commit, event loops, closing, versions."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rlm.errors import ConfigurationError, StoreError, UnknownSessionError
from rlm.stores import get_store
from rlm.stores.blobs import digest_of
from rlm.stores.memory import MemoryStore
from rlm.stores.migrations import APPLICATION, MIGRATIONS
from rlm.stores.sqlite import SQLiteLease, SQLiteStore
from rlm.types import Asked, Called, Recorded
from tests.store_processes import child, own_mounts, said


def event(number: int, size: int = 0) -> Recorded:
    return Recorded(number, 1_000.0 + number, Called(f"t1/c0/f:{number}#0", "f", value="x" * size))


async def recorded(store: SQLiteStore, name: str = "s", count: int = 3) -> None:
    lease = await store.lease(name)
    await lease.append([event(number) for number in range(count)])
    await lease.release()


def made(folder: Path, count: int = 3) -> Path:
    """A store with one session, closed."""

    async def make() -> None:
        store = SQLiteStore(folder)
        await recorded(store, count=count)
        await store.close()

    asyncio.run(make())
    return folder


async def length(folder: Path, name: str = "s") -> int:
    store = SQLiteStore(folder)
    try:
        return len(await store.read(name))
    finally:
        await store.close()


# -- which store -------------------------------------------------------------------------------------------------------


def test_one_folder_is_one_store_until_it_is_closed(tmp_path: Path) -> None:
    store = get_store(tmp_path / "a")
    assert isinstance(store, SQLiteStore)
    assert get_store(str(tmp_path / "b" / ".." / "a")) is store
    assert get_store(tmp_path / "b") is not store
    asyncio.run(store.close())
    assert get_store(tmp_path / "a") is not store


def test_a_store_may_be_given_or_kept_in_memory() -> None:
    store = MemoryStore()
    assert get_store(store) is store
    assert isinstance(get_store(":memory:"), MemoryStore)
    assert get_store(":memory:") is not get_store(":memory:")


@pytest.mark.parametrize("wrong", [7, "", b"bytes"])
def test_what_is_no_store_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="give a folder"):
        get_store(wrong)  # type: ignore[arg-type]


def test_the_default_store_is_the_users_own(tmp_path: Path) -> None:
    code = "from rlm.stores import get_store; say(get_store(None).folder)"
    os_environment = ["env", f"RLM_STORE={tmp_path}/mine"]
    assert said(code, under=os_environment) == [f"{tmp_path}/mine"]


def test_naming_a_store_loads_no_database() -> None:
    code = "import sys; before = 'sqlite3' in sys.modules; import rlm.stores; print(before, 'sqlite3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# -- its files ---------------------------------------------------------------------------------------------------------


def test_nothing_is_made_before_something_is_recorded(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path / "store")
        assert await store.list() == []
        assert await store.collect() == 0
        assert await store.check() == []
        with pytest.raises(UnknownSessionError):
            await store.read("s")
        await store.close()

    asyncio.run(main())
    assert not (tmp_path / "store").exists()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path / "deep" / "store")
        lease = await store.lease("s")
        data = bytes(1 << 20)
        await lease.append([event(0)], {digest_of(data): data})
        assert lease.folder.is_dir()
        found = {path.name: mode(path) for path in (tmp_path / "deep").rglob("*")}
        assert {name for name, bits in found.items() if bits & 0o077} == set()
        assert (found["store"], found["store.db"], found[digest_of(data)]) == (0o700, 0o600, 0o400)
        await store.close()

    asyncio.run(main())


def test_a_closed_store_leaves_one_database_file(tmp_path: Path) -> None:
    made(tmp_path / "store")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["locks", "store.db"]


def test_a_store_that_is_removed_while_it_is_in_use_is_not_written_to_any_more(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path / "store")
        lease = await store.lease("s")
        await lease.append([event(0)])
        for path in (tmp_path / "store").glob("store.db*"):
            path.unlink()
        with pytest.raises(StoreError, match=r"store\.db was removed or replaced"):
            await lease.append([event(1)])
        with pytest.raises(StoreError, match="the session was deleted"):
            await lease.append([event(1)])
        await store.close()

    asyncio.run(main())


# -- group commit ------------------------------------------------------------------------------------------------------


def commits(path: Path) -> int:
    """How many transactions stand in a write-ahead log: frames that tell the size of the database after them."""
    data = path.read_bytes()
    size = int.from_bytes(data[8:12], "big")
    salts = data[16:24]
    frames = range(32, len(data), 24 + size)
    return sum(bool(struct.unpack_from(">I", data, at + 4)[0]) for at in frames if data[at + 8 : at + 16] == salts)


def test_appends_that_wait_together_share_a_commit(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        leases = [await store.lease(f"s{number}") for number in range(20)]
        before = commits(tmp_path / "store.db-wal")
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        appends = [asyncio.ensure_future(lease.append([event(number)])) for number in range(10) for lease in leases]
        await asyncio.sleep(0.05)
        other.execute("ROLLBACK")
        other.close()
        await asyncio.gather(*appends)
        assert 1 <= commits(tmp_path / "store.db-wal") - before <= 3
        await store.close()

    asyncio.run(main())


def test_one_thread_writes_however_many_sessions_there_are(tmp_path: Path) -> None:
    async def main() -> None:
        before = threading.active_count()
        store = SQLiteStore(tmp_path)
        leases = [await store.lease(f"s{number}") for number in range(50)]
        await asyncio.gather(*(lease.append([event(0)]) for lease in leases))
        assert threading.active_count() <= before + 2
        await store.close()
        assert threading.active_count() == before

    asyncio.run(main())


def test_a_large_blob_of_one_session_does_not_hold_up_another(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        one, other = await store.lease("one"), await store.lease("other")
        data = bytes(128 << 20)
        slow = asyncio.ensure_future(one.append([event(0)], {digest_of(data): data}))
        await asyncio.sleep(0)
        behind = asyncio.ensure_future(one.append([event(1)]))
        await other.append([event(0)])
        assert not slow.done()
        assert not behind.done()
        await asyncio.gather(slow, behind)
        assert [record.number for record in await store.read("one")] == [0, 1]
        await store.close()

    asyncio.run(main())


def test_blobs_without_events_keep_no_event_waiting(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        lease = await store.lease("s")
        data = bytes(128 << 20)
        slow = asyncio.ensure_future(lease.append([], {digest_of(data): data}))
        await asyncio.sleep(0)
        await lease.append([event(0)])
        assert not slow.done()
        await lease.release()  # which waits for both
        assert slow.done()
        await slow
        assert await store.collect() == 0
        await store.close()

    asyncio.run(main())


# -- event loops and cancellation --------------------------------------------------------------------------------------


def test_a_store_outlives_the_event_loops_it_is_used_on(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path)
    lease = asyncio.run(store.lease("s"))
    for number in range(5):
        asyncio.run(lease.append([event(number)]))
    assert len(asyncio.run(store.read("s"))) == 5
    asyncio.run(store.close())


def test_an_event_loop_that_ends_without_waiting_harms_nobody(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path)
    lease = asyncio.run(store.lease("s"))
    loop = asyncio.new_event_loop()
    append = lease.append([event(0)])
    loop.call_soon(lambda: append.send(None))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    append.close()
    asyncio.run(lease.append([event(1)]))
    assert len(asyncio.run(store.read("s"))) == 2
    asyncio.run(store.close())


@pytest.mark.parametrize("kind", [SQLiteStore, lambda _: MemoryStore()], ids=["on disk", "in memory"])
def test_a_cancelled_append_is_carried_out_before_the_cancellation_is_raised(kind: type, tmp_path: Path) -> None:
    async def main() -> None:
        store = kind(tmp_path)
        lease = await store.lease("s")
        data = bytes(8 << 20)
        for number, blobs in enumerate(({}, {digest_of(data): data})):
            append = asyncio.ensure_future(lease.append([event(number)], blobs))
            await asyncio.sleep(0)
            for _ in range(3):
                append.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await append
            assert len(await store.read("s")) == number + 1
        append = asyncio.ensure_future(lease.append([event(7)]))
        await asyncio.sleep(0)
        append.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await append
        assert isinstance(cancelled.value.__cause__, StoreError)
        await lease.append([event(2)])
        await store.close()

    asyncio.run(main())


# -- closing -----------------------------------------------------------------------------------------------------------


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        lease = await store.lease("s")
        await asyncio.gather(store.close(), store.close())
        for doing in (store.lease("s"), store.read("s"), store.list(), store.collect(), store.check()):
            with pytest.raises(StoreError, match="was closed"):
                await doing
        with pytest.raises(StoreError):
            await lease.append([event(0)])
        await lease.release()

    asyncio.run(main())


def test_closing_waits_for_what_was_appended(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        lease = await store.lease("s")
        appends = [asyncio.ensure_future(lease.append([event(number)])) for number in range(20)]
        await asyncio.sleep(0)
        await store.close()
        await asyncio.gather(*appends)

    asyncio.run(main())
    assert asyncio.run(length(tmp_path)) == 20


def test_an_interpreter_ends_with_its_stores_open(tmp_path: Path) -> None:
    code = """
store = SQLiteStore(sys.argv[1])
lease = asyncio.run(store.lease("s"))
asyncio.run(lease.append([event(0)]))
say("recorded")
"""
    assert said(code, tmp_path) == ["recorded"]
    assert asyncio.run(length(tmp_path)) == 1


# -- what cannot be opened ---------------------------------------------------------------------------------------------


async def refused(folder: Path, match: str, *, reading: bool = True) -> None:
    store = SQLiteStore(folder, patience=0.05)
    doing = [store.lease("s"), *([store.list(), store.read("s")] if reading else [])]
    for one in doing:
        with pytest.raises(StoreError, match=match) as raised:
            await one
        assert str(folder) in str(raised.value)
    await store.close()


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    asyncio.run(refused(tmp_path, "made by a newer version of rlm.*update rlm"))


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("CREATE TABLE moz_places (id)")
    connection.close()
    before = (tmp_path / "store.db").read_bytes()
    asyncio.run(refused(tmp_path, "database of another program"))
    assert (tmp_path / "store.db").read_bytes() == before


@pytest.mark.parametrize("content", [b"text, and no database, " * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_refused_and_left_alone(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(content)
    asyncio.run(refused(tmp_path, "is damaged, or no database of rlm"))
    assert (tmp_path / "store.db").read_bytes() == content


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "store.db").touch()

    async def main() -> None:
        store = SQLiteStore(tmp_path)
        assert await store.list() == []
        await recorded(store)
        await store.close()

    asyncio.run(main())
    assert asyncio.run(length(tmp_path)) == 3


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    asyncio.run(refused(tmp_path / "file", "is below something that is no folder", reading=False))


def test_a_locked_database_is_told_and_nothing_is_recorded(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path, patience=0.05)
        lease = await store.lease("s")
        await lease.append([event(0)])
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"store\.db is locked by another process"):
            await lease.append([event(1)])
        assert len(await store.read("s")) == 1
        other.execute("ROLLBACK")
        other.close()
        await lease.append([event(1)])
        await store.close()

    asyncio.run(main())


def test_migrations_run_once_whoever_opens_the_store(tmp_path: Path) -> None:
    code = """
store = SQLiteStore(sys.argv[1])
sys.stdin.readline()
lease = asyncio.run(store.lease(sys.argv[2]))
asyncio.run(lease.append([event(0)]))
asyncio.run(store.close())
say("recorded")
"""
    with child(code, tmp_path, "a") as a, child(code, tmp_path, "b") as b, child(code, tmp_path, "c") as c:
        for one in (a, b, c):
            one.tell()
        assert [one.line() for one in (a, b, c)] == ["recorded"] * 3
    connection = sqlite3.connect(tmp_path / "store.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION,)
    assert connection.execute("SELECT count(*) FROM sessions").fetchone() == (3,)
    connection.close()


def test_a_store_may_be_read_while_it_is_being_made(tmp_path: Path) -> None:
    async def main() -> None:
        for place in range(20):
            stores = [SQLiteStore(tmp_path / str(place)) for _ in range(4)]
            leases = asyncio.gather(*(store.lease(f"s{number}") for number, store in enumerate(stores[:2])))
            while not leases.done():
                await asyncio.gather(*(store.list() for store in stores[2:]))
            assert len(await stores[2].list()) == 2
            for store in stores:
                await store.close()

    asyncio.run(main())


def test_each_migration_has_a_name_that_says_what_it_does() -> None:
    assert [migration.__name__ for migration in MIGRATIONS] == ["create_tables"]


# -- where nothing can be written --------------------------------------------------------------------------------------

READ_ONLY = """
import subprocess
folder, end = Path(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
large = bytes(1 << 20)

async def write():
    store = SQLiteStore(folder / "store")
    lease = await store.lease("s")
    await lease.append([event(0)], {digest_of(large): large, digest_of(b"small"): b"small"})
    if end == "killed":
        os._exit(0)
    await store.close()

if (pid := os.fork()) == 0:
    asyncio.run(write())
    os._exit(0)
os.waitpid(pid, 0)
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)

async def read():
    store = SQLiteStore(folder / "store")
    say([one.name for one in await store.list()], len(await store.read("s")))
    say(await store.blob(digest_of(b"small")), (await store.blob(digest_of(large))).stat().st_size)
    say(await store.check())
    for doing in (store.lease("s"), store.lease("t"), store.delete("s")):
        try:
            await doing
        except StoreError as error:
            say(error)
    await store.close()

asyncio.run(read())
"""


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_a_store_on_a_read_only_disk_is_read(end: str, tmp_path: Path) -> None:
    lines = said(READ_ONLY, tmp_path, end, under=own_mounts())
    assert lines[:3] == ["['s'] 1", f"b'small' {1 << 20}", "[]"]
    assert len(lines) == 6
    for line in lines[3:]:
        assert line.startswith(str(tmp_path / "store"))
        assert "give this user the right to write to the folder" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the tests on a read-only disk stand for it")
def test_a_store_in_a_folder_without_rights_is_read(tmp_path: Path) -> None:
    made(tmp_path / "store")
    for path in [tmp_path / "store", *(tmp_path / "store").iterdir()]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    assert asyncio.run(length(tmp_path / "store")) == 3
    asyncio.run(refused(tmp_path / "store", "cannot be written", reading=False))


# -- listing -----------------------------------------------------------------------------------------------------------


def test_a_thousand_sessions_are_listed(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        leases: list[SQLiteLease] = await asyncio.gather(*(store.lease(f"s{number}") for number in range(1_000)))
        await asyncio.gather(*(lease.append([Recorded(0, 1.0, Asked("t1", "Why?" * 9))]) for lease in leases))
        found = await store.list()
        assert len({one.id for one in found}) == 1_000
        assert {(one.events, one.turns, one.unfinished, one.question) for one in found} == {(1, 1, True, "Why?" * 9)}
        await store.close()

    asyncio.run(main())


def test_a_long_question_is_cut_in_the_listing_alone(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        lease = await store.lease("s")
        await lease.append([Recorded(0, 1.0, Asked("t1", "x" * 100_000))])
        [one] = await store.list()
        assert one.question == "x" * 999 + "…"
        [record] = await store.read("s")
        assert record.event == Asked("t1", "x" * 100_000)
        await store.close()

    asyncio.run(main())


def test_clocks_that_run_backwards_or_are_wrong_change_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        lease = await store.lease("s")
        times = [5e9, 1_000.0, -3.5, 0.1 + 0.2, 7.0]
        for number, time in enumerate(times):
            await lease.append([Recorded(number, time, Called(f"t1/c0/f:{number}#0", "f"))])
        assert [record.time for record in await store.read("s")] == times
        assert await store.check() == []
        await store.close()

    asyncio.run(main())


def test_what_a_deleted_session_took_is_given_back_to_the_disk(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        lease = await store.lease("s")
        for number in range(20):
            await lease.append([event(number, size=200_000)])
        await lease.release()
        await recorded(store, "t")
        await store.delete("s")
        await store.collect()
        await store.close()

    asyncio.run(main())
    assert (tmp_path / "store.db").stat().st_size < 200_000
    assert asyncio.run(length(tmp_path, "t")) == 3
