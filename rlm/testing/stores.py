"""What every store promises (`rlm.ports.Store`, `rlm.ports.Lease`), as checks that anybody can run over their own.

With `open` a function that opens the store of one place, anew each time, as another process would:

    asyncio.run(check_store(lambda: open_at(new_place())))    # raises AssertionError with the name of the rule

    @pytest.mark.parametrize("check", STORE_CHECKS, ids=lambda check: check.__name__)
    def test_store(check, tmp_path):
        asyncio.run(check(lambda: MyStore(tmp_path)))
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from rlm.errors import BlobError, SessionBusyError, SessionExistsError, StoreError, UnknownSessionError
from rlm.ports import Content, Lease, Owned, Store
from rlm.types import (
    Answered,
    Asked,
    Called,
    CellError,
    Checkpointed,
    ContextAdded,
    Event,
    Failed,
    HeapChange,
    Lost,
    Opened,
    Ran,
    Recorded,
    Replied,
    REPLResult,
    Reply,
    RLMChatCompletion,
    Saved,
    Stopped,
    StoredSession,
    Usage,
    UsageSummary,
)

Open = Callable[[], Store]
"""Opens the store of one place. What was recorded through one that was opened before is there."""

Check = Callable[[Open], Awaitable[None]]

STORE_CHECKS: list[Check] = []
"""Each is the rule that its name says, over a place where nothing was recorded yet."""


async def check_store(new_place: Callable[[], Open]) -> None:
    """Run all checks, each over a new place. Raises `AssertionError` that names the first rule that does not hold."""
    for check in STORE_CHECKS:
        rule = getattr(check, "__name__", str(check)).replace("_", " ")
        try:
            await check(new_place())
        except Exception as error:
            raise AssertionError(f"{rule}: {error or type(error).__name__}") from error


# -- what the checks are written with ----------------------------------------------------------------------------------

SMALL = b"a small blob"
LARGE = bytes(range(256)) * (3 << 12)  # 3 MiB: no store keeps this in a row


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def records(*events: Event, first: int = 0, time: float = 1_000.0) -> Sequence[Recorded]:
    """The events in their places, a second apart."""
    return [Recorded(first + index, time + index, event) for index, event in enumerate(events)]


def called(number: int) -> Recorded:
    return Recorded(number, 1_000.0 + number, Called(f"t1/c0/llm_query:{number}#0", "llm_query", value=number))


EVERY_KIND: Sequence[Event] = (
    Opened("", "audit", "provider:model", "local", "1.0"),
    ContextAdded("t1", 0, "str", 10, "report", digest_of(SMALL), "text", "head … tail"),
    Asked("t1", "What? \ud800 ü \x00 'quoted'", key="k", model="provider:model"),
    Replied(
        "t1/a0", "iteration", Reply("text", "m", Usage(1, 2, 3, 1, None)), 0.1, ({"role": "user", "content": "x"},)
    ),
    Ran("t1/c0", "1/0", REPLResult("out", "err", CellError("ZeroDivisionError", "by zero"), execution_time=0.5)),
    Called("t1/c0/f:9f#0", "f", "prompt", {"a": [1, 2.5, None, True], "b": (1, 2)}, seconds=2.0),
    Checkpointed(
        "t1",
        1,
        HeapChange(
            groups=(Saved(("x",), ("int",), digest_of(SMALL), len(SMALL)),),
            lost={"g": Lost("generator", "it runs")},
        ),
    ),
    Answered("t1", RLMChatCompletion("m", "What?", "That.", UsageSummary({"m": Usage(1, 2, 3)}), turn=1)),
    Stopped("t2", "BudgetExceededError", "too much", "so far"),
    Failed("t3", "ModelError", "gone"),
)


class Broken(AssertionError):
    """A store does not do what it promises."""


def equal(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise Broken(f"{what}: expected {str(expected)[:500]}, found {str(found)[:500]}")


def true(condition: object, what: str) -> None:
    if not condition:
        raise Broken(what)


async def raises(error: type[Exception], doing: Awaitable[Any], what: str) -> Any:
    try:
        await doing
    except error as raised:
        return raised
    except Exception as raised:
        raise Broken(f"{what}: expected {error.__name__}, it raised {raised!r}") from raised
    raise Broken(f"{what}: expected {error.__name__}, it raised nothing")


def rule(check: Check) -> Check:
    STORE_CHECKS.append(check)
    return check


@contextlib.asynccontextmanager
async def opened(open: Open) -> AsyncIterator[Store]:
    store = open()
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def leased(store: Store, name: str) -> AsyncIterator[Lease]:
    lease = await store.lease(name)
    try:
        yield lease
    finally:
        await lease.release()


async def record(store: Store, name: str, *events: Event, blobs: dict[str, Content | None] | None = None) -> str:
    """Append to a session, and release it; returns its id."""
    async with leased(store, name) as lease:
        first = len(await store.read(name))
        await lease.append(records(*events, first=first), blobs)
        return lease.id


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def linked(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


async def content_of(store: Store, digest: str) -> bytes:
    blob = await store.blob(digest)
    return blob if isinstance(blob, bytes) else blob.read_bytes()


async def listed(store: Store, name: str) -> StoredSession:
    [found] = [session for session in await store.list() if session.name == name]
    return found


# -- sessions and their logs -------------------------------------------------------------------------------------------


@rule
async def a_store_without_sessions_reads_as_empty(open: Open) -> None:
    async with opened(open) as store:
        equal(list(await store.list()), [], "list")
        equal(await store.collect(), 0, "collect")
        equal(list(await store.check()), [], "check")
        await raises(UnknownSessionError, store.read("nobody"), "read")
        await raises(UnknownSessionError, store.rename("nobody", "somebody"), "rename")
        await raises(UnknownSessionError, store.delete("nobody"), "delete")
        await raises(BlobError, store.blob(digest_of(SMALL)), "blob")


@rule
async def a_lease_makes_the_session(open: Open) -> None:
    async with opened(open) as store:
        async with leased(store, "new") as lease:
            equal(lease.name, "new", "its name")
            equal([(one.id, one.name, one.events) for one in await store.list()], [(lease.id, "new", 0)], "list")
            equal(list(await store.read("new")), [], "read")
        first = lease.id
        async with leased(store, "new") as lease:
            equal(lease.id, first, "the id under the next lease")


@rule
async def events_of_every_kind_come_back_as_they_were(open: Open) -> None:
    async with opened(open) as store:
        await record(store, "s", *EVERY_KIND)
        equal(list(await store.read("s")), records(*EVERY_KIND), "read")
    async with opened(open) as store:
        equal(list(await store.read("s")), records(*EVERY_KIND), "read, in a store opened anew")


@rule
async def a_log_grows_by_appends_of_any_length(open: Open) -> None:
    async with opened(open) as store, leased(store, "s") as lease:
        number = 0
        for length in (1, 0, 3, 100, 1):
            await lease.append([called(number + index) for index in range(length)])
            number += length
            equal([record.number for record in await store.read("s")], list(range(number)), "numbers")
        equal((await listed(store, "s")).events, number, "events")


@rule
async def numbers_have_no_gaps(open: Open) -> None:
    async with opened(open) as store, leased(store, "s") as lease:
        await raises(StoreError, lease.append([called(1)]), "an append that begins at 1")
        await lease.append([called(0)])
        for numbers in ((0,), (2,), (1, 3), (1, 1), (2, 1)):
            await raises(StoreError, lease.append([called(number) for number in numbers]), f"events {numbers} after 0")
        equal(len(await store.read("s")), 1, "events")
        await lease.append([called(1)])
        equal(len(await store.read("s")), 2, "events")


@rule
async def what_was_recorded_does_not_change_with_the_callers_objects(open: Open) -> None:
    async with opened(open) as store, leased(store, "s") as lease:
        value = [1]
        await lease.append(records(Called("t1/c0/f:1#0", "f", value=value)))
        value.append(2)
        [found] = await store.read("s")
        equal(found.event, Called("t1/c0/f:1#0", "f", value=[1]), "the event")


@rule
async def appends_take_effect_in_the_order_of_their_calls(open: Open) -> None:
    async with opened(open) as store, leased(store, "s") as lease:
        appends = []
        for number in range(20):
            data = bytes([number]) * (4 << 20 if number % 7 == 0 else 10)
            blobs: dict[str, Content | None] = {} if number % 2 else {digest_of(data): data}
            appends.append(lease.append([called(number)], blobs))
        await asyncio.gather(*appends)
        equal([record.number for record in await store.read("s")], list(range(20)), "numbers")


@rule
async def sessions_do_not_mix(open: Open) -> None:
    async with opened(open) as store:
        leases = [await store.lease(f"s{index}") for index in range(10)]
        await asyncio.gather(*(lease.append([called(number)]) for number in range(20) for lease in leases))
        for lease in leases:
            equal([record.number for record in await store.read(lease.name)], list(range(20)), lease.name)


@rule
async def one_failing_append_takes_nothing_of_the_others_with_it(open: Open) -> None:
    async with opened(open) as store:
        good, bad = await store.lease("good"), await store.lease("bad")
        outcomes = await asyncio.gather(
            good.append([called(0)]), bad.append([called(7)]), good.append([called(1)]), return_exceptions=True
        )
        equal([type(one).__name__ for one in outcomes], ["NoneType", "StoreError", "NoneType"], "outcomes")
        equal(len(await store.read("good")), 2, "events of the one")
        equal(len(await store.read("bad")), 0, "events of the other")


@rule
async def a_log_is_read_while_somebody_writes(open: Open) -> None:
    async with opened(open) as writing, opened(open) as reading, leased(writing, "s") as lease:
        for number in range(5):
            await lease.append([called(number)])
            equal([record.number for record in await reading.read("s")], list(range(number + 1)), "numbers")


@rule
async def an_unknown_session_is_told_with_those_that_are_near(open: Open) -> None:
    async with opened(open) as store:
        await record(store, "acme-audit")
        error = await raises(UnknownSessionError, store.read("acme-audti"), "read")
        true("acme-audit" in str(error), f"the message does not name the session that is near: {error}")


# -- listing -----------------------------------------------------------------------------------------------------------


@rule
async def a_listing_tells_turns_question_and_model(open: Open) -> None:
    async with opened(open) as store:
        await record(store, "s", Opened("", "s", "provider:model"))
        found = await listed(store, "s")
        equal((found.turns, found.unfinished, found.question, found.model), (0, False, None, "provider:model"), "new")
        await record(store, "s", Asked("t1", "Why? \ud800"))
        found = await listed(store, "s")
        equal((found.turns, found.unfinished, found.question), (1, True, "Why? \ud800"), "asked")
        await record(store, "s", Asked("t1/c0/rlm_query:1#0", "a child"), Answered("t1/c0/rlm_query:1#0"))
        found = await listed(store, "s")
        equal((found.turns, found.unfinished, found.question), (1, True, "Why? \ud800"), "a child's turn")
        for turn, end in enumerate((Answered("t1"), Stopped("t2"), Failed("t3")), 1):
            await record(store, "s", end)
            found = await listed(store, "s")
            equal((found.turns, found.unfinished), (turn, False), f"after {end.kind}")
            await record(store, "s", Asked(f"t{turn + 1}", "Next?"))
        found = await listed(store, "s")
        equal((found.turns, found.unfinished, found.question), (4, True, "Next?"), "asked again")
        equal(found.events, len(await store.read("s")), "events")


@rule
async def the_session_changed_last_is_listed_first_whatever_the_clock_says(open: Open) -> None:
    async with opened(open) as store:
        for index, name in enumerate(("a", "b", "c", "a", "b")):
            async with leased(store, name) as lease:
                first = len(await store.read(name))
                await lease.append([Recorded(first, 1_000.0 - index, Called("t1/c0/f:1#0"))])
        equal([session.name for session in await store.list()], ["b", "a", "c"], "order")
        equal((await listed(store, "b")).updated, 996.0, "updated: the time of the last event")
        async with leased(store, "c"):
            equal([session.name for session in await store.list()], ["b", "a", "c"], "order: a lease changes nothing")
        await record(store, "d")
        equal([session.name for session in await store.list()], ["d", "b", "a", "c"], "order: a new one is first")


# -- one writer --------------------------------------------------------------------------------------------------------


@rule
async def a_session_has_one_writer(open: Open) -> None:
    async with opened(open) as one, opened(open) as other:
        lease = await one.lease("s")
        for store in (one, other):
            busy = await raises(SessionBusyError, store.lease("s"), "a second lease")
            true(busy.pid and busy.host and busy.since, f"the error does not say who has it: {busy}")
        async with leased(other, "t"):
            pass
        await lease.release()
        await lease.release()
        await (await other.lease("s")).release()


@rule
async def a_lease_is_waited_for(open: Open) -> None:
    async with opened(open) as one, opened(open) as other:
        for wait in (30.0, None):
            lease = await one.lease("s")
            waiting = asyncio.ensure_future(other.lease("s", wait=wait))
            await asyncio.sleep(0.02)
            true(not waiting.done(), "it did not wait")
            await lease.release()
            await (await waiting).release()
        lease = await one.lease("s")
        await raises(SessionBusyError, other.lease("s", wait=0.02), "a lease that stays busy")
        waiting = asyncio.ensure_future(other.lease("s", wait=None))
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.wait([waiting])
        true(waiting.cancelled(), "waiting cannot be cancelled")
        await lease.release()
        await (await other.lease("s")).release()


@rule
async def after_its_release_a_lease_writes_no_more(open: Open) -> None:
    async with opened(open) as store:
        lease = await store.lease("s")
        await lease.append([called(0)])
        await lease.release()
        await raises(StoreError, lease.append([called(1)]), "append")
        await raises(StoreError, lease.hold([]), "hold")
        async with leased(store, "s") as next_lease:
            await raises(StoreError, lease.append([called(1)]), "append, with a writer after it")
            await next_lease.append([called(1)])
        equal(len(await store.read("s")), 2, "events")


@rule
async def a_release_waits_for_what_was_appended(open: Open) -> None:
    async with opened(open) as store:
        lease = await store.lease("s")
        append = asyncio.ensure_future(lease.append([called(0)], {digest_of(LARGE): LARGE}))
        await asyncio.sleep(0)
        await lease.release()
        await append
        equal(len(await store.read("s")), 1, "events")


@rule
async def closing_gives_the_leases_back(open: Open) -> None:
    store = open()
    await store.lease("s")
    await store.close()
    await store.close()
    async with opened(open) as other, leased(other, "s"):
        pass


# -- names -------------------------------------------------------------------------------------------------------------


@rule
async def a_renamed_session_is_the_same_one(open: Open) -> None:
    async with opened(open) as store:
        session = await record(store, "old", *EVERY_KIND)
        await store.rename("old", "new")
        equal([(one.id, one.name) for one in await store.list()], [(session, "new")], "list")
        equal(list(await store.read("new")), records(*EVERY_KIND), "read")
        await raises(UnknownSessionError, store.read("old"), "read, under the old name")
        async with leased(store, "new") as lease:
            equal((lease.id, lease.name), (session, "new"), "the lease")
        await store.rename("new", "new")
        await record(store, "old")
        equal(len(await store.list()), 2, "sessions")


@rule
async def a_name_belongs_to_one_session(open: Open) -> None:
    async with opened(open) as store:
        await record(store, "one")
        await record(store, "other")
        await raises(SessionExistsError, store.rename("one", "other"), "rename")
        equal(sorted(session.name for session in await store.list()), ["one", "other"], "names")


@rule
async def a_session_in_use_is_neither_renamed_nor_deleted(open: Open) -> None:
    async with opened(open) as one, opened(open) as other, leased(one, "s") as lease:
        for store in (one, other):
            await raises(SessionBusyError, store.rename("s", "t"), "rename")
            await raises(SessionBusyError, store.delete("s"), "delete")
        await lease.append([called(0)])
        equal(len(await other.read("s")), 1, "events")


@rule
async def names_are_texts_for_people(open: Open) -> None:
    async with opened(open) as store:
        names = ["ü", "two words", "a/b", "../up", ".", "'; DROP TABLE sessions", "a" * 200, "日本"]
        for name in names:
            await record(store, name)
        equal(sorted(session.name for session in await store.list()), sorted(names), "names")
        for name in ("", " ", "two\nlines", "\ud800"):
            await raises(StoreError, store.lease(name), f"the name {name!r}")
            await raises(StoreError, store.rename("ü", name), f"the name {name!r}")


@rule
async def a_deleted_session_is_gone(open: Open) -> None:
    async with opened(open) as store:
        first = await record(store, "s", *EVERY_KIND, blobs={digest_of(SMALL): SMALL})
        await store.delete("s")
        equal(list(await store.list()), [], "list")
        await raises(UnknownSessionError, store.read("s"), "read")
        true(await record(store, "s") != first, "a session made later under the same name is another one")
        equal(list(await store.read("s")), [], "its log")


@rule
async def a_session_that_was_never_used_can_be_forgotten_on_release(open: Open) -> None:
    async with opened(open) as store:
        lease = await store.lease("s")
        await lease.release(unused=True)
        equal(list(await store.list()), [], "list, after a release of what was never used")
        lease = await store.lease("s")
        await lease.append([called(0)])
        await lease.release(unused=True)
        equal([one.name for one in await store.list()], ["s"], "list, after a release of what was used")


# -- blobs -------------------------------------------------------------------------------------------------------------


@rule
async def blobs_come_back_under_their_digests(open: Open) -> None:
    contents = [b"", SMALL, bytes(200_000), bytes((1 << 20) - 1), bytes(1 << 20), LARGE]
    async with opened(open) as store:
        await record(store, "s", blobs={digest_of(data): data for data in contents})
    async with opened(open) as store:
        for data in contents:
            equal(await content_of(store, digest_of(data)) == data, True, f"a blob of {len(data)} bytes")
        true(isinstance(await store.blob(digest_of(SMALL)), bytes), "a small blob is no bytes")
        equal(list(await store.check()), [], "check")


@rule
async def files_of_workers_are_copied(open: Open) -> None:
    async with opened(open) as store:
        with tempfile.TemporaryDirectory() as folder:
            for data in (SMALL, LARGE):
                path = written(Path(folder, "file"), data)
                await record(store, "s", Called("t1/c0/f:1#0"), blobs={digest_of(data): path})
                written(path, b"another content")
                equal(await content_of(store, digest_of(data)) == data, True, f"{len(data)} bytes")
        equal(await content_of(store, digest_of(LARGE)) == LARGE, True, "the blob, its file gone")


@rule
async def what_is_no_regular_file_is_refused(open: Open) -> None:
    async with opened(open) as store, leased(store, "s") as lease:
        with tempfile.TemporaryDirectory() as folder:
            link = linked(Path(folder, "link"), written(Path(folder, "real"), LARGE))
            for path in (link, Path(folder), Path(folder, "missing"), Path("/dev/zero")):
                await raises(BlobError, lease.append([called(0)], {digest_of(LARGE): path}), f"the blob {path.name}")
        equal(list(await store.read("s")), [], "events")


@rule
async def files_of_our_own_are_taken(open: Open) -> None:
    async with opened(open) as store, leased(store, "s") as lease:
        with tempfile.TemporaryDirectory() as other:
            for place in (lease.folder or Path(other), Path(other)):
                for number, data in enumerate((SMALL, LARGE + str(place).encode())):
                    path = written(place / f"file{number}", data)
                    await lease.append([], {digest_of(data): Owned(path)})
                    path.unlink()
                    equal(await content_of(store, digest_of(data)) == data, True, f"{len(data)} bytes")


@rule
async def the_folder_of_a_lease_is_its_own(open: Open) -> None:
    async with opened(open) as store:
        async with leased(store, "s") as one, leased(store, "t") as other:
            folder = one.folder
            if folder is None:
                return
            true(folder.is_dir() and folder.stat().st_mode & 0o077 == 0, "it is no folder for its owner alone")
            true(other.folder != folder, "two sessions have the same")
            (folder / "file").write_text("")
        true(not folder.exists(), "it is left after the release")
        async with leased(store, "s") as one:
            equal([*(one.folder or folder).iterdir()], [], "what is in it under the next lease")


@rule
async def a_blob_with_another_digest_is_refused_with_its_events(open: Open) -> None:
    async with opened(open) as store, leased(store, "s") as lease:
        with tempfile.TemporaryDirectory() as folder:
            path = written(Path(folder, "file"), LARGE[:-1])
            wrong: list[tuple[str, Content | None]] = [
                (digest_of(SMALL), b"something else"),
                (digest_of(LARGE), LARGE[:-1]),
                (digest_of(LARGE), path),
                (digest_of(LARGE), Owned(path)),
                (digest_of(SMALL), None),
                ("no digest", SMALL),
                ("../../../x", SMALL),
                (digest_of(SMALL).upper(), SMALL),
            ]
            good = b"a blob that is right"
            for digest, content in wrong:
                blobs = {digest_of(good): good, digest: content}
                await raises(BlobError, lease.append([called(0)], blobs), f"{str(content)[:40]} under {digest[:10]}")
        equal(list(await store.read("s")), [], "events")
        await raises(BlobError, store.blob(digest_of(good)), "the right blob, given with a wrong one")
        await raises(BlobError, store.blob("../../../x"), "a blob that is no digest")
        await lease.append([called(0)], {digest_of(good): good})
        equal(await content_of(store, digest_of(good)), good, "the right blob, alone")


@rule
async def no_blob_is_kept_of_events_that_are_refused(open: Open) -> None:
    async with opened(open) as store, leased(store, "s") as lease:
        for data in (SMALL, LARGE):
            await raises(StoreError, lease.append([called(5)], {digest_of(data): data}), "append")
            await raises(BlobError, store.blob(digest_of(data)), "its blob")


@rule
async def blobs_are_shared_between_sessions(open: Open) -> None:
    async with opened(open) as store:
        await record(store, "one", blobs={digest_of(SMALL): SMALL, digest_of(LARGE): LARGE})
        await record(store, "other", blobs={digest_of(SMALL): None, digest_of(LARGE): None})
        await store.delete("one")
        equal(await store.collect(), 0, "bytes that became free")
        for data in (SMALL, LARGE):
            equal(await content_of(store, digest_of(data)) == data, True, f"{len(data)} bytes")


@rule
async def a_blob_may_be_given_again(open: Open) -> None:
    async with opened(open) as store, leased(store, "s") as lease:
        for data in (SMALL, LARGE):
            for _ in range(2):
                await lease.append([], {digest_of(data): data})
                equal(await content_of(store, digest_of(data)) == data, True, f"{len(data)} bytes")


@rule
async def blobs_that_no_session_needs_are_collected(open: Open) -> None:
    async with opened(open) as store:
        for name in ("one", "other"):
            await record(store, name, blobs={digest_of(SMALL): SMALL, digest_of(LARGE): LARGE})
        await store.delete("one")
        equal(await store.collect(), 0, "bytes of what another session needs")
        await store.delete("other")
        equal(await content_of(store, digest_of(SMALL)), SMALL, "a blob before the collection")
        equal(await store.collect(), len(SMALL) + len(LARGE), "bytes that became free")
        for data in (SMALL, LARGE):
            await raises(BlobError, store.blob(digest_of(data)), "a blob that was collected")
        equal(await store.collect(), 0, "bytes of a second collection")
        equal(list(await store.check()), [], "check")
        await record(store, "again", blobs={digest_of(LARGE): LARGE})
        equal(await content_of(store, digest_of(LARGE)) == LARGE, True, "the blob, given again")


@rule
async def a_session_holds_what_it_says_and_no_more(open: Open) -> None:
    first, second, third = b"first", b"second", LARGE
    async with opened(open) as store, leased(store, "s") as lease:
        await lease.append([], {digest_of(data): data for data in (first, second, third)})
        await lease.hold([digest_of(third), digest_of(first), digest_of(first)])
        equal(await store.collect(), len(second), "bytes that became free")
        await raises(BlobError, lease.hold([digest_of(second)]), "to hold what is not there")
        equal(await store.collect(), 0, "bytes, after a hold that failed")
        await lease.append([], {digest_of(second): second})
        equal(await store.collect(), 0, "bytes: what is appended is held, too")
        await lease.hold([])
        equal(await store.collect(), len(first) + len(second) + len(third), "bytes that became free in the end")


@rule
async def collecting_beside_appends_loses_nothing(open: Open) -> None:
    """A blob that nobody needs is given again just while it is collected, by another handle."""
    async with opened(open) as one, opened(open) as other:
        held: set[str] = set()
        async with leased(one, "s") as lease:
            for turn in range(15):
                data = [bytes([turn % 3]) * (1 << 20), bytes([turn % 3]) * 100]
                await lease.append([], {digest_of(some): some for some in data})
                await lease.hold([])
                held = {digest_of(some) for some in data}
                again = lease.append([], {digest_of(some): some for some in data})
                await asyncio.gather(again, other.collect(), one.collect())
                for some in data:
                    equal(await content_of(other, digest_of(some)) == some, True, f"{len(some)} bytes in turn {turn}")
        await other.collect()
        for digest in held:
            await content_of(other, digest)
        equal(list(await other.check()), [], "check")
