"""What holds inside a cell: one real namespace, plain module semantics, and nothing a cell does reaches the host."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rlm.environments import LocalREPL
from rlm.environments.repl import Namespace
from rlm.environments.sandbox.sandbox import Sandbox, Settings
from rlm.portal import portal
from rlm.ports import Answer, Part
from rlm.types import RemoteValue, REPLResult
from tests.processes import PATIENCE, children, family, gone, wait_until, worker

connect = Sandbox(Settings()).connect


@pytest.fixture
def repl() -> Iterator[LocalREPL]:
    with LocalREPL() as repl:
        yield repl


def ran(repl: LocalREPL, *cells: str) -> str:
    """What the last of the cells printed; none of them may fail."""
    for cell in cells:
        result = repl.execute_code(cell)
        assert result.error is None, result.stderr
    return result.stdout


def failed(repl: LocalREPL, cell: str) -> REPLResult:
    result = repl.execute_code(cell)
    assert result.error is not None
    return result


async def echo(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return f"{name}: {args[0]}"


def asked(*cells: str, answer: Answer = echo, cell_timeout: float | None = None) -> list[REPLResult]:
    """The results of cells whose calls are answered."""

    async def main() -> list[REPLResult]:
        namespace = Namespace(connect, cell_timeout=cell_timeout)
        try:
            async with asyncio.timeout(PATIENCE):
                return [await namespace.run(cell, answer) for cell in cells]
        finally:
            await namespace.close()

    return asyncio.run(main())


# -- module semantics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "printed"),
    {
        "functions see a rebinding": (["x = 1\ndef f(): return x\nx = 2", "x = 3", "print(f())"], "3"),
        "functions see a rebinding in their own cell": (["x = 1\ndef f(): return x\nx = 2\nprint(f())"], "2"),
        "a function may call one of a later cell": (["def f(): return g()", "def g(): return 'g'", "print(f())"], "g"),
        "recursion": (["def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)", "print(fib(10))"], "55"),
        "del": (["x = 1", "del x", "print('x' in globals())"], "False"),
        "names with an underscore": (["_x = 1; __y = 2", "print(_x, __y)"], "1 2"),
        "global": (["def f():\n    global x\n    x = 5", "f()", "print(x)"], "5"),
        "comprehensions see the names": (
            ["k = 2\nprint([k * n for n in range(3)], {k for _ in [1]})"],
            "[0, 2, 4] {2}",
        ),
        "classes": (
            ["class A:\n    n = 1\n    def get(self): return self.n", "print(A().get(), A.__module__)"],
            "1 __main__",
        ),
        "classes that inherit": (
            ["class A: pass", "class B(A): pass", "print(issubclass(B, A))"],
            "True",
        ),
        "dataclasses": (
            ["from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int", "print(P(1))"],
            "P(x=1)",
        ),
        "all builtins": (
            ["print(frozenset([1]), ZeroDivisionError.__name__, __build_class__.__name__)"],
            "frozenset({1}) ZeroDivisionError __build_class__",
        ),
        "eval and exec": (["exec('x = 6'); print(eval('x * 7'))"], "42"),
        "the names of the engine's own variables": (
            ["f, json, code, result = 1, 2, 3, 4", "print(f, json, code, result)"],
            "1 2 3 4",
        ),
        "imports": (["import math as m\nfrom os import path", "print(m.pi > 3, path.sep)"], "True /"),
        "generators live on": (["def count():\n    yield from range(9)\ng = count(); next(g)", "print(next(g))"], "1"),
        "a live generator harms no function": (
            ["g = (n for n in [1, 2])", "def f(): return next(g)", "print(f(), f())"],
            "1 2",
        ),
        "the module is __main__": (["import __main__\nx = 1\nprint(__main__.x, __name__)"], "1 __main__"),
        "pickle finds the classes": (
            ["class A: pass", "import pickle; print(type(pickle.loads(pickle.dumps(A()))) is A)"],
            "True",
        ),
        "source can be inspected": (
            ["def f():\n    return 1", "import inspect; print(inspect.getsource(f).count('return'))"],
            "1",
        ),
        "annotations": (
            ["x: int = 1\ndef f(a: int) -> 'str': ...", "print(f.__annotations__)"],
            "{'a': <class 'int'>, 'return': 'str'}",
        ),
        "an empty cell": (["", "# only a comment\n", "print('fine')"], "fine"),
        "windows line ends": (["x = 1\r\nif x:\r\n    print('yes')\r\n"], "yes"),
    }.values(),
    ids=str,
)
def test_plain_module_semantics(repl: LocalREPL, cells: list[str], printed: str) -> None:
    assert ran(repl, *cells) == printed + "\n"


def test_what_was_bound_before_an_exception_stays(repl: LocalREPL) -> None:
    result = failed(repl, "x = 1\ndef f(): return x\nx = 2\nraise ValueError('late')\nx = 3")
    assert result.locals == {"x": "int", "f": "function"}
    assert ran(repl, "print(f())") == "2\n"


def test_a_large_value_is_free_once_it_is_rebound(repl: LocalREPL) -> None:
    held = """
