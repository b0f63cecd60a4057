"""The file system that sessions see: a read-only root made of what Python needs, put together once, in the zygote.

Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `zygote.py`.
"""

from __future__ import annotations

import os

import linux

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from typing import Any

DEVICES = ("null", "zero", "full", "random", "urandom")
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
SKELETON = "size=4m,mode=755"  # of the root itself: folders and links, a few small files
WORK = "/tmp/work"  # the working directory of a session, and its home


def build(config: dict[str, Any], users: int | None) -> None:
    """Make the new root of this mount namespace. config: `root` an empty folder, `mounts` [source, target, how],
    `links` target -> text, `files` path -> text; in the order in which they are to be made.

    users: a user namespace through which the owners of mounted files are seen.
    """
    root = config["root"]
    linux.mount(None, "/", None, linux.RECURSIVE | linux.PRIVATE)
    linux.mount("rlm", root, "tmpfs", linux.NO_SUID | linux.NO_DEVICES, SKELETON)
    for place in ("/dev", "/proc", "/tmp", "/etc"):
        os.makedirs(root + place, exist_ok=True)
    for source, target, how in config["mounts"]:
        if how == "empty":
            linux.mount("rlm", root + target, "tmpfs", linux.NO_SUID | linux.NO_DEVICES, SKELETON)
            continue
        if not os.path.lexists(root + target):
            make_place(root + target, os.path.isdir(source))
        linux.bind(source, root + target, how == "rw", users=users)
    for name in DEVICES:
        make_place(root + "/dev/" + name, False)
        linux.bind("/dev/" + name, root + "/dev/" + name, True, devices=True)
    for target, text in [*config["links"].items(), *(("/dev/" + name, text) for name, text in LINKS.items())]:
        if not os.path.lexists(root + target):
            os.makedirs(os.path.dirname(root + target), exist_ok=True)
            os.symlink(text, root + target)
    os.symlink("/tmp", root + "/dev/shm")
    for path, text in config["files"].items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        with open(root + path, "w", encoding="utf-8") as file:
            file.write(text)
    hidden = linux.NO_SUID | linux.NO_DEVICES | linux.NO_EXEC
    linux.mount("proc", root + "/proc", "proc", hidden)  # a session may mount its own only beside a whole one
    linux.pivot_root(root)
    closed = linux.REMOUNT | linux.BIND | linux.READ_ONLY | linux.NO_SUID | linux.NO_DEVICES
    for target in ["/", *(target for _, target, how in config["mounts"] if how == "empty")]:
        linux.mount(None, target, None, closed)


def make_place(path: str, folder: bool) -> None:
    if folder:
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "x").close()


def mount_own(disk: int, files: int, below: list[str]) -> None:
    """What a session has for itself: its processes in /proc, and a /tmp of `disk` bytes with at most `files` files.

    below: what is mounted below /tmp in the root, and is to stay visible.
    """
    hidden = linux.NO_SUID | linux.NO_DEVICES | linux.NO_EXEC
    try:
        linux.mount("proc", "/proc", "proc", hidden, "subset=pid")
    except OSError:  # before Linux 5.8
        linux.mount("proc", "/proc", "proc", hidden)
    kept = [(linux.detached(target), target, os.path.isdir(target)) for target in below]
    limits = "size=" + str(disk) + ",nr_inodes=" + str(files) + ",mode=1777"
    linux.mount("tmp", "/tmp", "tmpfs", linux.NO_SUID | linux.NO_DEVICES, limits)
    for tree, target, folder in kept:
        if not os.path.lexists(target):
            make_place(target, folder)
        linux.attach(tree, target)
        os.close(tree)
    os.makedirs(WORK)
    os.chdir(WORK)
