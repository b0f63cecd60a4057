"""More of the machine than a session may have. Each payload proves that it holds what it took; none takes much.

Limits hold without a sandbox too, as far as they can, so that nothing is expected of these there.
"""

from __future__ import annotations

from typing import Any

from tests.escape.payload import AtNone, Payload

MEBIBYTE = 1 << 20
MEMORY = {"memory": 128 * MEBIBYTE}
HELD = 3 * 128  # MiB, which a session with that limit must not hold for a second


def attempt(
    name: str, tries: str, code: str, settings: dict[str, Any], none: AtNone = "either", **more: Any
) -> Payload:
    return Payload(name, tries, code, none=none, alone=True, settings=settings, **more)


CHILDREN = """
children = []
def in_children(count, action):
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            try:
                keep = action()
                time.sleep(30)
            finally:
                os._exit(1)
        children.append(pid)

def living():
    return sum(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in children)

def end():
    for pid in children:
        try:
            os.kill(pid, 9)
        except OSError:
            pass
"""

PAYLOADS = [
    attempt(
        "memory",
        "holds too much memory",
        f"""
with decisive:
    kept = [bytearray(b"x") * (1 << 20) for _ in range({HELD})]
    time.sleep(1.2)
    got(len(kept), "MiB")
""",
        MEMORY,
    ),
    attempt(
        "memory-of-many",
        "holds it in many processes",
        CHILDREN
        + f"""
with decisive:
    in_children(10, lambda: [bytearray(b"x") * (1 << 20) for _ in range(96)])
    time.sleep(1.5)
    if 96 * living() >= {HELD}:
        got(96 * living(), "MiB")
end()
""",
        MEMORY,
    ),
    attempt(
        "memory-shared",
        "holds it in pages that are nobody's (MADV_DONTNEED of shared ones)",
        f"""
size, step = {HELD} << 20, 16 << 20
with decisive:
    shared = mmap.mmap(-1, size)
    for start in range(0, size, step):
        for place in range(start, start + step, 4096):
            shared[place] = 1
        shared.madvise(mmap.MADV_DONTNEED, start, step)
    time.sleep(1.2)
    if all(shared[place] for place in range(0, size, 1 << 20)):
        got(size >> 20, "MiB")
""",
        MEMORY,
    ),
    attempt(
        "memory-sockets",
        "holds it in the buffers of sockets",
        CHILDREN
        + """
def fill():
    kept, held = [], 0
    while held < 96 << 20 and len(kept) < 480:
        pair = socket.socketpair()
        kept.append(pair)
        for one in pair:
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
            try:
                while True:
                    held += one.send(bytes(1 << 16))
            except BlockingIOError:
                pass
    if held < 64 << 20:
        os._exit(1)
    return kept
with decisive:
    in_children(5, fill)
    time.sleep(1.5)
    if living() == 5:
        got("320 MiB and more")
end()
""",
        MEMORY,
    ),
    attempt(
        "processes",
        "forks without end (here 200 times)",
        CHILDREN
        + """
with decisive:
    in_children(200, lambda: None)
    time.sleep(1.5)  # a guard that counts them does so now and then
    got(living(), "processes")
end()
""",
        {"processes": 40},
    ),
    attempt(
        "threads",
        "starts threads without end (here 200)",
        """
stop, started = threading.Event(), 0
with decisive:
    try:
        for started in range(200):
            threading.Thread(target=stop.wait, daemon=True).start()
        time.sleep(1.5)  # a guard that counts them does so now and then
        got(started, "threads")
    finally:
        stop.set()
""",
        {"processes": 40},
    ),
    attempt(
        "disk",
        "fills the disk",
        """
with decisive:
    for number in range(24):
        with open(f"part{number}", "wb") as file:
            file.write(bytes(1 << 20))
    got("24 MiB in files")
""",
        {"disk": 8 * MEBIBYTE},
        holds=("namespace",),
    ),  # a quota takes a file system of one's own
    attempt(
        "disk-elsewhere",
        "fills it in every other place that can be written",
        """
with decisive:
    for place in ("/tmp", "/dev/shm", "/var/tmp", "/run", "/dev", "/", "/etc", os.path.expanduser("~")):
        try:
            with open(place + "/escape-fill", "wb") as file:
                file.write(bytes(12 << 20))
            got("12 MiB in", place)
        except OSError as error:
            say("refused", place, error)
        finally:
            try:
                os.unlink(place + "/escape-fill")
            except OSError:
                pass
""",
        {"disk": 8 * MEBIBYTE},
        none="not run",
        holds=("namespace",),
    ),
    attempt(
        "one-file",
        "makes one large file, with a hole",
        """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with decisive:
    with open("large", "wb") as file:
        file.seek(3 << 20)
        file.write(b"x")
    got("a file of 3 MiB")
""",
        {"file_size": MEBIBYTE},
    ),
    attempt(
        "files",
        "makes files without end (here 100,500)",
        """
with decisive:
    for number in range(100_500):
        os.mkdir("n") if not os.path.isdir("n") else None
        os.close(os.open("n/" + str(number), os.O_CREAT | os.O_WRONLY))
    got(number, "files")
""",
        {},
        none="not run",
        holds=("namespace",),
    ),
    attempt(
        "descriptors",
        "opens files without end (here 2,000)",
        """
kept = []
with decisive:
    for _ in range(2000):
        kept.append(os.open("/dev/null", os.O_RDONLY))
    got(len(kept), "descriptors")
""",
        {"open_files": 64},
        none="either",
    ),
    attempt(
        "inotify",
        "takes all that a user may have of something (inotify)",
        """
with decisive:
    taken = 0
    while libc.inotify_init1(0) >= 0:
        taken += 1
    if taken >= 100:
        got(taken, "instances")
""",
        {},
        none="not run",
    ),
    attempt(
        "timers",
        "takes all that a user may have of something (timers)",
        """
timer, taken = ctypes.c_void_p(), 0
with decisive:
    while taken < 20_000 and libc.timer_create(1, None, ctypes.byref(timer)) == 0:
        taken += 1
    if taken == 20_000:
        got(taken, "timers")
""",
        {},
    ),
    attempt(
        "output",
        "prints without end (here 60 MB)",
        """
with decisive:
    for _ in range(60):
        print("x" * 1_000_000)
""",
        {},
        none="fails",
    ),
    attempt(
        "output-child",
        "has a child print without end (here 60 MB)",
        """
with decisive:
    subprocess.run("head -c 60000000 /dev/zero | tr '\\\\0' x", shell=True)
""",
        {},
        none="fails",
    ),
    attempt(
        "value",
        "has the host fetch a huge value",
        """
with decisive:
    bait = "x" * 300_000_000
""",
        {"memory": 2048 * MEBIBYTE},
        none="fails",
        host="get",
    ),
    attempt(
        "names",
        "has very many names of great length",
        """
with decisive:
    for number in range(20_000):
        globals()["n" * 1000 + str(number)] = number
""",
        {},
        none="fails",
        host="names",
    ),
    attempt(
        "time",
        "runs on when it is interrupted",
        """
with decisive:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            while time.monotonic() < until:
                pass
        except BaseException:
            pass
    got("20 seconds")
""",
        {"cell_timeout": 0.3},
        none="fails",
    ),
]
