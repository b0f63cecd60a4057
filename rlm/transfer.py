"""A stored session as one file, and back: to another machine, into another store, or away for safekeeping.

The file is a zip of a manifest, the log as lines of JSON, and those blobs that the session needs, under their digests.
Nothing in it is trusted: everything is verified before the first of it is stored, and what is stored is all or nothing.
Large blobs are streamed in both directions.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import shutil
import stat
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from rlm import files
from rlm.errors import BlobError, LogError, RLMError, SessionExistsError, StoreError
from rlm.folds import Past
from rlm.log import dump_record, load_record
from rlm.portal import in_thread
from rlm.ports import Content, Lease, Owned, Store
from rlm.types import Recorded
from rlm.version import __version__

T = TypeVar("T")

FORMAT = 1
MANIFEST, LOG, BLOBS = "rlm-session.json", "log.jsonl", "blobs/"
LONGEST_MANIFEST = 64 << 20  # bytes: half a million blobs
PIECE = 1 << 20  # bytes read at once
LARGE = 1 << 20  # bytes from which a blob goes by a file
AT_A_TIME = 64 << 20  # bytes of small blobs that are stored together
LEVEL = 1  # of compression: the higher ones cost several times as long for a few percent
TRIES = 3  # while somebody writes to the session, what it needed a moment ago may be gone
DIGEST = re.compile(r"[0-9a-f]{64}")
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)
"""What reading a damaged zip raises; RuntimeError for one that is encrypted."""


# -- out ---------------------------------------------------------------------------------------------------------------


async def export_session(store: Store, name: str, path: Path) -> int:
    """Write the session to `path`, in place of what stands there, and return the bytes of the file.

    It holds the whole log, the inputs and the heap as the session has them now, and of earlier turns what the store
    still has. Raises `UnknownSessionError`, `BlobError` where something that it needs is missing or damaged, `OSError`.
    """
    for left in reversed(range(TRIES)):
        records = await store.read(name)
        try:
            return await _export(store, name, records, path)
        except BlobError:
            if not left or len(await store.read(name)) == len(records):
                raise
    raise AssertionError("the last try returns or raises")


async def _export(store: Store, name: str, records: Sequence[Recorded], path: Path) -> int:
    loop, stop = asyncio.get_running_loop(), threading.Event()
    past = Past(records)
    needed = [*past.blobs()]
    more = {digest for held in past.held.values() for digest in held}.difference(needed)

    def fetch(digest: str) -> bytes | Path:
        return asyncio.run_coroutine_threadsafe(store.blob(digest), loop).result()

    def work() -> int:
        with files.replacing(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as to:
            _write(to, name, records, _contents(fetch, needed, sorted(more)), stop)
        return path.stat().st_size

    return await _by_thread(work, stop)


def _contents(
    fetch: Callable[[str], bytes | Path], needed: Iterable[str], more: Iterable[str]
) -> Iterator[tuple[str, bytes | Path]]:
    """Each digest with its content; of those that could be spared, such as the store has."""
    for digest in needed:
        yield digest, fetch(digest)
    for digest in more:
        with contextlib.suppress(BlobError):
            content = fetch(digest)
            if isinstance(content, bytes) or _digest_of(content) == digest:
                yield digest, content


def _write(
    archive: zipfile.ZipFile,
    name: str,
    records: Sequence[Recorded],
    blobs: Iterable[tuple[str, bytes | Path]],
    stop: threading.Event,
) -> None:
    log = hashlib.sha256()
    size = 0
    with archive.open(_entry(LOG), "w", force_zip64=True) as entry:
        for record in records:
            line = dump_record(record).encode("ascii") + b"\n"
            log.update(line)
            size += len(line)
            entry.write(line)
    sizes = {digest: _write_blob(archive, digest, content, stop) for digest, content in blobs}
    manifest = {
        "format": FORMAT,
        "name": name,
        "version": __version__,
        "events": len(records),
        "log": {"sha256": log.hexdigest(), "size": size},
        "blobs": sizes,
    }
    archive.writestr(_entry(MANIFEST), json.dumps(manifest, indent=1))


def _write_blob(archive: zipfile.ZipFile, digest: str, content: bytes | Path, stop: threading.Event) -> int:
    found = hashlib.sha256()
    size = 0
    with archive.open(_entry(BLOBS + digest), "w", force_zip64=True) as entry:
        for piece in _pieces(content):
            _check(stop)
            found.update(piece)
            size += len(piece)
            entry.write(piece)
    if found.hexdigest() != digest:
        raise BlobError(f"the blob {digest} is damaged: its content has another digest")
    return size


def _entry(name: str) -> zipfile.ZipInfo:
    """With a fixed date, so that the same session gives the same file."""
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = (stat.S_IFREG | 0o600) << 16
    return info


def _pieces(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    try:
        file = content.open("rb")
    except FileNotFoundError:
        raise BlobError(f"{content} is missing") from None
    with file:
        while piece := file.read(PIECE):
            yield piece


def _digest_of(path: Path) -> str:
    found = hashlib.sha256()
    for piece in _pieces(path):
        found.update(piece)
    return found.hexdigest()


# -- in ----------------------------------------------------------------------------------------------------------------


async def import_session(store: Store, path: Path, name: str | None = None) -> str:
    """Bring an exported session into the store, and return its name there: `name`, else the one that it had.

    Raises `SessionExistsError` where the name is taken, `StoreError` (`BlobError`, `LogError`) naming the file where
    that is damaged or no session; then nothing of it is in the store. `OSError` where it cannot be opened.
    """
    stop = threading.Event()
    with path.open("rb") as file:
        found = await _by_thread(lambda: _verified(path, file, stop), stop)
        name = name or found.name
        known = {one.name: one for one in await store.list()}
        if name in known and known[name].events:
            raise _taken(name)
        lease = await store.lease(name)
        try:
            if await store.read(name):
                raise _taken(name)
            await _store(lease, found, stop)
        except BaseException:
            await lease.release()
            if name not in known:
                await _forget(store, name)
            raise
        await lease.release()
    return name


def _taken(name: str) -> SessionExistsError:
    return SessionExistsError(f"there is a session {name!r} already: import under another name, or delete it first")


async def _forget(store: Store, name: str) -> None:
    """Remove the session that was made for an import which failed; one that somebody uses by now is theirs."""
    with contextlib.suppress(RLMError):
        if not await store.read(name):
            await store.delete(name)


@dataclass(frozen=True, slots=True)
class _Found:
    """An exported session whose every byte was read and found right. blobs: digest -> bytes."""

    name: str
    records: Sequence[Recorded]
    blobs: Mapping[str, int]
    archive: _Archive


async def _store(lease: Lease, found: _Found, stop: threading.Event) -> None:
    """First the blobs, and then the log at once: without that, nobody sees them."""
    folder = lease.folder
    if folder is not None:
        free, wanted = shutil.disk_usage(folder).free, sum(found.blobs.values())
        if wanted > free:
            raise StoreError(
                f"{found.archive.path} holds {wanted:,} bytes, and there is room for {free:,} in {folder}: make room, "
                "or name another store"
            )
    batch: dict[str, Content] = {}
    for digest, size in found.blobs.items():
        large = size >= LARGE and folder is not None
        if batch and (large or sum(map(_size, batch.values())) + size > AT_A_TIME):
            await lease.append([], batch)
            batch = {}
        if large and folder is not None:
            file = folder / f"import-{digest}"
            await _by_thread(lambda digest=digest, file=file: found.archive.extract(digest, file, stop), stop)  # type: ignore[misc]
            await lease.append([], {digest: Owned(file)})
            file.unlink()
        else:
            batch[digest] = await _by_thread(lambda digest=digest: found.archive.blob(digest, stop), stop)  # type: ignore[misc]
    await lease.append(found.records, batch)


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else 0


def _verified(path: Path, file: IO[bytes], stop: threading.Event) -> _Found:
    archive = _Archive(path, file)
    records = archive.records(stop)
    try:
        needed = Past(records).blobs()
    except LogError as error:
        raise LogError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # events that do not fit
        raise LogError(f"{path}: its log is no session's ({type(error).__name__}: {error})") from error
    if missing := [digest for digest in needed if digest not in archive.blobs]:
        raise BlobError(f"{path} is not whole: blob {missing[0]} is not in it")
    for digest in archive.blobs:
        for _ in archive.pieces(digest, stop):
            pass
    return _Found(archive.name, records, archive.blobs, archive)


class _Archive:
    """The file of an exported session, as its manifest says it is. Everything read from it is verified on the way."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(file)
            self._entries = {info.filename: info for info in self._zip.infolist()}
        except UNREADABLE as error:
            raise StoreError(f"{path} is no exported session, or is damaged ({error})") from error
        manifest = self._manifest()
        self.name: str = manifest["name"]
        self.blobs: Mapping[str, int] = manifest["blobs"]
        self._events: int = manifest["events"]
        self._log: Mapping[str, Any] = manifest["log"]
        declared = {LOG: self._log["size"], **{BLOBS + digest: size for digest, size in self.blobs.items()}}
        names = [info.filename for info in self._zip.infolist() if info.filename != MANIFEST]
        if sorted(names) != sorted(declared):
            strange = sorted(set(names) ^ set(declared))[:1] or sorted({one for one in names if names.count(one) > 1})
            raise StoreError(f"{path} is damaged: {strange[0]!r} is not as its manifest says")
        for name, size in declared.items():
            if self._entries[name].file_size != size:
                raise StoreError(f"{path} is damaged: {name} has not the {size:,} bytes that its manifest says")

    def _manifest(self) -> dict[str, Any]:
        info = self._entries.get(MANIFEST)
        if info is None or info.file_size > LONGEST_MANIFEST:
            raise StoreError(f"{self.path} is no exported session: it has no {MANIFEST}")
        try:
            manifest = json.loads(b"".join(self._read(MANIFEST)))
            if manifest["format"] != FORMAT:
                raise StoreError(
                    f"{self.path} has the format {manifest['format']!r}, and this version of rlm reads {FORMAT}: "
                    "update rlm to import it"
                )
            log, blobs = manifest["log"], manifest["blobs"]
            sizes = [manifest["events"], log["size"], *blobs.values()]
            digests = [log["sha256"], *blobs]
            right = (
                isinstance(manifest["name"], str)
                and all(type(size) is int and size >= 0 for size in sizes)
                and all(isinstance(digest, str) and DIGEST.fullmatch(digest) for digest in digests)
            )
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise StoreError(f"{self.path} is damaged: its {MANIFEST} cannot be read ({error})") from error
        if not right:
            raise StoreError(f"{self.path} is damaged: its {MANIFEST} says what cannot be")
        return dict(manifest)

    def _read(self, name: str) -> Iterator[bytes]:
        """The content of an entry, piece by piece, of which there are no more bytes than its entry declares."""
        info = self._entries[name]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise StoreError(f"{self.path} is damaged: {name} is packed in a way that no session is")
        try:
            with self._zip.open(info) as entry:
                while piece := entry.read(PIECE):
                    yield piece
        except UNREADABLE as error:
            raise StoreError(f"{self.path} is damaged: {name} cannot be read ({error})") from error

    def records(self, stop: threading.Event) -> Sequence[Recorded]:
        """The log. Raises `LogError` where it is not the one that was exported, or no log."""
        log = hashlib.sha256()
        records: list[Recorded] = []
        begun: list[bytes] = []
        for piece in self._read(LOG):
            _check(stop)
            log.update(piece)
            first, *lines = piece.split(b"\n")
            begun.append(first)
            for line in lines:
                records.append(self._record(b"".join(begun)))
                begun = [line]
        if log.hexdigest() != self._log["sha256"] or any(begun) or len(records) != self._events:
            raise LogError(f"{self.path} is damaged: its log is not what was exported")
        return records

    def _record(self, line: bytes) -> Recorded:
        try:
            return load_record(line.decode("ascii"))
        except (LogError, UnicodeDecodeError) as error:
            raise LogError(f"{self.path} is damaged: {error}") from error

    def pieces(self, digest: str, stop: threading.Event) -> Iterator[bytes]:
        """A blob. Raises `BlobError` in the end where it has another digest."""
        found = hashlib.sha256()
        for piece in self._read(BLOBS + digest):
            _check(stop)
            found.update(piece)
            yield piece
        if found.hexdigest() != digest:
            raise BlobError(f"{self.path} is damaged: the content of blob {digest} has another digest")

    def blob(self, digest: str, stop: threading.Event) -> bytes:
        return b"".join(self.pieces(digest, stop))

    def extract(self, digest: str, file: Path, stop: threading.Event) -> None:
        """Write a blob to a new file."""
        try:
            with file.open("xb") as written:
                for piece in self.pieces(digest, stop):
                    written.write(piece)
        except BaseException:
            file.unlink(missing_ok=True)
            raise


# -- in a thread -------------------------------------------------------------------------------------------------------


class _StoppedError(Exception):
    """Whoever asked for it does not want it any more."""


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise _StoppedError


async def _by_thread(work: Callable[[], T], stop: threading.Event) -> T:
    """What `work` returns. Cancelled, it is told to stop, and waited for: nothing of it is left behind."""
    task = asyncio.ensure_future(in_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([task])
        with contextlib.suppress(Exception):
            task.result()
        raise
