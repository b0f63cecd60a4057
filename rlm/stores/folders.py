"""Folders of a store: for their owner alone, and their names on disk where something is to survive."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path


def make_folder(folder: Path) -> Sequence[Path]:
    """Make it, and those it lies in, where they are not there; returns those that were made. Raises `OSError`."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)
    if not missing and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    return missing


def sync_folder(folder: Path) -> None:
    """Until the names in it are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """With all that is in it. Raises `OSError` where something stays."""
    if folder.exists():
        shutil.rmtree(folder)
