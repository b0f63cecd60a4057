"""Large blobs as files named by their SHA-256, written once: what stands under a name is complete and on disk.

A file is written beside its place, synced, renamed, and the folder synced, before any row refers to it. What a worker
wrote is never trusted: it is opened without following links, and copied while it is hashed. Our own files are linked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

from rlm.errors import BlobError
from rlm.ports import Content, Owned, Part
from rlm.stores.folders import make_folder, sync_folder

LARGE = (
    64 << 10
)  # bytes from which a blob is a file: from here on that is quicker than a row, which SQLite copies twice
FEW = 1 << 16  # bytes that are hashed where they are given: a thread takes longer to wake
PIECE = 1 << 20  # bytes read at once
DIGEST = re.compile(r"[0-9a-f]{64}")
NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EACCES})

Placed = Mapping[str, bytes | int | None]
"""By digest: the bytes of a small blob, the size of one that is a file, None for one that the store has already."""


def digest_of(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def verified(digest: str, data: bytes) -> bytes:
    """What is given as this blob; raises `BlobError` where its digest is another one."""
    if (found := digest_of(data)) != digest:
        raise _differs(digest, found, f"{len(data)} bytes")
    return data


def refuse_strange(digest: str) -> None:
    """Raises `BlobError` for what is no digest, which may also be no name of a file."""
    if not (isinstance(digest, str) and DIGEST.fullmatch(digest)):
        raise BlobError(f"{str(digest)[:80]!r} is no digest: give the SHA-256 in 64 hexadecimal digits")


def few(contents: Mapping[str, Content | None]) -> bool:
    """Whether all the contents can be looked at without holding anybody up."""
    given = [content for content in contents.values() if not (content is None or _is_placed(content))]
    return sum(len(content) if isinstance(content, bytes) else FEW + 1 for content in given) <= FEW


@dataclass(frozen=True, slots=True)
class Taken(Owned):
    """A file of ours that a thread is taking over. placing: whether it has, in the end."""

    digest: str
    placing: Future[bool]


def _is_placed(content: Content) -> bool:
    return isinstance(content, Taken) and content.placing.done()


def read_content(digest: str, content: Content) -> bytes:
    """The content in memory, verified. Raises `BlobError`, `OSError`."""
    if isinstance(content, bytes):
        return verified(digest, content)
    with _opened(content) as (descriptor, size):
        return verified(digest, b"".join(bytes(piece) for piece in _pieces(descriptor, size)))


class BlobFiles:
    """The files below one folder, which is made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._new = folder / "new"
        self._synced: set[tuple[int, int]] = set()  # folders of blobs whose own names are known to be on disk

    def path(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest

    def size(self, digest: str) -> int | None:
        """Of the file with this name; None where there is none."""
        try:
            status = self.path(digest).lstat()
        except FileNotFoundError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def digest(self, digest: str) -> str | None:
        """What the content of the file with this name hashes to; None where there is none."""
        try:
            with _opened(Owned(self.path(digest))) as (descriptor, size):
                return _hash(descriptor, size)
        except BlobError:
            return None

    def place(self, digest: str, content: Content) -> bytes | int:
        """Make sure of a blob: the bytes of one that is to be a row, else its size, once its file is on disk.

        Raises `BlobError` where the content is not there, is no regular file, or has another digest; `OSError`.
        """
        if isinstance(content, bytes):
            if len(content) < LARGE or self._stands(digest):
                verified(digest, content)
            else:
                self._write(digest, iter([memoryview(content)]))
            return content if len(content) < LARGE else len(content)
        if isinstance(content, Taken):
            placed, content = self._taken(digest, content)
            if placed is not None:
                return placed
        with _opened(content) as (descriptor, size):
            if size < LARGE:
                return verified(digest, b"".join(bytes(piece) for piece in _pieces(descriptor, size)))
            stands = self._stands(digest)
            if stands or isinstance(content, Owned):
                if (found := _hash(descriptor, size)) != digest:
                    raise _differs(digest, found, f"{size} bytes")
                if stands or (isinstance(content, Owned) and self._sealed_and_linked(digest, content, descriptor)):
                    return size
                os.lseek(descriptor, content.start if isinstance(content, Part) else 0, os.SEEK_SET)
            self._write(digest, _pieces(descriptor, size))
            return size

    def take_over(
        self, content: Owned, pool: Executor, tell: Callable[[str | None, BaseException | None], None]
    ) -> Future[bool]:
        """Begin to place a large file of ours, for an append that refers to it, and to hash it meanwhile.

        tell: gets the digest, or what went wrong, from a thread. Raises `RuntimeError` where the pool was shut down.
        """
        hashed, begun = Future[str](), threading.Lock()

        def hash_() -> None:
            if not begun.acquire(blocking=False):
                return
            try:
                with _opened(content) as (descriptor, size):
                    digest = _hash(descriptor, size)
            except BaseException as error:  # noqa: BLE001 - goes to whoever awaits the digest
                hashed.set_exception(error)
                tell(None, error)
            else:
                hashed.set_result(digest)
                tell(digest, None)

        def place() -> bool:
            try:
                with _opened(content) as (descriptor, _):
                    _seal(descriptor)
            finally:
                hash_()  # if no thread was free for it
            digest = hashed.result()
            return self._stands(digest) or self._link(digest, content.path)

        placing = pool.submit(place)  # first, as the disk takes longer
        pool.submit(hash_)
        return placing

    def _taken(self, digest: str, content: Taken) -> tuple[int | None, Path | Owned]:
        """The size of what was taken over, or what is to be placed instead."""
        if (
            content.placing.exception() is not None
        ):  # of writing, it is told once: no later sync of this file proves much
            return None, content.path
        stands = content.placing.result() and content.digest == digest
        return (self.size(digest) if stands else None), Owned(content.path)

    def _stands(self, digest: str) -> bool:
        """Whether the file is there and whole, and its name on disk, whoever wrote it. A damaged one is replaced."""
        if self.digest(digest) != digest:
            return False
        self._sync_names(digest)
        return True

    def _write(self, digest: str, pieces: Iterator[memoryview]) -> None:
        make_folder(self._new)
        descriptor, path = _temporary(self._new)
        try:
            found = hashlib.sha256()
            size = 0
            for piece in pieces:
                found.update(piece)
                size += len(piece)
                _write_all(descriptor, piece)
            if found.hexdigest() != digest:
                raise _differs(digest, found.hexdigest(), f"{size} bytes")
            _seal(descriptor)
            make_folder(self.path(digest).parent)
            path.rename(self.path(digest))
            self._sync_names(digest)
        finally:
            _forget(descriptor, path)

    def _sealed_and_linked(self, digest: str, content: Owned, descriptor: int) -> bool:
        """Take over a file of ours that was verified; False where it has to be copied."""
        try:
            _seal(descriptor)
        except OSError as error:
            if error.errno in NO_LINK:
                return False
            raise
        return self._link(digest, content.path)

    def _link(self, digest: str, path: Path) -> bool:
        """Give a file that is on disk the blob's name; False where it has to be copied."""
        place = self.path(digest)
        make_folder(place.parent)
        try:
            try:
                os.link(path, place, follow_symlinks=False)
            except FileExistsError:
                if not self._stands(digest):  # else another one placed it just now
                    place.unlink()
                    os.link(path, place, follow_symlinks=False)
        except OSError as error:
            if error.errno in NO_LINK:
                return False
            raise
        self._sync_names(digest)
        return True

    def _sync_names(self, digest: str) -> None:
        folder = self.path(digest).parent
        sync_folder(folder)
        status = folder.stat()
        if (known := (status.st_dev, status.st_ino)) not in self._synced:
            sync_folder(self.folder)
            sync_folder(self.folder.parent)
            self._synced.add(known)

    def names(self) -> Iterator[tuple[str, Path, int]]:
        """Name, path and bytes of every file that stands as a blob."""
        for folder in sorted(self.folder.glob("??")):
            for path in sorted(folder.glob("*")):
                with contextlib.suppress(FileNotFoundError):  # collected just now
                    yield path.name, path, path.lstat().st_size

    def left_over(self, *, remove: bool = False) -> Iterator[tuple[Path, int]]:
        """Path and bytes of unfinished files whose writer is dead; remove: which are gone afterwards."""
        for path in sorted(self._new.glob("*")):
            if (size := _abandoned(path, remove)) is not None:
                yield path, size


# -- files that are being written --------------------------------------------------------------------------------------
#
# The one who writes a file holds a lock on it, which the system takes back when the process ends, however it does. A
# process does not see its own locks, and loses them when it closes the file anywhere: so it also knows its own files.

_guard = threading.Lock()
_ours: set[tuple[int, int]] = set()


def _temporary(folder: Path) -> tuple[int, Path]:
    """A new file, open for reading and writing, that `left_over` of no process takes for abandoned."""
    while True:
        path = folder / uuid.uuid4().hex
        with _guard:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            status = os.fstat(descriptor)
            with contextlib.suppress(BlockingIOError, PermissionError, FileNotFoundError):
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.stat().st_ino == status.st_ino:
                    _ours.add((status.st_dev, status.st_ino))
                    return descriptor, path
            os.close(descriptor)  # another process took it for abandoned before it was locked


def _forget(descriptor: int, path: Path) -> None:
    """The file was renamed, or is given up."""
    with _guard:
        status = os.fstat(descriptor)
        _ours.discard((status.st_dev, status.st_ino))
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        os.close(descriptor)


def _abandoned(path: Path, remove: bool) -> int | None:
    """The size of a file that nobody is writing; None where somebody is, or it is gone."""
    with _guard:
        try:
            status = path.lstat()
            if (status.st_dev, status.st_ino) in _ours:
                return None
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if remove:  # with the lock: who made it a moment ago, and has no lock yet, then finds that it is gone
                path.unlink()
        except (BlockingIOError, PermissionError, FileNotFoundError):
            return None
        finally:
            os.close(descriptor)
        return status.st_size


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()
    _ours.clear()


os.register_at_fork(after_in_child=_after_fork)


# -- contents ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(content: Part | Path | Owned) -> Iterator[tuple[int, int]]:
    """A descriptor of a regular file, where the content begins, and its size. No link and no pipe makes this wait."""
    path = content if isinstance(content, Path) else content.path
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise BlobError(f"{path} is not there") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise BlobError(f"{path} is no regular file") from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BlobError(f"{path} is no regular file")
        if isinstance(content, Part):
            os.lseek(descriptor, content.start, os.SEEK_SET)
            yield descriptor, content.size
        else:
            yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def _pieces(descriptor: int, size: int) -> Iterator[memoryview]:
    """The first `size` bytes, which is all that there was when it was opened: a file may grow for ever."""
    buffer = memoryview(bytearray(min(PIECE, max(size, 1))))
    while size and (got := os.readv(descriptor, [buffer[:size]])):
        size -= got
        yield buffer[:got]


def _hash(descriptor: int, size: int) -> str:
    found = hashlib.sha256()
    for piece in _pieces(descriptor, size):
        found.update(piece)
    return found.hexdigest()


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _seal(descriptor: int) -> None:
    """On disk, and not to be written to any more."""
    os.fchmod(descriptor, 0o400)
    _sync(descriptor)


def _sync(descriptor: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def _differs(digest: str, found: str, what: str) -> BlobError:
    return BlobError(f"{what} have the digest {found[:16]}…, not {digest[:16]}… as was said: nothing was recorded")