def held():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
"""
    ran(repl, held, "x = b'x' * 300_000_000\ndef beside(): return 1")
    before, after = ran(repl, "a = held()", "x = None\nprint(a, held())").split()
    assert int(before) - int(after) > 250
    ran(repl, "x = b'x' * 300_000_000")
    failed(repl, "y = x\ndef f(z): raise ValueError\nf(y)")  # what a traceback held is free as well
    before, after = ran(repl, "a = held()", "del x, y\nprint(a, held())").split()
    assert int(before) - int(after) > 250


def test_adding_contexts_touches_no_other_name(repl: LocalREPL) -> None:
    ran(repl, "f, json, pickle, os, value, data = 1, 2, 3, 4, 5, 6")
    repl.add_context({"rows": [1, 2]})
    repl.add_context("text " * 100_000)
    assert ran(repl, "print(f, json, pickle, os, value, data)") == "1 2 3 4 5 6\n"
    assert repl.execute_code("pass").locals.keys() == {
        "f",
        "json",
        "pickle",
        "os",
        "value",
        "data",
        "context",
        "context_0",
        "context_1",
    }


def test_contexts_histories_and_functions_are_put_back(repl: LocalREPL) -> None:
    repl.add_context("the input")
    repl.add_history([{"role": "user", "content": "hi"}])
    ran(repl, "context = context_0 = 1\ndel history, history_0\nllm_query = None\nSHOW_VARS = 1")
    assert (
        ran(repl, "print(context, context_0, history == history_0, llm_query.__name__)")
        == "the input the input True llm_query\n"
    )
    failed(repl, "context = 2\nraise ValueError")
    assert ran(repl, "print(context, SHOW_VARS())").startswith("the input ")


def test_show_vars_tells_names_and_types_and_no_values(repl: LocalREPL) -> None:
    assert ran(repl, "print(SHOW_VARS())") == "(none)\n"
    repl.add_context("secret")
    assert ran(repl, "x = 'hidden'", "print(SHOW_VARS())") == "context_0: str\ncontext: str\nx: str\n"


def test_a_module_that_a_cell_wrote_can_be_imported(repl: LocalREPL) -> None:
    cells = [
        f"open('{name}.py', 'w').write('here = {n}')" for n, name in enumerate(("worker", "codec", "channel", "mine"))
    ]
    assert (
        ran(
            repl, *cells, "import worker, codec, channel, mine\nprint(worker.here, codec.here, channel.here, mine.here)"
        )
        == "0 1 2 3\n"
    )
    ran(repl, "open('json.py', 'w').write('1/0')", "import json")  # hides nothing of the library


def test_input_is_at_its_end(repl: LocalREPL) -> None:
    assert failed(repl, "input('name? ')").error.type == "EOFError"
    assert ran(repl, "import sys; print(repr(sys.stdin.read()))") == "''\n"


# -- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell",
    [
        "answer['content'] = 'yes'\nanswer['ready'] = True",
        "answer['ready'] = True\nanswer['content'] = 'yes'",
        "answer.update(content='yes', ready=True)",
        "answer |= {'ready': True, 'content': 'yes'}",
        "answer = {'content': 'yes', 'ready': True}",
        "answer = dict(ready=1, content='yes')",
        "def submit(text):\n    answer.update(ready=True, content=text)\nsubmit('yes')",
        "import collections\nanswer = collections.OrderedDict(content='yes', ready=True)",
    ],
)
def test_every_way_to_answer(repl: LocalREPL, cell: str) -> None:
    result = repl.execute_code(cell)
    assert (result.final_answer, result.error) == ("yes", None)


def test_an_answer_may_take_several_cells_and_is_no_variable(repl: LocalREPL) -> None:
    assert repl.execute_code("answer['content'] = 'draft'").final_answer is None
    assert repl.execute_code("answer['content'] += ' and more'").draft.content == "draft and more"
    result = repl.execute_code("answer['ready'] = True")
    assert (result.final_answer, "answer" in result.locals) == ("draft and more", False)
    assert repl.execute_code("pass").final_answer is None


@pytest.mark.parametrize(
    ("content", "text"), [("42", "42"), ("None", "None"), ("{'a': ['é', 1]}", '{"a": ["é", 1]}'), ("(1, 2)", "[1, 2]")]
)
def test_an_answer_is_text(repl: LocalREPL, content: str, text: str) -> None:
    assert repl.execute_code(f"answer.update(content={content}, ready=True)").final_answer == text


def test_an_answer_counts_also_where_the_cell_failed_after_it(repl: LocalREPL) -> None:
    result = failed(repl, "answer.update(content='yes', ready=True)\n1 / 0")
    assert result.final_answer == "yes"


def test_a_turn_begins_with_an_empty_answer() -> None:
    async def main() -> REPLResult:
        namespace = Namespace(connect)
        try:
            await namespace.run("answer['content'] = 'of an earlier turn'")
            return await namespace.run("print(answer)", fresh=True)
        finally:
            await namespace.close()

    assert asyncio.run(main()).stdout == "{'content': '', 'ready': False}\n"


# -- await, threads, processes ---------------------------------------------------------------------------------------


def test_top_level_await(repl: LocalREPL) -> None:
    cells = [
        "import asyncio\nasync def double(n):\n    await asyncio.sleep(0.01)\n    return 2 * n",
        "print(await asyncio.gather(*map(double, range(3))))\nasync with asyncio.timeout(9):\n    pass",
    ]
    assert ran(repl, *cells) == "[0, 2, 4]\n"
    assert ran(repl, "task = asyncio.create_task(double(21))", "print(await task)") == "42\n"
    assert failed(repl, "await double('x') / 2").error.type == "TypeError"
    assert ran(repl, "print(asyncio.run(double(4)))") == "8\n"  # a cell without await may run a loop of its own


def test_threads_ask_at_once() -> None:
    at_once = 0
    most = 0

    async def answer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        nonlocal at_once, most
        at_once, most = at_once + 1, max(most, at_once + 1)
        while most < 10:  # noqa: ASYNC110 - until ten wait at once
            await asyncio.sleep(0)
        at_once -= 1
        return args[0].upper()

    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(10) as pool:
    print(list(pool.map(llm_query, "abcdefghij")))
"""
    [result] = asked(code, answer=answer)
    assert result.stdout == f"{list('ABCDEFGHIJ')}\n"


