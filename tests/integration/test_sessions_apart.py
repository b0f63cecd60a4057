"""Sessions of one host, and what they leave of each other and of it: processes, descriptors, variables, room."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlm.environments.local_repl import LocalREPL
from rlm.errors import SandboxError

LEVELS = ("namespace", "landlock")
ROOT = Path(__file__).parents[2]
NAMED = "import ctypes, os, time; ctypes.CDLL(None).prctl(15, {name!r}.encode())\n"
VARIABLES = {"PATH", "LANG", "LC_ALL", "TZ", "HOME", "TMPDIR", "PYTHONHASHSEED", "PYTHONUNBUFFERED"}


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    try:
        with LocalREPL(isolation=request.param) as repl:
            return repl.isolation
    except SandboxError as error:
        pytest.skip(f"not here: {error}")


def named(name: str) -> list[int]:
    """The living processes of the machine that have given themselves this name."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and is_named(folder, name):
                found.append(int(folder.name))
    return found


def is_named(process: Path, name: str) -> bool:
    """Not so for one that has ended, and that its parent has not asked about yet."""
    said = (process / "stat").read_text()
    return f"({name}) " in said and f"({name}) Z" not in said


def within(seconds: float, true: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@contextlib.contextmanager
def pair(level: str) -> Iterator[tuple[LocalREPL, LocalREPL]]:
    """Two sessions of one zygote."""
    with LocalREPL(isolation=level, cell_timeout=20) as one, LocalREPL(isolation=level, cell_timeout=20) as other:
        for repl in (one, other):
            assert repl.execute_code("print(1)").stdout == "1\n"
        yield one, other


def works(repl: LocalREPL) -> None:
    """A session answers, starts threads and programs, and writes files."""
    result = repl.execute_code(
        "import subprocess, threading\n"
        "thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()\n"
        "print(subprocess.run(['echo', 'program'], capture_output=True, text=True).stdout, end='')\n"
        "with open('file', 'w') as file: file.write('x' * 1_000_000)\n"
    )
    assert (result.stdout, result.error) == ("thread\nprogram\n", None)


@pytest.mark.parametrize("isolation", [*LEVELS, "none"])
def test_a_host_that_is_killed_in_the_middle_of_a_cell_leaves_no_process(isolation: str) -> None:
    name = f"apart{secrets.token_hex(4)}"
    cell = NAMED.format(name=name) + "for _ in range(3): os.fork() or time.sleep(300)\nwhile True: pass\n"
    host = (
        f"from rlm.environments.local_repl import LocalREPL\nLocalREPL(isolation={isolation!r}).execute_code({cell!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", host], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        assert within(10, lambda: len(named(name)) == 4 or process.poll() is not None)
        if process.returncode is not None:
            pytest.skip(f"{isolation} is not to be had here")
    finally:
        process.kill()
        process.wait()
    assert within(2, lambda: not named(name))


def test_two_hundred_sessions_answer(level: str) -> None:
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(50) as pool:
        repls = [stack.enter_context(LocalREPL(isolation=level)) for _ in range(200)]
        printed = list(pool.map(lambda at: repls[at].execute_code(f"print({at})").stdout, range(200)))
        assert printed == [f"{at}\n" for at in range(200)]
        list(pool.map(lambda repl: repl.cleanup(), repls))


EXHAUSTED = {
    "memory": "kept = []\nwhile True: kept.append(bytearray(b'x') * (1 << 20))",
    "processes": "import os, time\nfor _ in range(400): os.fork() or time.sleep(30)",
    "threads": "import threading, time\nfor _ in range(400): threading.Thread(target=time.sleep, args=(30,)).start()",
    "descriptors": "import os\nkept = [os.open('/dev/null', 0) for _ in range(5000)]",
    "output": "import sys\nfor _ in range(20): sys.stdout.write('x' * 1_000_000)",
}


@pytest.mark.parametrize("what", EXHAUSTED)
def test_a_session_that_takes_all_it_can_get_leaves_others_unharmed(level: str, what: str) -> None:
    own = {"memory": 128 << 20, "processes": 60, "cell_timeout": 2.0}
    with LocalREPL(isolation=level, **own) as greedy, LocalREPL(isolation=level, **own) as other:
        works(other)
        greedy.execute_code(EXHAUSTED[what])
        works(other)
        with LocalREPL(isolation=level, **own) as new:
            works(new)


def test_a_session_that_fills_its_disk_leaves_others_unharmed() -> None:
    own = {"isolation": "namespace", "disk": 8 << 20}
    with LocalREPL(**own) as greedy, LocalREPL(**own) as other:
        result = greedy.execute_code("with open('file', 'wb') as file:\n    while True: file.write(bytes(1 << 20))")
        assert result.error is not None
        assert "No space left" in result.error.text
        works(other)


def test_descriptors_on_their_way_in_one_session_stop_nobody(level: str) -> None:
    """The kernel counts them by user, over all processes, and compares with the limit of whoever sends the next one."""
    host = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from rlm.environments.local_repl import LocalREPL
with LocalREPL(isolation={level!r}) as greedy, LocalREPL(isolation={level!r}) as other:
    other.execute_code("pass")
    greedy.execute_code('''
import array, socket
kept = []
try:
    while True:
        pair = socket.socketpair()
        kept.append(pair)
        pair[0].setblocking(False)
        try:
            while True:
                pair[0].sendmsg([b"x"], [(1, 1, array.array("i", [0] * 253))])
        except BlockingIOError:
            pass
except OSError:
    pass
''')
    other.load_context("x" * 3_000_000)
    print(other.execute_code("print(len(context))").stdout, end="")
    with LocalREPL(isolation={level!r}) as new:
        print(new.execute_code("print('new')").stdout, end="")
"""
    done = subprocess.run(
        [sys.executable, "-c", host],
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "3000000\nnew\n", done.stderr


def test_sessions_neither_see_nor_signal_each_other(level: str) -> None:
    name = f"apart{secrets.token_hex(4)}"
    with pair(level) as (one, other):
        one.execute_code(NAMED.format(name=name))
        (outside,) = named(name)
        inside = one.execute_code("print(os.getpid())").stdout.strip()
        result = other.execute_code(
            f"import os, signal\nseen = 0\nfor pid in {{{outside}, {inside}}} - {{os.getpid()}}:\n"
            "    for number in (0, signal.SIGKILL):\n"
            "        try:\n            os.kill(pid, number); seen += 1\n        except OSError: pass\n"
            "try:\n    numbers = [int(name) for name in os.listdir('/proc') if name.isdigit()]\n"
            "except OSError: numbers = []\n"
            f"print(seen, {outside} in numbers, len(numbers) <= 3)"
        )
        assert result.stdout == "0 False True\n"
        assert one.execute_code("print('alive')").stdout == "alive\n"


def test_sessions_do_not_meet_by_the_names_of_sockets(level: str) -> None:
    with pair(level) as (one, other):
        one.execute_code(
            "import socket\nplace = None\n"
            "try:\n    place = socket.socket(socket.AF_UNIX); place.bind(b'\\0meet'); place.listen()\n"
            "except OSError: pass"
        )
        told = other.execute_code("import socket\nsocket.socket(socket.AF_UNIX).connect(b'\\0meet'); print('met')")
        assert told.stdout == ""
        assert told.error is not None


def test_no_descriptor_of_the_hosts_is_open_in_a_session(level: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    with secret.open() as file, LocalREPL(isolation=level, env={"FRESH": secrets.token_hex(4)}) as repl:
        os.set_inheritable(file.fileno(), True)  # by somebody who wanted it in a program of his own
        name = f"apart{secrets.token_hex(4)}"
        repl.execute_code(NAMED.format(name=name))
        (worker,) = named(name)
        if os.geteuid() != 0:
            pytest.skip("only root sees the descriptors of a process that cannot be traced")
        guard = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        zygote = int(Path(f"/proc/{guard}/stat").read_text().rpartition(")")[2].split()[1])
        for process, sockets in ((worker, 3), (guard, 1), (zygote, 2)):
            links = [str(entry.readlink()) for entry in Path(f"/proc/{process}/fd").iterdir()]
            kinds = [link.split(":")[0] for link in links]
            assert set(kinds) <= {"/dev/null", "socket", "pipe", "anon_inode"}, links
            assert kinds.count("socket") <= sockets, links


def test_the_environment_holds_nothing_of_the_hosts(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a secret")
    with LocalREPL(isolation=level, env={"GIVEN": "1"}) as repl:
        told = repl.execute_code("import os; print(*os.environ)").stdout.split()
        assert set(told) <= VARIABLES | {"GIVEN"}
        program = repl.execute_code("import subprocess; print(subprocess.check_output(['env'], text=True))").stdout
        assert "a secret" not in program


def test_an_interrupted_cell_keeps_the_namespace(level: str) -> None:
    with LocalREPL(isolation=level, cell_timeout=0.3) as repl:
        repl.execute_code("kept = 1")
        result = repl.execute_code("while True: pass")
        assert result.error is not None
        assert not result.restarted
        assert repl.execute_code("print(kept)").stdout == "1\n"


def test_a_process_that_a_session_leaves_behind_ends_with_it(level: str) -> None:
    name = f"apart{secrets.token_hex(4)}"
    with LocalREPL(isolation=level) as repl:
        repl.execute_code(
            NAMED.format(name=name) + f"os.fork() or [os.fork(), time.sleep(300)]\nprint({signal.SIGTERM})"
        )
        assert within(5, lambda: len(named(name)) >= 3)
    assert within(2, lambda: not named(name))
