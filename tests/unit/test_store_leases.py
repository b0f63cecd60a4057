"""One writer a session, across processes: who it is, how a dead one loses it, why a stale one writes no more."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from rlm.errors import SessionBusyError, StaleLeaseError, StoreError
from rlm.stores.sqlite import SQLiteStore
from rlm.types import Called, Recorded
from tests.store_processes import child, said

HOLDER = """
store = SQLiteStore(sys.argv[1])
lease = asyncio.run(store.lease("s"))
asyncio.run(lease.append([event(0)]))
(lease.folder / "left").write_text("behind")
say(lease.folder)
for line in sys.stdin:
    number = int(line)
    try:
        asyncio.run(lease.append([event(number)]))
        say("recorded")
    except StoreError as error:
        say(type(error).__name__, error)
"""


def event(number: int) -> Recorded:
    return Recorded(number, 1_000.0 + number, Called(f"t1/c0/f:{number}#0", "f"))


async def numbers(store: SQLiteStore) -> list[int]:
    return [record.number for record in await store.read("s")]


def test_who_has_a_session_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        with child(HOLDER, tmp_path) as holder:
            holder.line()
            with pytest.raises(SessionBusyError) as raised:
                await store.lease("s")
            busy = raised.value
            assert (busy.host, busy.pid) == (socket.gethostname(), holder.pid)
            assert 0 <= time.time() - busy.since < 1_000
            assert str(busy).startswith(f"session 's' is in use by process {holder.pid} on {busy.host} since ")
            assert str(busy).endswith(": wait for it (wait=), or end it")
            for doing in (store.rename("s", "t"), store.delete("s")):
                with pytest.raises(SessionBusyError):
                    await doing
            assert await numbers(store) == [0]
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": "x"}', '{"host": "h", "pid": 1, "since": 1e300}'])
def test_a_holder_that_does_not_say_who_it_is_is_told_too(content: str, tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        with child(HOLDER, tmp_path) as holder:
            holder.line()
            [lock] = (tmp_path / "locks").iterdir()
            lock.write_text(content)
            with pytest.raises(SessionBusyError, match="in use by another process: wait for it"):
                await store.lease("s")
        await store.close()

    asyncio.run(main())


def test_a_killed_process_loses_its_session_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        with child(HOLDER, tmp_path) as holder:
            folder = Path(holder.line())
            holder.kill()
            lease = await store.lease("s")
            assert await numbers(store) == [0]
            assert lease.folder == folder
            assert list(lease.folder.iterdir()) == []  # what the dead process left in it is gone
            await lease.append([event(1)])
        await store.close()

    asyncio.run(main())


def test_whoever_waits_gets_the_session_when_its_holder_is_killed(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        with child(HOLDER, tmp_path) as holder:
            holder.line()
            waiting = asyncio.ensure_future(store.lease("s", wait=30))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            holder.kill()
            await (await waiting).append([event(1)])
        await store.close()

    asyncio.run(main())


def test_the_event_loop_goes_on_while_a_session_is_waited_for(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        with child(HOLDER, tmp_path) as holder:
            holder.line()
            waiting = asyncio.ensure_future(store.lease("s", wait=30))
            other = await store.lease("t")
            for number in range(50):
                await other.append([event(number)])
                await asyncio.sleep(0)
            assert not waiting.done()
            waiting.cancel()
        await store.close()

    asyncio.run(main())


# -- a forked child ----------------------------------------------------------------------------------------------------


def test_a_forked_child_of_the_holder_keeps_nothing_and_writes_nothing(tmp_path: Path) -> None:
    code = """
store = SQLiteStore(sys.argv[1])
lease = asyncio.run(store.lease("s"))
asyncio.run(lease.append([event(0)]))
folder = lease.folder
if (pid := os.fork()) == 0:
    for doing in (lease.append([event(1)]), lease.hold([]), store.read("s"), store.lease("t")):
        try:
            asyncio.run(doing)
            say("done")
        except StoreError as error:
            say(error)
    asyncio.run(lease.release())
    asyncio.run(store.close())
    say(folder.exists())
    again = SQLiteStore(sys.argv[1])
    try:
        asyncio.run(again.lease("s"))
    except SessionBusyError as error:
        say("busy", error.pid == os.getppid())
    say(len(asyncio.run(again.read("s"))))
    sys.stdin.readline()
    os._exit(0)
asyncio.run(lease.append([event(1)]))
time.sleep(0.2)
asyncio.run(lease.append([event(2)]))
say("waiting")
time.sleep(60)
"""

    async def main() -> None:
        store = SQLiteStore(tmp_path)
        with child(code, tmp_path) as holder:
            lines = [holder.line() for _ in range(8)]
            lines.remove("waiting")
            opened = [line for line in lines if "was opened by process" in line and "open it anew" in line]
            assert len(opened) == 4
            assert [line for line in lines if line not in opened][:2] == ["True", "busy True"]
            holder.kill()  # its child lives on
            lease = await store.lease("s")
            assert await numbers(store) == [0, 1, 2]
            await lease.release()
            holder.tell()
        await store.close()

    asyncio.run(main())


def test_a_forked_child_gets_a_store_of_its_own(tmp_path: Path) -> None:
    code = """
from rlm.stores import get_store
store = get_store(sys.argv[1])
lease = asyncio.run(store.lease("s"))
asyncio.run(lease.append([event(0)]))
if (pid := os.fork()) == 0:
    own = get_store(sys.argv[1])
    say(own is store, len(asyncio.run(own.read("s"))))
    lease = asyncio.run(own.lease("t"))
    asyncio.run(lease.append([event(0)]))
    asyncio.run(own.close())
    os._exit(0)