def test_a_thread_that_outlives_its_cell_is_refused_and_a_pool_is_not() -> None:
    first = """
import threading
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(1)
print(pool.submit(llm_query, "early").result())
go, late = threading.Event(), []
def ask():
    go.wait()
    try:
        late.append(llm_query("late"))
    except RuntimeError as error:
        late.append(str(error))
thread = threading.Thread(target=ask)
thread.start()
"""
    second = "print(pool.submit(llm_query, 'again').result())\ngo.set()\nthread.join()\nprint(*late)"
    assert asked(first, second)[1].stdout.splitlines() == [
        "llm_query: again",
        "llm_query() was called by a thread whose cell has ended",
    ]


def test_pools_of_processes_find_the_functions_of_cells(repl: LocalREPL) -> None:
    ran(repl, "import concurrent.futures, multiprocessing\ndef square(n): return n * n")
    pool = "with multiprocessing.get_context('fork').Pool(2) as pool:\n    print(pool.map(square, range(4)))"
    assert ran(repl, pool) == "[0, 1, 4, 9]\n"
    code = """
with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
    print(list(pool.map(square, [5])))
"""
    assert ran(repl, code) == "[25]\n"


def test_a_forked_child_that_runs_on_neither_answers_nor_stays(repl: LocalREPL) -> None:
    code = """
import os
pids = []
for _ in range(5):
    pids.append(os.fork())
    if pids[-1] == 0:
        break
if 0 in pids:
    print("child")
    answer.update(content="from the child", ready=True)
else:
    print("parent", [os.waitpid(pid, 0)[1] for pid in pids])
"""
    result = repl.execute_code(code)
    assert (result.error, result.final_answer) == (None, None)
    assert sorted(result.stdout.split("\n")) == ["", *["child"] * 5, "parent [0, 0, 0, 0, 0]"]
    assert ran(repl, "print('here')") == "here\n"


