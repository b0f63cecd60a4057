"""What a payload is, and the code that every cell finds around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

AtNone = Literal["succeeds", "fails", "either", "not run"]


@dataclass(frozen=True, slots=True)
class Payload:
    """One attempt. It marks its decisive action with `with decisive:`, and reports with `got()` what came of it.

    tries: what it is after, as a sentence that begins with a verb. source: where the idea comes from. none: what
    happens to it without a sandbox; "either" where that depends on the kernel or the user, "not run" where it would
    harm the machine. alone: it needs a session of its own, because it ends or changes it. host: what the host does
    after it, see `run.AFTERWARDS`. settings: of the session. holds: the levels that promise to stop it;
    at the other one it is not run.
    """

    name: str
    tries: str
    code: str
    source: str = ""
    none: AtNone = "succeeds"
    alone: bool = False
    host: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    holds: tuple[str, ...] = ("namespace", "landlock")


# Run before the payloads of a session. C: where the canaries are. `token`: set before each payload.
AROUND = """
import array, base64, ctypes, errno, fcntl, gc, json, mmap, os, select, signal, socket, stat, struct, subprocess, sys
import threading, time, types
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
REFUSED = (errno.EPERM, errno.EACCES, errno.ENOSYS)

def say(*words):
    print("@@" + token, *words, flush=True)

def got(*what):
    say("got", *what)

class Decisive:
    def __enter__(self):
        say("tried")
    def __exit__(self, kind, error, trace):
        if error is not None:
            say("refused", kind.__name__ + ":", str(error)[:200])
        return isinstance(error, Exception)

decisive = Decisive()

def call(number, *arguments):
    result = libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def reaches(number, *arguments):
    "Whether the kernel gets to see the call: any other error than a refusal says so."
    with decisive:
        try:
            got("returned", call(number, *arguments))
        except OSError as error:
            if error.errno in REFUSED:
                raise
            got(error)

def opens(path, flags):
    with decisive:
        os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
        got("opened", path)

def in_child(action):
    "Run it in a fork, whose death by a signal is told as a refusal."
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            try:
                os.write(writing, ("got " + str(action())).encode())
            except Exception as error:
                os.write(writing, ("refused " + type(error).__name__ + ": " + str(error)).encode()[:300])
        finally:
            os._exit(0)
    os.close(writing)
    said = os.read(reading, 4096).decode("utf-8", "replace")
    os.close(reading)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        said = said or "refused killed by signal " + str(os.WTERMSIG(status))
    say(*said.split(" ", 1))

def machine_code(code):
    "Run it as a function that returns an int."
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return ctypes.CFUNCTYPE(ctypes.c_long)(address)()

def channel():
    "The descriptors of this process that are sockets."
    found = []
    for number in range(256):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                found.append(number)
        except OSError:
            pass
    return found

def forge(*lines):
    "Write lines to the host as if they were the worker's."
    data = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    sink = llm_query.__self__.channel.sink
    with decisive:
        time.sleep(0.02)  # so that the host reads what was printed before
        while data:
            data = data[os.write(sink, data):]
"""
