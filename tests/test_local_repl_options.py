"""The options of LocalREPL at each level of isolation: what cells then have, what they have not, and what is enough."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm import LocalREPL
from rlm.errors import ConfigurationError, SandboxError
from rlm.types import REPLResult
from tests.processes import children, family, gone, parent, wait_until, worker

LEVELS = ("namespace", "landlock")
MEBIBYTE = 1 << 20
every_level = pytest.mark.parametrize("level", LEVELS)


def ran(repl: LocalREPL, cell: str) -> str:
    """What a cell, which must not fail, prints."""
    result = repl.execute_code(cell)
    assert result.error is None, result.stderr
    return result.stdout.rstrip("\n")


def failed(repl: LocalREPL, cell: str) -> str:
    """The type of the error that a cell fails with; the session must go on as it was."""
    result = repl.execute_code("kept = 'kept'\n" + cell)
    assert result.error is not None
    assert not result.restarted, result.stderr
    assert ran(repl, "print(kept)") == "kept"
    return result.error.type


def died(repl: LocalREPL, cell: str) -> str:
    """What the model is told of a cell that costs the worker; the session must be usable after it."""
    result = repl.execute_code(cell)
    assert (result.error is not None, result.restarted) == (True, True), result
    assert ran(repl, "print('anew')") == "anew"
    return result.stderr


# -- levels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "in_force"), [("auto", "namespace"), *((level, level) for level in (*LEVELS, "none"))]
)
def test_the_level_in_force_is_said_before_and_after_the_first_cell(asked: str, in_force: str) -> None:
    with LocalREPL(isolation=asked) as repl:
        assert repl.isolation == in_force
        assert ran(repl, "print(6 * 7)") == "42"
        assert repl.isolation == in_force


def test_a_level_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigurationError, match="isolation='strong': choose auto, namespace, landlock, none"):
        LocalREPL(isolation="strong")


def test_where_no_level_can_be_had_nothing_runs(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text(f'#!/bin/sh\ncase "$*" in *zygote.py*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    broken.chmod(0o755)
    for isolation in ("auto", *LEVELS):
        repl = LocalREPL(isolation=isolation, python=str(broken))
        with pytest.raises(SandboxError, match="this machine cannot keep code away from itself") as refused:
            repl.execute_code(f"open({str(tmp_path / 'escaped')!r}, 'w')")
        assert "isolation='none'" in str(refused.value)
        assert [level for level in LEVELS if f"{level}: " in str(refused.value)] == (
            list(LEVELS) if isolation == "auto" else [isolation]
        )
        with pytest.raises(SandboxError):  # neither is it said to be anything else
            print(repl.isolation)
        repl.cleanup()
    assert [place.name for place in tmp_path.iterdir()] == ["python"]


# -- packages ----------------------------------------------------------------------------------------------------------


@every_level
def test_all_packages_are_there_by_default(level: str) -> None:
    with LocalREPL(isolation=level) as repl:
        assert (
            ran(repl, "import pytest, hypothesis\nprint(pytest.__name__, hypothesis.__name__)") == "pytest hypothesis"
        )


def test_without_packages_only_the_standard_library_is_there() -> None:
    with LocalREPL(isolation="namespace", packages=False) as repl:
        assert failed(repl, "import pytest") == "ModuleNotFoundError"
        assert ran(repl, "import json, sqlite3, ssl, asyncio\nprint(json.dumps([]))") == "[]"
        ran(repl, "class A: pass\nkept = A()")


def test_chosen_packages_are_there_with_what_they_need() -> None:
    with LocalREPL(isolation="namespace", packages=["pytest"]) as repl:
        assert ran(repl, "import pytest, pluggy, iniconfig\nprint(pytest.approx(1.0) == 1.0)") == "True"
        assert failed(repl, "import hypothesis") == "ModuleNotFoundError"
        assert failed(repl, "import mypy") == "ModuleNotFoundError"


def test_a_package_that_is_not_installed_is_named_at_the_first_use() -> None:
    with LocalREPL(packages=["no-such-package"]) as repl, pytest.raises(ConfigurationError, match="no-such-package"):
        repl.setup()


# -- paths -------------------------------------------------------------------------------------------------------------

VISIT = """
import sys
from rlm import LocalREPL
level, read, write = sys.argv[1:]
with LocalREPL(isolation=level, extra_paths={read: "ro", write: "rw"}) as repl:
    print(repl.isolation)
    print(repl.execute_code(f'''
from pathlib import Path
read, write = Path({read!r}), Path({write!r})
def tried(what, *args):
    try:
        return what(*args)
    except OSError as error:
        return type(error).__name__
print((read / "given").read_text())
print(tried((read / "given").write_text, "changed"), tried((read / "new").touch), tried((read / "given").unlink))
(write / "given").write_text("changed")
(write / "new").mkdir()
(write / "new" / "made").write_text("made")
(write / "gone").unlink()
print(sorted(place.name for place in write.iterdir()))
print(tried(read.parent.joinpath("beside").read_text))
''').stdout, end="")
"""
NOBODY = 65534


def python_for_all() -> str | None:
    """A Python that any user of this machine may run, new enough for a host."""
    for python in (sys.executable, "/usr/bin/python3"):
        code = "import sys; sys.exit(sys.version_info[:2] != " + repr(sys.version_info[:2]) + ")"
        if Path(python).exists() and os.geteuid() == 0:
            with contextlib.suppress(PermissionError):
                done = subprocess.run(
                    [python, "-c", code], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", check=False
                )
                if done.returncode == 0:
                    return python
    return None


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user may enter."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@every_level
@pytest.mark.parametrize("user", ["this", "ordinary"])
def test_further_paths_are_read_and_where_that_is_said_written(level: str, user: str, folder: Path) -> None:
    python, options = sys.executable, {}
    if user == "ordinary":
        if os.geteuid() != 0:
            pytest.skip("this user is an ordinary one")
        found = python_for_all()
        if found is None:
            pytest.skip("there is no Python that an ordinary user may run")
        python, options = found, {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    packages = [str(Path(__file__).parents[1]), *(place for place in sys.path if place.endswith("-packages"))]
    for place in ("read/given", "write/given", "write/gone", "beside"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(place)
    (folder / "tmp").mkdir()
    if level == "landlock" and os.geteuid() == 0:  # where cells run as a user who owns nothing
        for place in (folder / "write", *(folder / "write").iterdir()):
            place.chmod(0o777)
    if options:
        for place in (folder / "tmp", folder / "write", *(folder / "write").iterdir()):
            os.chown(place, NOBODY, NOBODY)
    env = {"PYTHONPATH": os.pathsep.join(packages), "TMPDIR": str(folder / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    arguments: list[Any] = [python, "-c", VISIT, level, folder / "read", folder / "write"]
    done = subprocess.run(arguments, env=env, cwd="/", text=True, capture_output=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    in_force, given, refused, there, beside = done.stdout.splitlines()
    assert (in_force, given) == (level, "read/given")
    assert set(refused.split()) <= {"OSError", "PermissionError"}
    assert len(refused.split()) == 3
    assert there == "['given', 'new']"
    assert beside in ("PermissionError", "FileNotFoundError")
    assert [place.name for place in (folder / "read").iterdir()] == ["given"]
    assert (folder / "read" / "given").read_text() == "read/given"
    assert (folder / "write" / "given").read_text() == "changed"
    assert (folder / "write" / "new" / "made").read_text() == "made"
    owner = (folder / "write").stat().st_uid
    if level == "namespace":
        assert (folder / "write" / "new" / "made").stat().st_uid == owner  # whoever runs the host can use it
    assert not list((folder / "tmp").iterdir())


def test_a_path_within_another_one_may_be_written_to(tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    with LocalREPL(isolation="namespace", extra_paths={str(inner): "rw", str(inner.parent): "ro"}) as repl:
        ran(repl, f"open({str(inner / 'new')!r}, 'w').write('made')")
        assert failed(repl, f"open({str(inner.parent / 'new')!r}, 'w')") == "OSError"
    assert (inner / "new").read_text() == "made"


@pytest.mark.parametrize("paths", [{"relative": "ro"}, {"/usr": "rx"}])
def test_paths_are_absolute_and_read_or_written(paths: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"extra_paths: .* give absolute paths, and 'ro' or 'rw'"):
        LocalREPL(extra_paths=paths)


# -- network, environment ----------------------------------------------------------------------------------------------


@every_level
def test_the_network_is_reached_where_that_is_said_and_nowhere_else(level: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5).sendall(b'hello')"
        with LocalREPL(isolation=level) as repl:
            assert failed(repl, code) in ("PermissionError", "OSError", "ConnectionRefusedError")
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
        server.settimeout(30)
        with LocalREPL(isolation=level, network=True) as repl:
            ran(repl, code)
            arrived, _ = server.accept()
            with arrived:
                assert arrived.recv(5) == b"hello"


@every_level
def test_variables_are_those_that_are_given(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "of the host's")
    with LocalREPL(isolation=level, env={"COLOUR": "red", "PATH": "/usr/bin"}) as repl:
        seen = ran(repl, "import os\nprint(dict(os.environ))")
        assert "'COLOUR': 'red'" in seen
        assert "'PATH': '/usr/bin'" in seen
        assert "SECRET_TOKEN" not in seen
        assert "of the host" not in ran(repl, "import subprocess\nprint(subprocess.check_output(['/usr/bin/env']))")


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def limited(level: str) -> Iterator[LocalREPL]:
    with LocalREPL(
        isolation=level,
        memory=256 * MEBIBYTE,
        disk=8 * MEBIBYTE,
        processes=24,
        open_files=64,
        file_size=4 * MEBIBYTE,
    ) as repl:
        yield repl


@every_level
def test_more_memory_than_there_is_for_one_value_is_an_error_of_the_cell(limited: LocalREPL) -> None:
    assert failed(limited, "x = bytearray(512 << 20)") == "MemoryError"
    assert ran(limited, "print(len(bytearray(64 << 20)))") == str(64 << 20)


@every_level
def test_memory_of_many_processes_counts_together(limited: LocalREPL) -> None:
    code = """