# -- output ----------------------------------------------------------------------------------------------------------


def test_output_of_children_and_c_code_is_captured_in_order(repl: LocalREPL) -> None:
    code = """
import ctypes, os, subprocess, sys
print("python")
os.system("echo shell")
print("python again")
subprocess.run(["sh", "-c", "echo child; echo oops >&2"])
subprocess.run([sys.executable, "-c", "print('another python')"])
print("captured:", subprocess.check_output(["echo", "mine"], text=True).strip())
sys.stdout.buffer.write(b"bytes \\xc3\\xa4\\n")
sys.__stdout__.write("the first stdout\\n")
os.write(1, b"bare\\n")
ctypes.CDLL(None).printf(b"from C\\n")
print("warned", file=sys.stderr)
"""
    result = repl.execute_code(code)
    assert (result.error, result.stderr) == (None, "oops\nwarned\n")
    lines = result.stdout.splitlines()
    assert lines[:7] == ["python", "shell", "python again", "child", "another python", "captured: mine", "bytes ä"]
    assert sorted(lines[7:]) == ["bare", "from C", "the first stdout"]


def test_text_on_stderr_is_no_error(repl: LocalREPL) -> None:
    result = repl.execute_code("import sys, warnings\nprint('progress', file=sys.stderr)\nwarnings.warn('careful')")
    assert result.error is None
    assert result.stderr.startswith("progress\n")
    assert "UserWarning: careful" in result.stderr


def test_what_a_child_prints_after_its_cell_stands_in_a_later_one(repl: LocalREPL) -> None:
    script = "trap 'echo late; exit' USR1; touch ready; while :; do sleep 0.01; done"
    ran(repl, f"import os, subprocess\nchild = subprocess.Popen(['sh', '-c', {script!r}])")
    ran(repl, "while not os.path.exists('ready'): pass")
    assert ran(repl, "print('meanwhile')") == "meanwhile\n"
    [child] = children(worker(repl))
    os.kill(child, signal.SIGUSR1)
    wait_until(lambda: gone(child))
    assert ran(repl, "child.wait()") == "late\n"


@pytest.mark.parametrize("length", [200_000, 200_001, 1_234_567])
def test_long_output_keeps_head_tail_and_the_exact_count(repl: LocalREPL, length: int) -> None:
    result = failed(repl, f"print('<' + 'x' * ({length} - 3) + '>')\n1 / 0")
    assert result.stdout.startswith("<xxx")
    assert result.stdout.endswith("xxx>\n")
    cut = f"\n… [{length - 200_000:,} characters cut] …\n"
    assert (cut in result.stdout) == (length > 200_000)
    assert len(result.stdout.replace(cut, "")) == min(length, 200_000)
    assert "ZeroDivisionError: division by zero" in result.stderr