os.waitpid(pid, 0)
asyncio.run(lease.append([event(1)]))
say(len(asyncio.run(store.read("s"))), len(asyncio.run(store.read("t"))))
"""
    assert said(code, tmp_path) == ["False 1", "2 1"]


# -- a stale holder ----------------------------------------------------------------------------------------------------


def test_a_stale_holder_records_nothing_more(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        with child(HOLDER, tmp_path) as holder:
            holder.line()
            [lock] = (tmp_path / "locks").iterdir()
            lock.unlink()  # as somebody might who thinks that it was left behind
            lease = await store.lease("s")
            await lease.append([event(1)])
            (lease.folder / "mine").write_text("the new holder's")
            for number in (1, 2):
                holder.tell(str(number))
                assert holder.line().startswith("StaleLeaseError another process has taken the session over")
            assert await numbers(store) == [0, 1]
            await lease.append([event(2)])
            holder.kill()
            assert [path.name for path in lease.folder.iterdir()] == ["mine"]
        await store.close()

    asyncio.run(main())


def test_the_release_of_a_stale_lease_takes_nothing_from_its_successor(tmp_path: Path) -> None:
    code = HOLDER + 'asyncio.run(lease.release())\nsay("released")\n'

    async def main() -> None:
        store = SQLiteStore(tmp_path)
        with child(code, tmp_path) as holder:
            holder.line()
            [lock] = (tmp_path / "locks").iterdir()
            lock.unlink()
            lease = await store.lease("s")
            (lease.folder / "mine").write_text("the new holder's")
            assert holder.process.stdin is not None
            holder.process.stdin.close()
            assert holder.line() == "released"
            assert [path.name for path in lease.folder.iterdir()] == ["mine"]
            other = SQLiteStore(tmp_path)
            with pytest.raises(SessionBusyError):
                await other.lease("s")
            await lease.append([event(1)])
            await other.close()
        await store.close()

    asyncio.run(main())


def test_every_append_proves_its_epoch(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        lease = await store.lease("s")
        await lease.append([event(0)])
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("UPDATE sessions SET epoch = epoch + 1")
        for doing in (lease.append([event(1)]), lease.append([]), lease.hold([])):
            with pytest.raises(StaleLeaseError, match="another process has taken the session over"):
                await doing
        other.execute("DELETE FROM sessions")
        other.close()
        with pytest.raises(StaleLeaseError, match="the session was deleted"):
            await lease.append([event(1)])
        await store.close()

    asyncio.run(main())


def test_a_stale_writer_takes_nothing_of_the_others_with_it(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        stale, good = await store.lease("s"), await store.lease("t")
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("UPDATE sessions SET epoch = epoch + 1 WHERE name = 's'")
        other.close()
        appends = [lease.append([event(number)]) for number in range(10) for lease in (stale, good)]
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        assert [type(one) for one in outcomes] == [StaleLeaseError, type(None)] * 10
        assert len(await store.read("t")) == 10
        await store.close()

    asyncio.run(main())


# -- within a process --------------------------------------------------------------------------------------------------


def test_two_stores_of_one_process_exclude_each_other_on_whichever_path(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "store")

    async def main() -> None:
        one, other = SQLiteStore(tmp_path / "store"), SQLiteStore(tmp_path / "link")
        lease = await one.lease("s")
        for _ in range(3):
            with pytest.raises(SessionBusyError) as raised:
                await other.lease("s")
            assert raised.value.pid == os.getpid()
        # Trying did not drop the lock: other processes still find it.
        code = """
try:
    asyncio.run(SQLiteStore(sys.argv[1]).lease("s"))
except SessionBusyError as error:
    say(error.pid)
"""
        assert said(code, tmp_path / "store") == [str(os.getpid())]
        await lease.release()
        await (await other.lease("s")).release()
        await one.close()
        await other.close()

    asyncio.run(main())


def test_a_deleted_session_leaves_no_lock_and_no_files(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)
        with child(HOLDER, tmp_path) as holder:
            holder.line()
            holder.kill()
        await store.delete("s")
        assert list((tmp_path / "locks").iterdir()) == []
        assert list((tmp_path / "work").iterdir()) == []
        await store.close()

    asyncio.run(main())


def test_many_tasks_that_want_one_session_get_it_one_after_the_other(tmp_path: Path) -> None:
    async def main() -> None:
        store = SQLiteStore(tmp_path)

        async def one_event() -> None:
            lease = await store.lease("s", wait=None)
            await lease.append([event(len(await store.read("s")))])
            await lease.release()

        await asyncio.gather(*(one_event() for _ in range(10)))
        assert await numbers(store) == list(range(10))
        await store.close()

    asyncio.run(main())


def test_sessions_are_deleted_renamed_and_leased_by_many_at_once(tmp_path: Path) -> None:
    """Whoever gets a lease writes to a session that is there, and numbers begin with the session's own first."""

    async def main() -> None:
        stores = [SQLiteStore(tmp_path) for _ in range(2)]

        async def write(store: SQLiteStore) -> None:
            for _ in range(15):
                lease = await store.lease("s", wait=None)
                before = await numbers(store)
                await lease.append([event(len(before))])
                assert await numbers(store) == [*before, len(before)]
                await lease.release()

        async def disturb(store: SQLiteStore) -> None:
            for number in range(15):
                for doing in (store.delete("s"), store.rename("s", f"old-{number}")):
                    try:
                        await doing
                    except (StoreError, LookupError, SessionBusyError):
                        await asyncio.sleep(0)

        await asyncio.gather(*map(write, stores), *map(disturb, stores))
        assert await stores[0].check() == []
        for store in stores:
            await store.close()

    asyncio.run(main())