import os, time
for number in range(6):
    if os.fork() == 0:
        kept = [b"x" * (1 << 20) for _ in range(100)]
        time.sleep(60)
        os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    result = limited.execute_code(code)
    if result.restarted:  # the worker may be among what is ended
        assert "memory" in result.stderr
    else:
        assert result.stdout == "-9\n"
    assert ran(limited, "print('usable')") == "usable"


@every_level
def test_memory_that_forks_share_counts_once(limited: LocalREPL) -> None:
    code = """
import os, time
rows = b"x" * (100 << 20)
started = []
for number in range(8):
    started.append(os.fork())
    if started[-1] == 0:
        time.sleep(1.5)
        os._exit(rows[-1])
print({os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started})
"""
    assert ran(limited, code) == str({ord("x")})


@pytest.mark.parametrize("level", ["namespace"])
def test_a_full_disk_is_an_error_of_the_cell(limited: LocalREPL) -> None:
    full = "for n in range(16):\n    with open(f'{n}', 'wb') as file:\n        file.write(bytes(1 << 20))"
    assert failed(limited, full) == "OSError"
    assert "No space left" in limited.execute_code("open('more', 'wb').write(bytes(1 << 20))").stderr
    assert (
        ran(limited, "import os\n[os.unlink(name) for name in os.listdir()]\nprint(open('new', 'w').write('x'))") == "1"
    )