def test_the_traceback_is_kept_behind_any_amount_of_stderr(repl: LocalREPL) -> None:
    result = failed(
        repl, "import sys\nfor _ in range(50_000):\n    print('noise ' * 4, file=sys.stderr)\nraise KeyError('last')"
    )
    assert result.stderr.rstrip().endswith("KeyError: 'last'")
    assert "characters cut" in result.stderr


def test_output_is_heard_while_the_cell_runs() -> None:
    async def main() -> None:
        namespace, heard, go = Namespace(connect), asyncio.Event(), asyncio.Event()

        async def answer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            await go.wait()

        try:
            code = "print('now', flush=True)\nllm_query('?')"
            cell = asyncio.create_task(namespace.run(code, answer, printed=lambda stream, text: heard.set()))
            await heard.wait()
            assert not cell.done()
            go.set()
            assert (await cell).stdout == "now\n"
        finally:
            await namespace.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_streams_can_be_redirected_by_the_cell(repl: LocalREPL) -> None:
    code = """
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()) as text:
    print("inside")
print(repr(text.getvalue()))
"""
    assert ran(repl, code) == "'inside\\n'\n"


# -- failures --------------------------------------------------------------------------------------------------------


def test_a_traceback_shows_the_users_frames_with_their_source(repl: LocalREPL) -> None:
    ran(repl, "import json\n\ndef parse(text):\n    return json.loads(text)")
    lines = failed(repl, "rows = []\nparse('{')").stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert [line for line in lines if line.startswith("  File")] == [
        '  File "<cell 2>", line 2, in <module>',
        '  File "<cell 1>", line 4, in parse',
    ]
    assert "    return json.loads(text)" in lines
    assert lines[-1].startswith("json.decoder.JSONDecodeError: Expecting")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('a') from e",
            ["ZeroDivisionError", "direct cause", "KeyError: 'a'"],
        ),
        (
            "try:\n    1 / 0\nexcept ZeroDivisionError:\n    undefined",
            ["ZeroDivisionError", "During handling", "NameError: name 'undefined'"],
        ),
        (
            "raise ExceptionGroup('several', [ValueError(1), KeyError(2)])",
            ["ExceptionGroup: several", "ValueError: 1", "KeyError: 2"],
        ),
        ("x = (1,\nprint(x", ["<cell 1>", "SyntaxError: '(' was never closed"]),
        ("def f():\n  return 1\n   return 2", ["line 3", "IndentationError"]),
        ("def f(): return f()\nf()", ["in f", "Previous line repeated", "RecursionError"]),
        ("async def f():\n    raise OSError('in f')\nawait f()", ["in <module>", "in f", "OSError: in f"]),
        ("def g():\n    yield 1\n    raise LookupError\nlist(g())", ["in g", "LookupError"]),
        ("import sys; sys.exit('goodbye')", ["SystemExit: goodbye"]),
        ("exit()", ["SystemExit"]),
        (
            "import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start(); t.join()\nraise ValueError",
            ["ZeroDivisionError", "ValueError"],
        ),
    ],
)
def test_failures_are_data(repl: LocalREPL, code: str, told: list[str]) -> None:
    result = failed(repl, code)
    places = [result.stderr.find(text) for text in told]
    assert -1 not in places, result.stderr
    assert places == sorted(places)
    assert "rlm/environments" not in result.stderr
    assert ran(repl, "print('still here')") == "still here\n"


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os._exit(3)", "exited with status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("import os; os.closerange(0, 100)", "died"),
    ],
)
def test_a_death_is_a_result_that_names_what_is_back_and_what_is_lost(repl: LocalREPL, code: str, how: str) -> None:
    repl.add_context("the input")
    repl.add_history([{"role": "user", "content": "hi"}])
    ran(repl, "rows = [1]\ndef f(): pass")
    result = failed(repl, "print('last words', flush=True)\n" + code)
    assert (result.error.type, result.restarted) == ("WorkerDied", True)
    assert how in result.stderr
    assert result.stdout == "last words\n"
    assert "Back: context, context_0, history, history_0. Lost: rows (list), f (function)." in result.stderr
    assert result.locals == {"context": "str", "context_0": "str", "history": "list", "history_0": "list"}
    assert ran(repl, "print(context, history[0]['content'])") == "the input hi\n"


