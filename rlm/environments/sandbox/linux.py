"""What a sandbox is made of, asked of the Linux kernel by ctypes: namespaces, mounts, capabilities, Landlock, seccomp.

Each function does one thing to the calling process and raises `OSError`, which names it, where the kernel refuses.
Constants: include/uapi/linux/{sched,mount,prctl,capability,landlock,seccomp}.h; system calls by their x86_64 numbers.
Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `zygote.py`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Sequence

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
locked = ctypes.PyDLL(None, use_errno=True)  # does not let go of Python's lock
locked.syscall.restype = ctypes.c_long
libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)

NEW_MOUNTS, NEW_CGROUP, NEW_HOST, NEW_IPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEW_USER, NEW_PID, NEW_NET = 0x10000000, 0x20000000, 0x40000000

READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
ATTR_READ_ONLY, ATTR_NO_SUID, ATTR_NO_DEVICES, ATTR_IDMAP = 1, 2, 4, 0x00100000
AT_RECURSIVE, AT_EMPTY_PATH, DETACH = 0x8000, 0x1000, 2
CLONE, PIVOT_ROOT, SECCOMP, OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 56, 155, 317, 428, 429, 442
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446

DIE_WITH_PARENT, DUMPABLE, KEEP_CAPABILITIES, DROP_BOUNDING, SUBREAPER, NO_NEW_PRIVILEGES = 1, 4, 8, 24, 36, 38
AMBIENT = 47
READ_ALL = 2  # CAP_DAC_READ_SEARCH: to read files whoever owns them
CAPABILITIES = 64  # more than there are
CAPABILITY_VERSION = 0x20080522


def checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, what + ": " + os.strerror(number))
    return result


def fork_into(flags: int) -> int:
    """Fork a child that is in new namespaces from its first moment on, the first process of a new process namespace.

    It gets none of what Python does in a forked child (`os.register_at_fork`), so it has to fork again before it runs
    code of a user's, and there must be no other thread. Python stays locked across the call: the child needs it so.
    """
    return checked(locked.syscall(CLONE, flags | signal.SIGCHLD, 0, 0, 0, 0), "clone(" + hex(flags) + ")")


def unshare(flags: int) -> None:
    checked(libc.unshare(flags), "unshare(" + hex(flags) + ")")


def set_namespace(descriptor: int, kind: int) -> None:
    checked(libc.setns(descriptor, kind), "setns")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    checked(libc.mount(*texts, flags, data and data.encode()), "mount on " + target)


def detached(source: str) -> int:
    """A copy of what is at `source`, with everything that is mounted below it, that is mounted nowhere yet."""
    flags = 1 | os.O_CLOEXEC | AT_RECURSIVE  # OPEN_TREE_CLONE
    return checked(libc.syscall(OPEN_TREE, -100, os.fsencode(source), flags), "open_tree " + source)


def attach(tree: int, target: str) -> None:
    flags = 4  # MOVE_MOUNT_F_EMPTY_PATH
    checked(libc.syscall(MOVE_MOUNT, tree, b"", -100, os.fsencode(target), flags), "mount on " + target)


def bind(source: str, target: str, writable: bool, devices: bool = False, users: int | None = None) -> None:
    """Show what is at `source`, with everything that is mounted below it, at `target`.

    users: a user namespace through whose map the owners of files are seen; without it where the file system has none.
    """
    tree = detached(source)
    try:
        change = ATTR_NO_SUID | (0 if devices else ATTR_NO_DEVICES) | (0 if writable else ATTR_READ_ONLY)
        try:
            set_attributes(tree, change | (0 if users is None else ATTR_IDMAP), users or 0)
        except OSError:
            if users is None:
                raise
            set_attributes(tree, change)  # this file system cannot: owners are seen as they are
        attach(tree, target)
    finally:
        os.close(tree)


def set_attributes(tree: int, change: int, users: int = 0) -> None:
    attributes = struct.pack("QQQQ", change, 0, 0, users)
    checked(
        libc.syscall(MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH | AT_RECURSIVE, attributes, len(attributes)),
        "mount_setattr",
    )


def pivot_root(root: str) -> None:
    """Make `root` the root of this mount namespace, and forget everything else that is mounted."""
    os.chdir(root)
    checked(libc.syscall(PIVOT_ROOT, b".", b"."), "pivot_root")
    checked(libc.umount2(b".", DETACH), "umount of the old root")
    os.chdir("/")


def write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def prctl(option: int, value: int = 0) -> None:
    checked(libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), "prctl(" + str(option) + ")")


def drop_capabilities(kept: int | None = None) -> None:
    """Have none, or but one, and never get any other again: bounding set, ambient set, then all others.

    kept: the number of one that this process has, which its programs have, too.
    """
    for number in range(CAPABILITIES):
        if number != kept:
            libc.prctl(DROP_BOUNDING, number, 0, 0, 0)  # what is no capability is an error, and no loss
    libc.prctl(AMBIENT, 4, 0, 0, 0)  # PR_CAP_AMBIENT_CLEAR_ALL
    mask = 0 if kept is None else 1 << kept
    header = struct.pack("Ii", CAPABILITY_VERSION, 0)
    checked(libc.capset(header, struct.pack("IIIIII", mask, mask, mask, 0, 0, 0)), "capset")
    if kept is not None:
        checked(libc.prctl(AMBIENT, 2, kept, 0, 0), "prctl(PR_CAP_AMBIENT_RAISE)")


def no_new_privileges() -> None:
    checked(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def filter_calls(program: bytes) -> None:
    """Set a seccomp filter: an array of `struct sock_filter`."""
    checked(libc.syscall(SECCOMP, 1, 0, ctypes.byref(Program(len(program) // 8, program))), "seccomp")


def landlock_abi() -> int:
    """The version of Landlock that this kernel has; 0 where it has none."""
    return max(0, int(libc.syscall(LANDLOCK_CREATE, None, 0, 1)))


def landlock(abi: int, readable: Sequence[str], writable: Sequence[str], network: bool) -> None:
    """Leave this process and its children nothing of the file system but what is below these paths.

    From ABI 4 on no TCP either (unless `network`), from 5 no ioctl on devices, from 6 no abstract Unix sockets and no
    signals outside of the sandbox.
    """
    files = (1 << 13) - 1 | (1 << 13 if abi >= 2 else 0) | (1 << 14 if abi >= 3 else 0) | (1 << 15 if abi >= 5 else 0)
    ports = 3 if abi >= 4 and not network else 0
    scope = 3 if abi >= 6 else 0
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    rules = checked(libc.syscall(LANDLOCK_CREATE, struct.pack("QQQ", files, ports, scope), size, 0), "Landlock")
    look = 1 | 4 | 8  # execute, read files, read folders
    for paths, rights in ((readable, look), (writable, files & ~(1 << 11 | 1 << 6))):  # no device files
        for path in paths:
            try:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            allowed = rights if os.path.isdir(path) else rights & (1 | 2 | 4 | 1 << 14 | 1 << 15)
            checked(libc.syscall(LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed, place), 0), "Landlock: " + path)
            os.close(place)
    checked(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "Landlock")
    os.close(rules)


def landlock_scope() -> None:
    """Leave everything as it is, but abstract Unix sockets and signals of whoever is outside. Needs ABI 6."""
    rules = checked(libc.syscall(LANDLOCK_CREATE, struct.pack("QQQ", 0, 0, 3), 24, 0), "Landlock")
    checked(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "Landlock")
    os.close(rules)