@pytest.mark.parametrize("level", ["landlock"])
def test_a_folder_that_holds_too_much_ends_the_worker(limited: LocalREPL) -> None:
    full = (
        "import time\nfor n in range(16):\n    with open(f'{n}', 'wb') as file:\n        file.write(b'x' * (1 << 20))\n"
    )
    assert "its files took more than 8 MiB" in died(limited, full + "while True: time.sleep(0.01)")
    assert ran(limited, "import os\nprint(os.listdir())") == "[]"


@every_level
def test_a_file_that_grows_too_large_is_an_error_of_the_cell(limited: LocalREPL) -> None:
    assert failed(limited, "with open('large', 'wb') as file:\n    file.write(bytes(6 << 20))") == "OSError"
    assert "too large" in limited.execute_code("open('large', 'ab').write(bytes(6 << 20))").stderr
    assert ran(limited, "import os\nprint(os.path.getsize('large'))") == str(4 * MEBIBYTE)


@every_level
def test_too_many_open_files_are_an_error_of_the_cell(limited: LocalREPL) -> None:
    assert failed(limited, "files = []\nwhile True: files.append(open('/dev/null'))") == "OSError"
    assert ran(limited, "print(len(files) < 64)\nfiles.clear()\nprint(open('fine', 'w').write('x'))") == "True\n1"