def test_a_worker_that_died_between_two_cells_is_told_with_the_next(repl: LocalREPL) -> None:
    ran(repl, "rows = [1]")
    kill(worker(repl))
    result = repl.execute_code("print('anew')")
    assert (result.stdout, result.error, result.restarted) == ("anew\n", None, True)
    assert "Lost: rows (list)" in result.stderr
    assert not repl.execute_code("pass").restarted


def test_two_deaths_in_a_row_lose_no_word(repl: LocalREPL) -> None:
    ran(repl, "rows = [1]")
    kill(worker(repl))
    result = failed(repl, "import os; os._exit(5)")
    assert "exited with status 5" in result.stderr
    assert "rows (list)" in result.stderr
    assert ran(repl, "print('fine')") == "fine\n"


def test_many_lost_names_are_counted(repl: LocalREPL) -> None:
    ran(repl, "for n in range(100): globals()[f'v{n}'] = n")
    assert "and 61 more" in failed(repl, "import os; os._exit(0)").stderr


# -- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(600)",
        "import subprocess; subprocess.run(['sleep', '600'])",
        "import threading; threading.Event().wait()",
    ],
)
def test_a_time_limit_stops_the_cell_and_keeps_the_namespace(code: str) -> None:
    with LocalREPL(cell_timeout=0.3) as repl:
        result = failed(repl, "kept = [1]\nprint('begun')\n" + code)
        assert (result.error.type, result.restarted, result.stdout) == ("CellTimeout", False, "begun\n")
        assert "0.3 s, its time limit" in result.stderr
        assert ran(repl, "print(kept)") == "[1]\n"


def test_a_cell_that_cannot_be_interrupted_costs_the_worker() -> None:
    stubborn = "import time\nwhile True:\n    try:\n        while True: time.sleep(1)\n    except BaseException: pass"
    with LocalREPL(cell_timeout=0.2, context_payload="the input") as repl:
        ran(repl, "rows = [1]")
        result = failed(repl, stubborn)
        assert (result.error.type, result.restarted) == ("CellTimeout", True)
        assert "limit of 0.2 s" in result.stderr
        assert "Back: context, context_0. Lost: rows (list)." in result.stderr
        assert ran(repl, "print(context)") == "the input\n"


def test_cancelling_stops_the_cell_and_keeps_the_namespace() -> None:
    async def main() -> str:
        namespace, heard = Namespace(connect), asyncio.Event()
        try:
            code = "kept = 1\nprint('busy', flush=True)\nwhile True: pass"
            cell = asyncio.create_task(namespace.run(code, printed=lambda stream, text: heard.set()))
            await heard.wait()
            cell.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cell
            return (await namespace.run("print(kept)")).stdout
        finally:
            await namespace.close()

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == "1\n"


def test_processes_of_a_closed_repl_are_gone(repl: LocalREPL) -> None:
    code = """
import os, subprocess, sys
children = [subprocess.Popen(["sleep", "600"]) for _ in range(3)]
pid = os.fork()
if pid == 0:
    import time; time.sleep(600)
"""
    ran(repl, code)
    pids = [worker(repl), *family(worker(repl))]
    assert len(pids) == 5
    assert not any(map(gone, pids))
    repl.cleanup()
    wait_until(lambda: all(map(gone, pids)))


# -- the host --------------------------------------------------------------------------------------------------------


def test_parallel_sessions_keep_their_own_output_and_leave_the_host_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = (
        sys.stdout,
        sys.stderr,
        Path.cwd(),
        dict(os.environ),
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
    )
    code = """
import os, signal, sys
os.chdir("/")
os.environ["SESSION"] = str({n})
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(200):
    print({n})
    print(-{n}, file=sys.stderr)
sys.stdout = None
"""

    def session(n: int) -> REPLResult:
        with LocalREPL() as repl:
            return repl.execute_code(code.format(n=n))

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(session, range(6)))
    for n, result in enumerate(results):
        assert (set(result.stdout.split()), set(result.stderr.split())) == ({str(n)}, {str(-n)})
    assert before == (
        sys.stdout,
        sys.stderr,
        Path.cwd(),
        dict(os.environ),
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
    )
    print("the host's own")
    assert capsys.readouterr() == ("the host's own\n", "")


