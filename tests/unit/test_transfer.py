"""Sessions as files: what goes out comes in again, byte for byte, and what is not right comes in not at all."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.errors import (
    BlobError,
    ConfigurationError,
    LogError,
    RLMError,
    SessionExistsError,
    StoreError,
    UnknownSessionError,
)
from rlm.log import dump
from rlm.ports import Content, Store
from rlm.stores import get_store
from rlm.stores.memory import MemoryStore
from rlm.transfer import FORMAT, LOG, MANIFEST, export_session, import_session
from rlm.types import (
    Answered,
    Asked,
    Checkpointed,
    ContextAdded,
    Event,
    HeapChange,
    Opened,
    Ran,
    Recorded,
    Rewound,
    RLMChatCompletion,
    Saved,
)

LONG = b"a context, longer than what is kept in a row. " * 40_000


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def recorded(events: Sequence[Event]) -> list[Recorded]:
    return [Recorded(number, 1_700_000_000.5 + number, event) for number, event in enumerate(events)]


def checkpoint(cells: int, name: str, blob: bytes) -> Checkpointed:
    return Checkpointed("", cells, HeapChange([Saved([name], ["list"], digest(blob), len(blob))], python="3.11"))


def conversation() -> tuple[list[Event], dict[str, bytes]]:
    """A session of two turns: an input, a variable that each turn rebinds, and their blobs."""
    blobs = [LONG, b"the first value", b"the second value"]
    events: list[Event] = [Opened("", "a", "scripted", "local", "0.1")]
    for number in (0, 1):
        at = f"t{number}"
        events.append(Asked(at, f"question {number}", given=number == 0))
        if number == 0:
            events.append(ContextAdded("context_0", 0, "str", len(LONG), digest=digest(LONG), format="text"))
        events.append(Ran(f"{at}/c0", "x = [1]"))
        events.append(checkpoint(number + 1, "x", blobs[number + 1]))
        events.append(Answered(at, RLMChatCompletion("scripted", f"question {number}", "ü" * 10, turn=number)))
    return events, {digest(blob): blob for blob in blobs}


async def stored(store: Store, name: str, events: Sequence[Event], blobs: Mapping[str, Content | None]) -> None:
    lease = await store.lease(name)
    await lease.append(recorded(events), blobs)
    await lease.release()


async def contents(store: Store, digests: Sequence[str]) -> dict[str, bytes]:
    found = {}
    for one in digests:
        blob = await store.blob(one)
        found[one] = blob if isinstance(blob, bytes) else blob.read_bytes()
    return found


def exported(path: Path) -> Path:
    """The conversation as a file."""

    async def export() -> None:
        store = MemoryStore()
        await stored(store, "a", *conversation())
        await export_session(store, "a", path)

    asyncio.run(export())
    return path


def refused(path: Path) -> str:
    """Why the file is not imported; nothing of it is in the store then."""

    async def take() -> str:
        store = MemoryStore()
        with pytest.raises(StoreError) as caught:
            await import_session(store, path)
        assert await store.list() == []
        assert await store.collect() == 0
        return str(caught.value)

    return asyncio.run(take())


def changed(path: Path, change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> Path:
    """The file with other entries, given as name -> content beside the manifest."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(entries.pop(MANIFEST))
    change(entries, manifest)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        archive.writestr(MANIFEST, json.dumps(manifest))
    return path


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_a_session_comes_in_as_it_went_out(kind: str, tmp_path: Path) -> None:
    async def carry() -> None:
        events, blobs = conversation()
        here = MemoryStore() if kind == "memory" else get_store(tmp_path / "here")
        there = MemoryStore() if kind == "memory" else get_store(tmp_path / "there")
        await stored(here, "a", events, blobs)
        size = await export_session(here, "a", tmp_path / "a.rlm")
        assert size == (tmp_path / "a.rlm").stat().st_size
        assert await import_session(there, tmp_path / "a.rlm") == "a"
        assert await there.read("a") == await here.read("a")
        assert await contents(there, list(blobs)) == blobs
        assert await there.check() == []
        assert await there.collect() == 0
        [known], [listed] = await here.list(), await there.list()
        assert (listed.turns, listed.question, listed.events) == (known.turns, known.question, known.events)
        await here.close()
        await there.close()

    asyncio.run(carry())
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a.rlm"]


