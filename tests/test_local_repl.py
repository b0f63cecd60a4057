"""LocalREPL: cells in a sandbox, alone and under an RLM, and what is left when it is closed: nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm import RLM, LocalREPL, ScriptedModel
from rlm.errors import ReplError, SandboxError, SessionClosedError
from rlm.types import REPLResult
from tests.processes import PATIENCE, family, gone, parent, wait_until, worker
from tests.sandboxed import python_of
from tests.turns import cell, submission, submit, told


@pytest.fixture
def repl() -> Iterator[LocalREPL]:
    with LocalREPL() as repl:
        yield repl


def test_two_calls_without_persistence_share_nothing() -> None:
    model = ScriptedModel([cell("secret = 42", submission("'bound'")), cell("print(secret)"), submit("'looked'")])
    rlm = RLM(model)
    assert rlm.completion("first input", "Bind a variable.").response == "bound"
    assert rlm.completion("second input", "Print it.").response == "looked"
    assert "NameError: name 'secret' is not defined" in told(model.requests[2])


def test_cells_share_one_namespace(repl: LocalREPL) -> None:
    assert repl.execute_code("x = 6 * 7").error is None
    assert repl.execute_code("print(x)").stdout == "42\n"
    assert repl.locals["x"] == 42


def test_a_result_says_what_came_of_a_cell(repl: LocalREPL) -> None:
    result = repl.execute_code("import sys\nx = [1]\nprint('out')\nprint('err', file=sys.stderr)")
    assert isinstance(result, REPLResult)
    assert (result.stdout, result.stderr, result.error, result.final_answer) == ("out\n", "err\n", None, None)
    assert result.locals == {"sys": "module", "x": "list"}
    assert 0 < result.execution_time < PATIENCE
    assert (list(result.rlm_calls), result.restarted) == ([], False)


def test_a_failing_cell_is_data(repl: LocalREPL) -> None:
    result = repl.execute_code("x = 1\n1 / 0")
    assert result.error is not None
    assert (result.error.type, result.locals) == ("ZeroDivisionError", {"x": "int"})
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_without_a_handler_a_query_says_that_nobody_answers(repl: LocalREPL) -> None:
    assert "no model is connected" in repl.execute_code("print(llm_query('?'))").stdout


def test_nothing_starts_before_the_first_use() -> None:
    repl = LocalREPL(python="/nowhere/python")
    with pytest.raises(SandboxError, match="/nowhere/python cannot be started"):
        repl.execute_code("1")
    with pytest.raises(SandboxError):  # and again: it is not closed by that
        repl.setup()
    repl.cleanup()


def test_setup_code_runs_first_and_must_not_fail() -> None:
    with LocalREPL(context_payload="abc", setup_code="import math\nn = len(context)") as repl:
        repl.setup()
        assert repl.execute_code("print(math.sqrt(n + 1))").stdout == "2.0\n"
        failed = repl.execute_code("import os; os._exit(1)")
        assert failed.restarted
        assert repl.execute_code("print(n)").stdout.endswith("3\n")
    with LocalREPL(setup_code="1 / 0") as repl, pytest.raises(ReplError, match="ZeroDivisionError"):
        repl.setup()


def test_an_environment_may_be_given() -> None:
    with LocalREPL(env={"COLOUR": "red", "LANG": "C.UTF-8"}) as repl:
        assert repl.execute_code("import os; print(os.environ['COLOUR'], os.environ['LANG'])").stdout == "red C.UTF-8\n"


def test_the_isolation_in_force_is_said_plainly(repl: LocalREPL) -> None:
    assert repl.isolation in ("namespace", "landlock")
    repl.execute_code("x = 1")
    assert repl.isolation in ("namespace", "landlock")


# -- cleanup -----------------------------------------------------------------------------------------------------------


def test_cleanup_twice_and_after_a_death(repl: LocalREPL) -> None:
    repl.execute_code("import os; os._exit(1)")
    repl.cleanup()
    repl.cleanup()
    with pytest.raises(SessionClosedError):
        repl.execute_code("1")


def test_cleanup_before_any_use_and_of_a_half_built_object() -> None:
    LocalREPL().cleanup()
    half = LocalREPL.__new__(LocalREPL)
    half.cleanup()
    with pytest.raises(ValueError, match="cell_timeout=0"):
        LocalREPL(cell_timeout=0)


def test_cleanup_ends_a_running_cell(repl: LocalREPL) -> None:
    pid = worker(repl)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            repl.execute_code("while True: pass")
        except SessionClosedError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.2)
    repl.cleanup()
    thread.join(PATIENCE)
    assert len(ended) == 1
    assert gone(pid)


def test_a_repl_that_nobody_holds_any_more_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    repl = LocalREPL()
    pid = worker(repl)
    assert list(tmp_path.iterdir())
    del repl
    wait_until(lambda: gone(pid) and not list(tmp_path.iterdir()))


# -- hosts -------------------------------------------------------------------------------------------------------------

OPEN = """
import os, signal, sys, tempfile, threading, time
from rlm import LocalREPL
from tests.processes import worker
repls = [LocalREPL() for _ in range(3)]
for repl in repls:
    print(worker(repl), flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def host(folder: Path, *statements: str, python: str = sys.executable) -> Iterator[subprocess.Popen[str]]:
    """A program that has three REPLs open, none of which it closes; it first prints their workers' pids.

    folder: where it keeps its temporary files.
    """
    script = "\n".join([OPEN, *statements])
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TMPDIR": str(folder)}
    with subprocess.Popen(
        [python, "-W", "error", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def opened(process: subprocess.Popen[str], folder: Path) -> tuple[list[int], list[int]]:
    """The workers, and everything that the host has started; then the host goes on."""
    assert process.stdin is not None
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(3)]
    started = family(process.pid)
    assert set(workers) < set(started)
    assert list(folder.iterdir())
    process.stdin.write("\n")
    process.stdin.flush()
    return workers, started


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        ("", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("raise LookupError('uncaught')", 1, "LookupError: uncaught"),
        ("repl.execute_code('x = 1'); del repl", 0, ""),
        ("threading.Timer(0.2, print).start()", 0, ""),
        ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_an_interpreter_that_ends_leaves_nothing_behind(ending: str, status: int, said: str, tmp_path: Path) -> None:
    with host(tmp_path, ending) as process:
        _, started = opened(process, tmp_path)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == status
        assert errors.strip().endswith(said)
        assert said or not errors
    assert not list(tmp_path.iterdir())
    wait_until(lambda: all(map(gone, started)))


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_every_python_that_may_be_a_host_leaves_nothing_behind(version: str, tmp_path: Path) -> None:
    python = python_of(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    with host(tmp_path, "repls.pop().execute_code('x = 1')", python=python) as process:
        _, started = opened(process, tmp_path)
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    assert not list(tmp_path.iterdir())
    wait_until(lambda: all(map(gone, started)))


def test_a_host_that_is_killed_takes_its_workers_along(tmp_path: Path) -> None:
    busy = "threading.Thread(target=repls[0].execute_code, args=['while True: pass'], daemon=True).start()"
    children = "import subprocess; subprocess.run(['sleep', '600'])"
    sleeping = f"threading.Thread(target=repls[1].execute_code, args=[{children!r}], daemon=True).start()"
    with host(tmp_path, busy, sleeping, "time.sleep(0.3); print('busy', flush=True); time.sleep(600)") as process:
        workers, _ = opened(process, tmp_path)
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        started = family(process.pid)
        assert any(parent(pid) in workers for pid in started)
        process.kill()
    wait_until(lambda: all(map(gone, started)))


def test_a_forked_child_of_the_host_leaves_its_parents_workers_alone(tmp_path: Path) -> None:
    statements = """
pid = os.fork()
if pid == 0:
    try:
        repls[0].execute_code("stolen = 1")
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    with LocalREPL() as own:
        print(own.execute_code("print('own')").stdout, end="", flush=True)
    del repl, repls
    sys.exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
for repl in repls:
    print(repl.execute_code("print('stolen' in globals())").stdout.strip(), worker(repl), flush=True)
"""
    with host(tmp_path, statements) as process:
        workers, started = opened(process, tmp_path)
        output, errors = process.communicate(timeout=PATIENCE)
    assert output.splitlines() == [
        "ReplError this REPL belongs to the process that forked this one: open a new one here",
        "own",
        "5",
        *(f"False {pid}" for pid in workers),
    ]
    assert (process.returncode, errors) == (0, "")
    assert not list(tmp_path.iterdir())
    wait_until(lambda: all(map(gone, started)))


def test_a_forked_child_does_not_keep_the_workers_of_a_killed_host_alive(tmp_path: Path) -> None:
    fork = "pid = os.fork()\nif pid == 0:\n    time.sleep(600)\nprint(pid, flush=True)\ntime.sleep(600)"
    with host(tmp_path, fork) as process:
        _, started = opened(process, tmp_path)
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        try:
            wait_until(lambda: all(map(gone, started)))
        finally:
            os.kill(child, signal.SIGKILL)


def test_ctrl_c_stops_the_cell_and_keeps_the_namespace(tmp_path: Path) -> None:
    statements = """
repl.execute_code("kept = 1")
threading.Timer(0.3, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
try:
    repl.execute_code("while True: pass")
except KeyboardInterrupt:
    print("stopped", repl.execute_code("print(kept)").stdout, end="")
"""
    with host(tmp_path, statements) as process:
        opened(process, tmp_path)
        output, errors = process.communicate(timeout=PATIENCE)
    assert (output, errors, process.returncode) == ("stopped 1\n", "", 0)