@every_level
def test_too_many_processes_are_an_error_of_the_cell(limited: LocalREPL) -> None:
    code = """
import os, time
started = []
while True:
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    started.append(pid)
"""
    if os.geteuid() == 0 or limited.isolation == "namespace":
        assert failed(limited, code) == "BlockingIOError"
        ran(limited, "import signal\nfor pid in started:\n    os.kill(pid, signal.SIGKILL)\n    os.waitpid(pid, 0)")
        assert ran(limited, "print(len(started) < 24)") == "True"
    else:
        assert "more than 24 processes" in died(limited, code)


@every_level
def test_too_many_threads_are_an_error_of_the_cell(limited: LocalREPL) -> None:
    code = """
import threading
end = threading.Event()
while True:
    threading.Thread(target=end.wait, daemon=True).start()
"""
    if os.geteuid() == 0 or limited.isolation == "namespace":
        assert failed(limited, code) == "RuntimeError"
        assert ran(limited, "end.set()\nprint('fine')") == "fine"
    else:
        assert "more than 24 processes" in died(limited, code)


@every_level
def test_one_session_at_its_limits_leaves_the_others_theirs(limited: LocalREPL, level: str) -> None:
    ran(limited, "import threading\nend = threading.Event()")
    limited.execute_code("while True: threading.Thread(target=end.wait, daemon=True).start()")
    settings: dict[str, Any] = {"memory": 256 * MEBIBYTE, "disk": 8 * MEBIBYTE, "processes": 24}
    with LocalREPL(isolation=level, open_files=64, file_size=4 * MEBIBYTE, **settings) as other:
        assert (
            ran(other, "import subprocess\nprint(subprocess.check_output(['echo', 'fine'], text=True), end='')")
            == "fine"
        )


@pytest.mark.parametrize(
    "limit",
    [{"memory": 1 << 20}, {"disk": 5}, {"file_size": 0}, {"processes": 1}, {"open_files": 3}],
    ids=lambda limit: next(iter(limit)),
)
def test_limits_with_which_nothing_could_run_are_refused(limit: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(limit))}=.*: give at least"):
        LocalREPL(**limit)


# -- where sessions come from ------------------------------------------------------------------------------------------


def zygote_of(pid: int) -> int:
    """The process that forked a session; its worker is `pid`, whose parent is the session's guard."""
    return parent(parent(pid))


def test_sessions_stand_ready_and_are_each_used_once() -> None:
    settings: dict[str, Any] = {"isolation": "namespace", "env": {"OF": "test_sessions_stand_ready"}}
    with LocalREPL(**settings) as first:
        pid = worker(first)
        zygote = zygote_of(pid)
        wait_until(lambda: len(children(zygote)) == 3)  # its own, and two that are ready
        ready = [guard for guard in children(zygote) if guard != parent(pid)]
        with LocalREPL(**settings) as second, LocalREPL(**settings) as third:
            used = [worker(second), worker(third)]
            assert parent(used[0]) in ready
            assert len({parent(one) for one in (pid, *used)}) == 3
            assert ran(second, "open('mine', 'w').close()\nx = 1\nprint(x)") == "1"
            assert failed(third, "x") == "NameError"
            assert ran(third, "import os\nprint(os.listdir())") == "[]"
        wait_until(lambda: all(map(gone, used)))
        wait_until(lambda: len(children(zygote)) == 3)