def test_the_same_session_gives_the_same_file_for_its_owner_alone(tmp_path: Path) -> None:
    one, other = exported(tmp_path / "one"), exported(tmp_path / "other")
    assert one.read_bytes() == other.read_bytes()
    assert one.stat().st_mode & 0o777 == 0o600


def test_what_the_past_needed_goes_along_while_the_store_has_it(tmp_path: Path) -> None:
    async def carry() -> None:
        events, blobs = conversation()
        first, last = digest(b"the first value"), digest(b"the second value")
        store = MemoryStore()
        await stored(store, "a", events, blobs)
        await export_session(store, "a", tmp_path / "all")
        lease = await store.lease("a")
        await lease.hold([digest(LONG), last])
        await lease.release()
        await store.collect()
        await export_session(store, "a", tmp_path / "less")
        for file, expected in (("all", set(blobs)), ("less", set(blobs) - {first})):
            with zipfile.ZipFile(tmp_path / file) as archive:
                assert {name.removeprefix("blobs/") for name in archive.namelist()} == {MANIFEST, LOG, *expected}

    asyncio.run(carry())


def test_nothing_is_carried_that_the_session_does_not_need(tmp_path: Path) -> None:
    async def carry() -> set[str]:
        events, blobs = conversation()
        store = MemoryStore()
        await stored(store, "other", [Opened("", "other")], {digest(b"other"): b"other"})
        await stored(store, "a", [*events, checkpoint(2, "x", b"now")], {**blobs, digest(b"now"): b"now"})
        await export_session(store, "a", tmp_path / "a.rlm")
        with zipfile.ZipFile(tmp_path / "a.rlm") as archive:
            return {name.removeprefix("blobs/") for name in archive.namelist()}

    # The second value was the heap at the end of the last turn, before the checkpoint that belongs to that end too.
    expected = [LONG, b"the first value", b"now"]
    assert asyncio.run(carry()) == {MANIFEST, LOG, *map(digest, expected)}


def test_a_rewound_session_can_still_go_forward_elsewhere(tmp_path: Path) -> None:
    async def carry() -> dict[str, bytes]:
        events, blobs = conversation()
        here, there = MemoryStore(), MemoryStore()
        await stored(here, "a", [*events, Rewound("", 0)], blobs)
        await export_session(here, "a", tmp_path / "a.rlm")
        await import_session(there, tmp_path / "a.rlm")
        return await contents(there, list(blobs))

    assert asyncio.run(carry()) == conversation()[1]


def test_large_blobs_are_streamed(tmp_path: Path) -> None:
    size = 48 << 20
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(size)
        file.write(os.urandom(4 << 20))
    with big.open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest()

    async def carry() -> int:
        here, there = get_store(tmp_path / "here"), get_store(tmp_path / "there")
        events = [Opened("", "a"), ContextAdded("context_0", 0, "bytes", size, digest=name, format="bytes")]
        await stored(here, "a", events, {name: big})
        tracemalloc.start()
        try:
            await export_session(here, "a", tmp_path / "a.rlm")
            await import_session(there, tmp_path / "a.rlm")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert await there.check() == []
        assert [path.name for path in (tmp_path / "there" / "work").glob("*/*")] == []
        await here.close()
        await there.close()
        return peak

    assert asyncio.run(carry()) < size // 3


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_name_that_is_taken_stays_as_it_is_and_another_one_can_be_given(tmp_path: Path) -> None:
    path = exported(tmp_path / "a.rlm")

    async def take() -> None:
        store = MemoryStore()
        await stored(store, "a", [Opened("", "a", "mine")], {})
        with pytest.raises(SessionExistsError, match="'a' already: import under another name"):
            await import_session(store, path)
        assert [event.event for event in await store.read("a")] == [Opened("", "a", "mine")]
        assert await import_session(store, path, "b") == "b"
        assert len(await store.read("b")) == len(conversation()[0])

    asyncio.run(take())


