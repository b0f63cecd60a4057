"""What went wrong with a store's files, as errors that name the path and the mend.

Each code of SQLite and of the operating system that users can do something about has its sentence here.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from rlm.errors import StoreError

DAMAGED = "is damaged, or no database of rlm: check the store to see what is wrong, and restore it from a copy"
FULL = "cannot be written, as the disk is full (or a quota, or a limit of file sizes): nothing was recorded; make room"
DENIED = "cannot be written: give this user the right to write to the folder, or name another store"
LOCKED = "is locked by another process that has been writing for too long: nothing was recorded; try again"

SQLITE: Mapping[int, str] = {
    sqlite3.SQLITE_BUSY: LOCKED,
    sqlite3.SQLITE_LOCKED: LOCKED,
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_READONLY: DENIED,
    sqlite3.SQLITE_PERM: DENIED,
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: give this user the right to write to the folder, or name another store",
    sqlite3.SQLITE_NOTADB: DAMAGED,
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_ERROR: DAMAGED,  # such as a column that is not there
    sqlite3.SQLITE_IOERR: "cannot be read or written, says the system: nothing was recorded; look at the disk",
}
SYSTEM: Mapping[int, str] = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.EROFS: DENIED,
    errno.EACCES: DENIED,
    errno.EPERM: DENIED,
    errno.ENOTDIR: "is below something that is no folder: name another store",
    errno.ENOLCK: "cannot be locked: its file system has no locks; name a store on another one",
}


def explain(path: Path, error: BaseException, *, reading: bool = False) -> BaseException:
    """The error for whoever asked: a `StoreError` for those of SQLite and of the system, any other as it is.

    reading: what was read may be damaged, so that its values are of any type.
    """
    if isinstance(error, UnicodeDecodeError):  # Python cannot even read what SQLite says of a damaged database
        failure = StoreError(f"{path} {DAMAGED} ({error.object!r})")
    elif isinstance(error, sqlite3.Error):
        failure = StoreError(f"{path} {_of_sqlite(error)}")
    elif isinstance(error, OSError):
        where = error.filename if isinstance(error.filename, str) else path
        failure = StoreError(f"{where} {_of_system(error)}")
    elif isinstance(error, UnicodeEncodeError):
        failure = StoreError(f"{path} takes no text with lone surrogates ({error})")
    elif reading and isinstance(error, (TypeError, ValueError)):
        failure = StoreError(f"{path} {DAMAGED} ({error})")
    else:
        return error
    failure.__cause__ = error
    return failure


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """What goes wrong in it is raised as `explain` says."""
    try:
        yield
    except BaseException as error:
        told = explain(path, error)
        if told is error:
            raise
        raise told from error


def _of_sqlite(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the higher bits only say more of the same
    said = SQLITE.get(code, "cannot be read or written")
    return f"{said} ({error})"


def _of_system(error: OSError) -> str:
    said = SYSTEM.get(error.errno or 0, "cannot be read or written")
    return f"{said} ({error.strerror or error})"