def test_after_the_death_of_a_zygote_the_next_session_gets_a_new_one() -> None:
    settings: dict[str, Any] = {"isolation": "namespace", "env": {"OF": "test_after_the_death"}}
    with LocalREPL(**settings) as repl, LocalREPL(**settings) as other:
        pid = worker(repl)
        zygote = zygote_of(pid)
        ran(other, "x = 1")
        wait_until(lambda: len(children(zygote)) == 4)
        os.kill(zygote, signal.SIGKILL)
        wait_until(lambda: gone(pid) and gone(zygote))
        result = repl.execute_code("print('anew')")
        assert (result.stdout, result.restarted, result.error) == ("anew\n", True, None)
        assert zygote_of(worker(repl)) != zygote
        assert other.execute_code("pass").restarted
        with LocalREPL(**settings) as third:
            assert ran(third, "print('fine')") == "fine"


def test_nobody_is_given_a_session_of_a_zygote_that_has_just_died() -> None:
    settings: dict[str, Any] = {"isolation": "namespace", "env": {"OF": "test_just_died"}}
    with LocalREPL(**settings) as repl:
        for _ in range(3):
            zygote = zygote_of(worker(repl))
            wait_until(lambda at=zygote: len(children(at)) == 3)
            os.kill(zygote, signal.SIGKILL)
            while not gone(zygote):
                pass
            with LocalREPL(**settings) as other:  # at once: its parent is still there
                assert "fine" in other.execute_code("print('fine')").stdout
            assert repl.execute_code("print('anew')").stdout.endswith("anew\n")


def test_the_death_of_a_zygote_during_a_cell_is_a_result() -> None:
    with LocalREPL(isolation="namespace", env={"OF": "test_during_a_cell"}) as repl:
        pid = worker(repl)
        results: list[REPLResult] = []
        cell = threading.Thread(target=lambda: results.append(repl.execute_code("while True: pass")))
        cell.start()
        time.sleep(0.1)
        os.kill(zygote_of(pid), signal.SIGKILL)
        cell.join(30)
        [result] = results
        assert result.restarted
        assert result.error is not None
        assert result.error.type == "WorkerDied"
        assert gone(pid)


@every_level
def test_nothing_of_a_session_is_left_when_it_is_closed(level: str) -> None:
    code = """
import os, subprocess, time
subprocess.Popen(["sleep", "600"])
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
"""
    with LocalREPL(isolation=level) as repl:
        ran(repl, code)
        guard = parent(worker(repl))
        started = [guard, *family(guard)]
        assert len(started) >= 4
    wait_until(lambda: all(map(gone, started)))


def test_a_program_that_opens_many_sessions_leaves_no_process_and_no_file(folder: Path) -> None:
    script = """
import os, sys, time
from rlm import LocalREPL
kept = []
for level in ("namespace", "landlock", "none"):
    for _ in range(3):
        with LocalREPL(isolation=level) as repl:
            repl.execute_code("x = 1")
        kept.append(LocalREPL(isolation=level))
        kept[-1].execute_code("x = 1")
time.sleep(0.1)
print("open", flush=True)
sys.stdin.readline()
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TMPDIR": str(folder)}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        started = family(process.pid)
        assert len(started) > 9
        _, errors = process.communicate("\n", timeout=30)
    assert (process.returncode, errors) == (0, "")
    wait_until(lambda: all(map(gone, started)))
    assert not list(folder.iterdir())


def test_the_python_of_a_sandbox_may_be_another_one() -> None:
    other = shutil.which("python3", path="/usr/bin")
    if other is None:
        pytest.skip("there is no /usr/bin/python3")
    with LocalREPL(isolation="namespace", python=other) as repl:
        assert ran(repl, "import sys\nprint(sys.executable)") == other
        assert ran(repl, "import subprocess\nprint(subprocess.call([sys.executable, '-c', '']))") == "0"