def test_a_session_in_which_nothing_ever_happened_is_in_nobodys_way(tmp_path: Path) -> None:
    path = exported(tmp_path / "a.rlm")

    async def take() -> None:
        store = MemoryStore()
        await (await store.lease("a")).release()
        assert await import_session(store, path) == "a"

    asyncio.run(take())


def test_an_unknown_session_is_told_with_those_that_are_near(tmp_path: Path) -> None:
    async def export() -> None:
        store = MemoryStore()
        await stored(store, "acme-audit", *conversation())
        with pytest.raises(UnknownSessionError, match="near are 'acme-audit'"):
            await export_session(store, "acme-adit", tmp_path / "a.rlm")

    asyncio.run(export())
    assert not (tmp_path / "a.rlm").exists()


# -- what is not whole -------------------------------------------------------------------------------------------------


def test_a_session_whose_blobs_are_damaged_is_not_exported_and_what_stood_there_stays(tmp_path: Path) -> None:
    async def export() -> None:
        events, blobs = conversation()
        store = get_store(tmp_path / "store")
        await stored(store, "a", events, blobs)
        [file] = (tmp_path / "store" / "blobs").glob(f"??/{digest(LONG)}")
        file.chmod(0o600)
        data = bytearray(file.read_bytes())
        data[1_000_000] ^= 1
        file.write_bytes(data)
        (tmp_path / "a.rlm").write_text("what stood there")
        with pytest.raises(BlobError, match=digest(LONG)):
            await export_session(store, "a", tmp_path / "a.rlm")
        await store.close()

    asyncio.run(export())
    assert (tmp_path / "a.rlm").read_text() == "what stood there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.rlm", "store"]


