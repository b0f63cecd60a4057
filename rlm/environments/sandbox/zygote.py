"""The process that sessions are forked from: Python and the worker's modules loaded once, in namespaces of its own.

Started with a control socket on standard input; its first message says what to build. Afterwards each message brings
the sockets of one new session. It runs no code of a user's, holds nothing of the host's, and ends with the host.
Standard library only, Python 3.9 and newer: this file runs in sandboxes, and is never imported by the host.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
from base64 import b64decode

import guard
import linux
import root

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from typing import Any, NoReturn

# What sessions use most: loaded here it costs them neither time nor memory.
MODULES = (
    "ast re json math random collections itertools functools datetime statistics string textwrap io time typing "
    "dataclasses hashlib base64 csv copy operator heapq bisect decimal fractions subprocess threading asyncio "
    "concurrent.futures tempfile pathlib traceback urllib.parse difflib unicodedata struct enum contextlib pickle "
    "importlib.util inspect warnings platform"
)
MESSAGE = 1 << 20  # bytes; the list of what is mounted is the longest of them
PENDING = 1024  # signals and timers of a session that wait: a user as a whole has few
INSIDE = 1000  # the user and group that a session is to itself
LEADER = 0  # the user of the zygote in its own namespace


def main() -> NoReturn:
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    os.close(null)
    try:
        config = json.loads(receive(control)[0])
        worker = load(config)
        if config["level"] == "namespace":
            enter(control, config)
        find_packages(config)
        Zygote(control, config, worker).serve()
    except BaseException as error:  # noqa: BLE001 - the host is told, whatever it is
        guard.tell(control, failed=f"{type(error).__name__}: {error}"[:2000])
        os._exit(1)


def receive(control: socket.socket) -> tuple[bytes, list[int]]:
    data, descriptors, _, _ = socket.recv_fds(control, MESSAGE, 4)
    return data, list(descriptors)


def enter(control: socket.socket, config: dict[str, Any]) -> None:
    """Go on in namespaces of one's own, as a child that is the first process in its own; the parent only waits."""
    users, uid = None, chosen_user(config)
    if uid is not None:
        users = borrowed_users(uid)
        linux.unshare(linux.NEW_PID)
    else:
        user, group = os.getuid(), os.getgid()
        linux.unshare(linux.NEW_PID | linux.NEW_USER)
        map_users("self", user, group)
    asking, answering = socket.socketpair()
    pid = os.fork()
    if pid:
        asking.close()
        control.close()
        if uid is not None and answering.recv(1):
            try:
                map_users(str(pid), uid, uid)
                answering.send(b"!")
            except OSError as error:
                answering.send(str(error).encode())
        os.waitpid(pid, 0)
        os._exit(0)
    answering.close()
    os.setsid()
    spaces = linux.NEW_MOUNTS | linux.NEW_IPC | linux.NEW_HOST | linux.NEW_CGROUP
    linux.unshare(spaces | (0 if config["network"] else linux.NEW_NET))
    root.build(config, users)  # with the rights of root, where the host has them, which are then given up
    linux.checked(linux.libc.sethostname(b"rlm", 3), "sethostname")
    if users is not None:
        os.close(users)
        linux.unshare(linux.NEW_USER)
        said = ask(asking)
        if said != b"!":
            raise OSError("the users of the sandbox could not be mapped: " + said.decode("utf-8", "replace"))
        os.setgroups([])
        os.setresgid(LEADER, LEADER, LEADER)
        os.setresuid(LEADER, LEADER, LEADER)
        linux.prctl(linux.DUMPABLE, 1)  # a change of user took it away, and with it the right to map sessions' users
    linux.prctl(linux.DIE_WITH_PARENT, signal.SIGKILL)  # whose end is the end of the zygote, to the host
    if select.select([asking], [], [], 0)[0]:
        os._exit(1)  # it has ended already
    asking.close()


def ask(parent: socket.socket) -> bytes:
    """Have the parent map the users of this process. It says how that went; where it says nothing it was killed, which
    tells nothing about this machine, and is not to be told as if it did.
    """
    try:
        parent.send(b"?")
        said = parent.recv(1000)
    except ConnectionError:
        said = b""
    if not said:
        os._exit(1)
    return said


def chosen_user(config: dict[str, Any]) -> int | None:
    """One of the users that sessions may have on this machine; None where they are the host's own."""
    if config["users"] is None:
        return None
    first, count = config["users"]
    return int(first) + int.from_bytes(os.urandom(8), "big") % int(count)


