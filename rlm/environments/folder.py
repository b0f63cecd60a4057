"""The files of a session's own folder: what changed since they were last saved, and putting them there again.

Regular files, symbolic links and empty folders count, by the path from the folder on; `__pycache__` does not, Python
makes it anew. What is too much, or no such thing, is named with the reason.
Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`.
"""

from __future__ import annotations

import os
import stat
import time

from limits import cut

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Seen = dict[str, list[Any]]  # path -> what tells that a file is still the same, then what was saved of it

ENTRIES = 10_000  # files of a folder that are saved
SETTLED = 0.05  # seconds after which a file that is written once more has another time stamp
EMPTY_DIGEST = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no bytes


def entries(folder: str, path: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Path from the folder on and status of everything in it, folders only where they are empty."""
    with os.scandir(os.path.join(folder, path)) as found:
        listed = sorted(found, key=lambda entry: entry.name)
    empty = not listed
    for entry in listed:
        if entry.name == "__pycache__":
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from entries(folder, path + entry.name + "/")
        else:
            yield path + entry.name, entry.stat(follow_symlinks=False)
    if empty and path:
        yield path[:-1], os.stat(os.path.join(folder, path), follow_symlinks=False)


def changes(
    folder: str, seen: Seen, limit: int, spend: Callable[[int], None], save: Callable[[str], tuple[str, int]]
) -> tuple[Seen, dict[str, list[Any]], dict[str, str]]:
    """What is there now, in place of `seen`; of that what is new or different: path -> digest, size, mode, link; and
    what is not saved, with the reason. spend: told of the work that is ahead; save: keeps a file, returns digest, size.
    """
    now: Seen = {}
    new: dict[str, list[Any]] = {}
    lost: dict[str, str] = {}
    total, began = 0, time.time()
    try:
        listed = list(entries(folder))
    except OSError as error:
        return seen, new, {".": f"the folder cannot be read: {cut(error)}"}
    spend(30 * len(listed))
    for path, status in listed:
        mode, size = status.st_mode, status.st_size
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            lost[path] = "neither a file nor a link nor a folder"
            continue
        size = size if stat.S_ISREG(mode) else 0
        if len(now) >= ENTRIES:
            lost[path] = f"over {ENTRIES:,} files"
            continue
        if total + size > limit:
            lost[path] = f"{size:,} bytes, with which the folder is over its limit of {limit:,}"
            continue
        total += size
        sign = [status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, mode]
        old = seen.get(path)
        if old is not None and old[0] == sign:
            now[path] = old
            continue
        try:
            saved = describe(folder, path, mode, spend, save)
        except OSError as error:
            lost[path] = f"cannot be read: {cut(error)}"
            continue
        settled = status.st_ctime_ns < (began - SETTLED) * 1e9
        now[path] = [sign if settled else None, saved]
        if old is None or old[1] != saved:
            new[path] = saved
    return now, new, lost


def describe(
    folder: str, path: str, mode: int, spend: Callable[[int], None], save: Callable[[str], tuple[str, int]]
) -> list[Any]:
    full = os.path.join(folder, path)
    if stat.S_ISLNK(mode):
        return [EMPTY_DIGEST, 0, stat.S_IMODE(mode), os.readlink(full)]
    if stat.S_ISDIR(mode):
        return [EMPTY_DIGEST, 0, stat.S_IMODE(mode) | stat.S_IFDIR, None]
    digest, size = save(full)
    return [digest, size, stat.S_IMODE(mode), None]


def put(folder: str, path: str, mode: int, link: str | None, data: Any) -> None:
    """Make a file, link or empty folder. Raises `ValueError` for a place outside of the folder, and `OSError`."""
    parts = path.split("/")
    if path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise ValueError("not a place in the session's folder")
    where = folder
    for part in parts[:-1]:
        where = os.path.join(where, part)
        if os.path.islink(where):
            raise ValueError("a link stands in the way")
        os.makedirs(where, exist_ok=True)
    full = os.path.join(folder, path)
    if os.path.islink(full) or os.path.isfile(full):
        os.unlink(full)
    if link is not None:
        os.symlink(link, full)
    elif stat.S_ISDIR(mode):
        os.makedirs(full, exist_ok=True)
        os.chmod(full, stat.S_IMODE(mode))
    else:
        number = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(number, "wb") as file:
            file.write(data)
            os.fchmod(number, stat.S_IMODE(mode))


def signs(folder: str, saved: dict[str, list[Any]]) -> Seen:
    """What `changes` needs to know of files that were just put there."""
    return {path: [None, list(what)] for path, what in saved.items() if os.path.lexists(os.path.join(folder, path))}