WRONG: Mapping[str, tuple[Callable[[dict[str, bytes], dict[str, Any]], None], str]] = {
    "a blob is missing": (lambda entries, manifest: entries.pop(f"blobs/{digest(LONG)}"), "not as its manifest says"),
    "a blob is not in the manifest": (
        lambda entries, manifest: manifest["blobs"].pop(digest(LONG)),
        "not as its manifest says",
    ),
    "a blob that is needed is in neither": (
        lambda entries, manifest: (entries.pop(f"blobs/{digest(LONG)}"), manifest["blobs"].pop(digest(LONG))),
        f"blob {digest(LONG)} is not in it",
    ),
    "a blob has another content": (
        lambda entries, manifest: entries.update({f"blobs/{digest(b'the first value')}": b"the first valuE"}),
        "another digest",
    ),
    "a path leads out": (lambda entries, manifest: entries.update({"../evil": b"x"}), "'../evil' is not as"),
    "a path leads out, and the manifest says so": (
        lambda entries, manifest: (
            entries.update({"blobs/../../evil": b"x"}),
            manifest["blobs"].update({"../../evil": 1}),
        ),
        "says what cannot be",
    ),
    "a blob is larger than declared": (
        lambda entries, manifest: manifest["blobs"].update({digest(LONG): 10}),
        "has not the 10 bytes",
    ),
    "a size is negative": (
        lambda entries, manifest: manifest["blobs"].update({digest(LONG): -1}),
        "says what cannot be",
    ),
    "a size is no number": (lambda entries, manifest: manifest["log"].update(size="1"), "says what cannot be"),
    "the name is no text": (lambda entries, manifest: manifest.update(name=None), "says what cannot be"),
    "the manifest has no log": (lambda entries, manifest: manifest.pop("log"), "cannot be read"),
    "the format is newer": (lambda entries, manifest: manifest.update(format=FORMAT + 1), "update rlm"),
    "events are missing": (lambda entries, manifest: manifest.update(events=3), "is not what was exported"),
    "the log is another one": (
        lambda entries, manifest: entries.update({LOG: entries[LOG].replace(b"question 0", b"question 9")}),
        "is not what was exported",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_not_right_is_refused_by_name_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    change, told = WRONG[case]
    path = changed(exported(tmp_path / "a.rlm"), change)
    message = refused(path)
    assert message.startswith(str(path))
    assert told in message


def with_log(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> Path:
    """The file with another log, about which the manifest lies as well as it can."""

    def rewrite(entries: dict[str, bytes], manifest: dict[str, Any]) -> None:
        lines = [json.loads(line) for line in entries[LOG].splitlines()]
        change(lines)
        entries[LOG] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        manifest["events"] = len(lines)
        manifest["log"] = {"sha256": digest(entries[LOG]), "size": len(entries[LOG])}

    return changed(path, rewrite)


FORGED: Mapping[str, Callable[[list[dict[str, Any]]], object]] = {
    "numbers have a gap": lambda lines: lines.pop(2),
    "numbers go back": lambda lines: lines.insert(1, lines[0]),
    "a kind is unknown": lambda lines: lines[1]["event"].update(kind="unheard"),
    "a version is newer": lambda lines: lines[1]["event"].update(v=1_000),
    "a field is unknown": lambda lines: lines[1]["event"].update(surprise=1),
    "a value is of another type": lambda lines: lines[2]["event"].update(index="first"),
    "a place is no place": lambda lines: lines[3]["event"].update(at="ux/c0"),
    "a rewind leads nowhere": lambda lines: lines.append(
        {"n": len(lines), "t": 0.0, "event": {"v": 1, "kind": "rewound", "at": "", "turn": 99}}
    ),
    "a line is no record": lambda lines: lines.append({"n": len(lines)}),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_log_is_no_session(case: str, tmp_path: Path) -> None:
    path = with_log(exported(tmp_path / "a.rlm"), FORGED[case])

    async def take() -> None:
        store = MemoryStore()
        try:
            await import_session(store, path)
        except LogError as error:
            assert str(path) in str(error)  # noqa: PT017 - what is read may also be harmless
            assert await store.list() == []

    asyncio.run(take())


def test_what_is_no_session_at_all_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name in ("text", "empty", "zip"):
        assert "is no exported session" in refused(tmp_path / name)


def test_an_entry_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path / "a.rlm")
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zipfile's own, about the duplicate
        archive.writestr(LOG, b"")
    assert f"{LOG!r} is not as its manifest says" in refused(path)


def test_an_entry_that_is_packed_in_another_way_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path / "a.rlm")
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert "is packed in a way that no session is" in refused(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return exported(tmp_path_factory.mktemp("whole") / "a.rlm").read_bytes()


@settings(max_examples=150)
@given(data=st.data())
def test_a_file_with_a_flipped_bit_or_a_cut_is_refused_or_comes_in_as_it_was(
    data: st.DataObject, whole: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    position = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    if data.draw(st.booleans()):
        damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del damaged[position:]
    path = tmp_path_factory.getbasetemp() / "damaged.rlm"
    path.write_bytes(damaged)

    async def take() -> None:
        events, blobs = conversation()
        store = MemoryStore()
        try:
            name = await import_session(store, path)
        except (StoreError, ConfigurationError):
            assert await store.list() == []
            assert await store.collect() == 0
        else:
            assert [dump(record.event) for record in await store.read(name)] == [dump(event) for event in events]
            assert await contents(store, list(blobs)) == blobs

    asyncio.run(take())


def test_an_import_that_the_store_cannot_take_leaves_no_session(tmp_path: Path) -> None:
    class Full(MemoryStore):
        """Takes blobs, and fails at the log."""

        def add(self, session: Any, new: Any, blobs: Any) -> None:
            if new is not None:
                raise StoreError("the disk is full")
            super().add(session, new, blobs)

    path = exported(tmp_path / "a.rlm")

    async def take() -> None:
        store = Full()
        with pytest.raises(RLMError, match="the disk is full"):
            await import_session(store, path)
        assert await store.list() == []

    asyncio.run(take())