def test_cells_see_no_variable_of_the_hosts_environment(repl: LocalREPL) -> None:
    os.environ["OPENAI_API_KEY"] = "secret"
    try:
        seen = ran(repl, "import os; print(*sorted(os.environ))").split()
    finally:
        del os.environ["OPENAI_API_KEY"]
    assert set(seen) <= {
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "PATH",
        "PYTHONHASHSEED",
        "PYTHONUNBUFFERED",
        "TMPDIR",
        "TZ",
    }


def test_sets_iterate_in_the_same_order_in_every_worker() -> None:
    def order() -> str:
        with LocalREPL() as repl:
            return ran(repl, "print(*{f'key {n}' for n in range(50)})")

    assert order() == order()


@pytest.mark.parametrize("isolation", ["namespace", "landlock", "none"])
def test_a_cells_folder_is_its_own_and_goes_with_it(
    isolation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with LocalREPL(isolation=isolation) as repl, LocalREPL(isolation=isolation) as other:
        code = "import os, tempfile\nopen('left', 'w').close()\nprint(tempfile.mkdtemp(), os.getcwd())"
        made, folder = (Path(place) for place in ran(repl, code).split())
        ours = Path(f"/proc/{worker(repl)}/cwd")
        assert "left" in {path.name for path in ours.iterdir()}
        assert ran(other, "import os\nprint(os.listdir())") == "[]\n"
        assert Path("/proc/self/cwd").resolve() != folder
        repl.cleanup()
        assert not made.exists()
        assert not folder.exists()
    assert not list(tmp_path.iterdir())


# -- values ----------------------------------------------------------------------------------------------------------


def test_values_are_fetched_when_they_are_asked_for(repl: LocalREPL) -> None:
    ran(repl, "x = {'a': [1, (2, b'3')], 5: None}\nimport math")
    ran(repl, "class Loud:\n    def __repr__(self): return 'LOUD'\ny = [Loud()]")
    assert repl.locals["x"] == {"a": [1, (2, b"3")], 5: None}
    assert repl.locals["y"] == [RemoteValue("Loud", "LOUD")]
    assert repl.locals["math"].type == "module"
    assert set(repl.locals) == {"x", "math", "Loud", "y"}
    assert ("x" in repl.locals, "z" in repl.locals, len(repl.locals)) == (True, False, 4)
    with pytest.raises(KeyError, match="z"):
        repl.locals["z"]
    assert repl.locals.get("z", 5) == 5
    assert repr(repl.locals) == "<locals: x, math, Loud, y>"


def test_locals_of_a_result_are_as_of_its_end(repl: LocalREPL) -> None:
    first = repl.execute_code("x = 1")
    second = repl.execute_code("x = 'one'\ny = 2")
    third = repl.execute_code("del x")
    assert [dict(result.locals) for result in (first, second, third)] == [
        {"x": "int"},
        {"x": "str", "y": "int"},
        {"y": "int"},
    ]


def kill(pid: int) -> None:
    """End an idle worker behind the host's back, and wait until the host has seen it."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: gone(pid))
    portal().run(asyncio.sleep(0.01))  # its end of the channel is closed: the loop hears so in its next round


def test_a_capture_that_nobody_took_over_takes_no_room_beside_the_next() -> None:
    async def main() -> None:
        namespace = Namespace(connect)
        try:
            files: list[set[Path]] = []
            for name in ("one", "two"):
                await namespace.run(f"{name} = '{name}' * 500_000")
                _, capture = await namespace.capture()
                files.append({content.path for content in capture.blobs.values() if isinstance(content, Part)})
            assert [path.exists() for path in files[0]] == [False]
            assert [path.exists() for path in files[1] - files[0]] == [True]
        finally:
            await namespace.close()

    asyncio.run(main())