def borrowed_users(uid: int) -> int:
    """A user namespace in which root's files belong to the user that sessions have outside."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            linux.unshare(linux.NEW_USER)
            theirs.send(b"?")
            ours.close()
            theirs.recv(1)
        finally:
            os._exit(0)
    theirs.close()
    try:
        if not ours.recv(1):
            raise OSError("no user namespace can be made")
        map_users(str(pid), uid, uid)
        return os.open("/proc/" + str(pid) + "/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        ours.close()
        os.waitpid(pid, 0)


def map_users(pid: str, user: int, group: int, inside: int = LEADER) -> None:
    """Let one user and group stand for themselves in the namespace of a process, where there are no others."""
    if pid == "self":
        linux.write("/proc/self/setgroups", "deny")
    linux.write("/proc/" + pid + "/uid_map", f"{inside} {user} 1")
    linux.write("/proc/" + pid + "/gid_map", f"{inside} {group} 1")


def load(config: dict[str, Any]) -> Any:
    """The worker's modules, and what sessions use most. Before any of the machine's files are out of sight."""
    for module in MODULES.split():
        importlib.import_module(module)
    sys.path.insert(0, config["worker"])
    worker = importlib.import_module("worker")
    pickles = importlib.import_module("pickles")
    try:
        pickles.cloudpickle(config["cloudpickle"])
    except (ImportError, OSError):
        pass  # the host has none that is of use here: whoever saves a state with it is told so
    worker.step_aside()
    del sys.path[:2]  # ours: the worker's folder, and that of this file
    for module in ("linux", "guard", "root"):
        del sys.modules[module]  # these names belong to the user's own modules
    return worker


def find_packages(config: dict[str, Any]) -> None:
    """Have the packages that are mounted found, as Python would have done at its start."""
    import site

    if config["packages"]:
        site.main()
    for folder in config["path"]:
        site.addsitedir(folder)
    sys.path.append("")  # the working directory last, so that a file there hides no module


class Zygote:
    """Serves one host. config: see `rlm.environments.sandbox.zygotes`."""

    def __init__(self, control: socket.socket, config: dict[str, Any], worker: Any) -> None:
        self.control, self.config, self.worker = control, config, worker
        self.limits, self.filter = config["limits"], b64decode(config["filter"])
        self.spaces = config["level"] == "namespace"
        self.own = linux.NEW_USER | linux.NEW_PID | linux.NEW_MOUNTS
        if not config["network"] and not config["scoped"]:
            self.own |= linux.NEW_NET  # in which no other session has abstract Unix sockets
        self.below = [target for _, target, _ in config["mounts"] if target.startswith("/tmp/")]

    def serve(self) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN if self.spaces else self.ended)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # so that no session's descriptors are in its way
        if not self.spaces:
            linux.prctl(linux.SUBREAPER, 1)  # a session's processes that its guard left behind end here
        gc.collect()
        gc.freeze()
        guard.tell(self.control, ready=True)
        while True:
            message, descriptors = receive(self.control)
            if not message:
                os._exit(0)
            pid = linux.fork_into(self.own) if self.spaces else os.fork()
            if pid == 0:
                begin(self, json.loads(message), descriptors)
            for descriptor in descriptors:
                os.close(descriptor)

    def ended(self, number: int, frame: Any) -> None:
        """A session is its process group, which ends with its first process, whatever that died of."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            guard.kill(-pid, signal.SIGKILL)


# -- a session, in a fork of the zygote --------------------------------------------------------------------------------


def begin(zygote: Zygote, message: dict[str, Any], descriptors: list[int]) -> NoReturn:
    control = socket.socket(fileno=descriptors[2])
    try:
        zygote.control.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        uid = None
        if zygote.spaces:
            map_users("self", LEADER, LEADER, INSIDE)
        else:
            linux.prctl(linux.SUBREAPER, 1)
        os.environ.clear()
        os.environ.update(zygote.config["environment"])
        if zygote.spaces:
            root.mount_own(zygote.limits["disk"], zygote.limits["files"], zygote.below)
        else:
            uid = chosen_user(zygote.config)
            own_folder(message["folder"], uid)
        worker = os.fork()
        if worker == 0:
            work(zygote, descriptors, uid)
        for descriptor in descriptors[:2]:
            os.close(descriptor)
        linux.prctl(linux.DUMPABLE, 0)  # so that no other process of the session reads or writes its memory
        if zygote.spaces:
            confine(zygote, False)
        socket.send_fds(control, [b"{}"], [os.pidfd_open(os.getpid())])
        limits = zygote.limits
        if zygote.spaces:
            guard.Guard(control, worker, limits["memory"], limits["socket"]).run()
        guard.Guard(
            control, worker, limits["memory"], limits["socket"], limits["processes"], limits["disk"], os.getcwd()
        ).run()
    except BaseException:  # noqa: BLE001 - the host is told, whatever it is
        guard.fail(control)


def own_folder(folder: str, uid: int | None) -> None:
    """Without namespaces a session's files stand in a folder of the host's, which becomes the session's own."""
    if uid is not None:
        os.chown(folder, uid, uid)
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder)


def work(zygote: Zygote, descriptors: list[int], uid: int | None) -> NoReturn:
    """Become the worker of the session, as a user of its own where there is one to be had."""
    channel, files, control = descriptors
    try:
        if zygote.spaces:
            os.setpgid(0, 0)
        os.dup2(channel, 0)
        os.dup2(channel, 1)
        os.close(channel)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        set_limits(zygote.limits)
        if uid is not None:
            # Python may lie where only root may read; which files are read at all is for Landlock to say.
            linux.prctl(linux.KEEP_CAPABILITIES, 1)
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        confine(zygote, True, None if uid is None else linux.READ_ALL)
    except BaseException:  # noqa: BLE001 - the host is told, whatever it is
        guard.fail(socket.socket(fileno=control))
    os.close(control)
    sys.argv[:] = [""]
    zygote.worker.main(files=files)
    os._exit(0)


def set_limits(limits: dict[str, Any]) -> None:
    for name in ("data", "nproc", "nofile", "fsize"):
        value = limits[name]
        if value is not None:
            number = getattr(resource, "RLIMIT_" + name.upper())
            hard = resource.getrlimit(number)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (value, value))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (PENDING, PENDING))


def confine(zygote: Zygote, for_cells: bool, capability: int | None = None) -> None:
    """From here on this process can do only what is allowed in there, and never more again.

    for_cells: whether it will run any; then it also reaches no process that does not.
    """
    config = zygote.config
    if config["level"] == "none":
        return
    linux.drop_capabilities(capability)
    linux.no_new_privileges()
    if not zygote.spaces:
        linux.landlock(config["abi"], config["readable"], [*config["writable"], os.getcwd()], config["network"])
    elif for_cells and config["scoped"]:
        linux.landlock_scope()
    linux.filter_calls(zygote.filter)


if __name__ == "__main__":
    main()
