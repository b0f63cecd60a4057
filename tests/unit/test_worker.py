"""The worker from the host's side of its channel: every frame it takes, and what it answers.

Most tests run it in this process, so that they show which of its lines run; the last ones start it as a program, as
every environment does, under each Python that is found here.
"""

from __future__ import annotations

import base64
import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rlm.environments import codec
from tests.sandboxed import Host, inside, program, python_of


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


# -- cells -------------------------------------------------------------------------------------------------------------


def test_it_says_that_it_is_ready_and_ends_with_its_host() -> None:
    def script(host: Host) -> None:
        ready = host.expect("ready")
        assert ready["python"] == ".".join(map(str, sys.version_info[:3]))
        assert ready["pid"] == os.getpid()

    inside(script)


def test_a_cell_tells_what_it_bound_printed_and_removed() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        first = host.run("x = 1\ny = 'two'\n_z = 3.0\nprint('hello')", id=1)
        assert first["names"] == {"child_stdout": "int", "child_stderr": "int", "x": "int", "y": "str", "_z": "float"}
        assert first["printed"]["stdout"] == "hello\n"
        assert (first["error"], first["answer"], first["gone"]) == (None, None, [])
        second = host.run("del x\ny = 2\nimport sys\nprint('oh', file=sys.stderr)", id=2)
        assert (second["names"], second["gone"]) == ({"y": "int", "sys": "module"}, ["x"])
        assert second["printed"] == {"stdout": "", "stderr": "oh\n"}

    inside(script)


def test_a_failing_cell_keeps_what_it_bound_and_shows_its_own_frames() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        done = host.run("before = 1\ndef f():\n    return 1 / 0\nf()", id=7)
        assert done["names"].keys() >= {"before", "f"}
        assert done["error"]["type"] == "ZeroDivisionError"
        text = done["error"]["text"]
        assert 'File "<cell 7>", line 4, in <module>' in text
        assert "    return 1 / 0" in text
        assert "worker.py" not in text
        assert host.run("before", id=8)["error"] is None

    inside(script)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("import sys; sys.exit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f(:\n  pass", "SyntaxError"),
        ("x = 'a\x00b'", ("ValueError", "SyntaxError")),
        ("x = '\ud800'", "UnicodeEncodeError"),
        ("await later()", "NameError"),
    ],
)
def test_whatever_a_cell_raises_is_its_result(code: str, kind: str | tuple[str, ...]) -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        assert host.run(code)["error"]["type"] in (kind if isinstance(kind, tuple) else (kind,))
        assert host.run("x = 1", id=2)["error"] is None

    inside(script)


def test_an_exception_that_is_false_or_cannot_be_shown_is_still_one() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        empty = "class Empty(Exception):\n    def __len__(self): return 0\nraise Empty()"
        assert host.run(empty)["error"]["type"] == "Empty"
        odd = "error = SyntaxError('x', ('f', 'one', 'two', object()))\nraise error"
        assert host.run(odd, id=2)["error"]["type"] == "SyntaxError"

    inside(script)


def test_names_that_are_no_text_do_no_harm() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        assert host.run("globals()[5] = 1\nx = 1")["names"].keys() == {"child_stdout", "child_stderr", "x"}
        assert host.run("for n in range(100): globals()[f'v{n}'] = n", id=2)["error"] is None
        assert host.run("y = 1\nglobals()[6] = 1", id=3)["names"] == {"y": "int"}
        assert host.run("z = 1", id=4)["names"] == {"z": "int"}

    inside(script)


def test_answers() -> None:
    def script(host: Host) -> None:
        host.expect("ready")

        def answer(code: str, id: int, fresh: bool = False) -> Any:
            return host.run(code, id=id, fresh=fresh)["answer"]

        assert answer("pass", 1) is None
        assert answer("answer['content'] = 'so far'", 2) == {"content": "so far", "ready": False}
        assert answer("pass", 3) is None  # nothing new
        assert answer("answer['ready'] = True", 4) == {"content": "so far", "ready": True}
        assert answer("pass", 5) is None  # submitted once
        assert answer("answer |= {'ready': True, 'content': ['é', 2]}", 6) == {"content": '["é", 2]', "ready": True}
        assert answer("answer = {'ready': 1, 'content': {1, }}", 7) == {"content": "{1}", "ready": True}
        assert answer("answer = {'ready': 1, 'content': [{2}]}", 8) == {"content": "[{2}]", "ready": True}
        assert answer("assert answer == {'content': '', 'ready': False}, answer", 9, fresh=True) is None
        assert answer("answer = 'no longer a dict'", 10) is None
        assert answer("answer = {'content': '\\ud800', 'ready': True}", 11) == {"content": "\\ud800", "ready": True}
        failed = host.run("class Odd:\n    def __str__(self): raise SystemExit\nanswer = {'content': Odd()}", id=12)
        assert (failed["answer"], failed["error"]["type"]) == (None, "SystemExit")

    inside(script)


def test_top_level_await_and_its_tasks_live_across_cells() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        assert host.run("import asyncio\ntask = asyncio.create_task(asyncio.sleep(0, 'done'))")["error"] is None
        assert host.run("print(await task)", id=2)["printed"]["stdout"] == "done\n"
        failed = host.run("async def f():\n    raise ValueError('in f')\nawait f()", id=3)
        assert failed["error"]["type"] == "ValueError"
        assert "asyncio/" not in failed["error"]["text"]
        assert host.run("asyncio.get_running_loop().stop()\nawait asyncio.sleep(9)", id=4)["error"]["type"]
        assert host.run("await asyncio.sleep(0)", id=5)["error"] is None

    inside(script)


def test_what_children_print_is_captured_in_order() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        code = "import os, time\nprint('one')\nos.write(child_stdout, b'two\\n')\ntime.sleep(0.01)\nprint('three')\n"
        done = host.run(code + "os.write(child_stdout, b'f\\xc3')\nos.write(child_stderr, b'err\\xff')")
        assert done["printed"] == {"stdout": "one\ntwo\nthree\nf", "stderr": "err�"}
        assert host.run("os.write(child_stdout, b'\\xbcr')", id=2)["printed"]["stdout"] == "ür"

    inside(script)


def test_a_closed_stream_does_not_keep_the_worker_busy() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        host.run("import os, time\nos.close(child_stdout)\nstarted = time.process_time()")
        done = host.run("time.sleep(0.3)\nprint(time.process_time() - started < 0.2)", id=2)
        assert done["printed"]["stdout"] == "True\n"

    inside(script)


def test_output_comes_while_the_cell_runs() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        host.send("run", id=1, code="print('now', flush=True)\nprint(llm_query('?'))", fresh=False)
        assert host.expect("out") == {"type": "out", "id": 1, "stream": "stdout", "text": "now\n"}
        host.send("reply", id=host.expect("call")["id"], value="later")
        assert host.finish()["printed"]["stdout"] == "later\n"

    inside(script)


def test_what_is_printed_from_within_a_send_waits() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        code = """
class Loud:
    def __del__(self): print("freed", flush=True)
loud = Loud()
with llm_query.__self__.channel.sending:  # as where the interpreter frees an object while a frame is sent
    del loud
    print(llm_query("?"))
"""
        done = host.run(code, answer=lambda prompt: "answered")
        assert done["printed"]["stdout"] == "freed\nanswered\n"

    inside(script)


# -- values ------------------------------------------------------------------------------------------------------------


def test_values_are_loaded_kept_and_fetched(tmp_path: Path) -> None:
    def script(host: Host) -> None:
        host.expect("ready")

        def load(names: list[str], format: str, **source: Any) -> Any:
            host.send("load", id=1, names=names, format=format, **source)
            return host.expect("value").get("error")

        def get(name: str) -> Any:
            host.send("get", id=2, name=name)
            frame = host.expect("value")
            return codec.decode(frame["value"], lambda *told: told) if "value" in frame else KeyError

        text, blob = "a\r\n\ud800\udc00\x00", bytes(range(256))
        assert load(["context", "context_0"], "text", data=base64_of(text.encode("utf-8", "surrogatepass"))) is None
        assert load(["blob"], "bytes", data=base64_of(blob)) is None
        assert load(["rows"], "pickle", data=base64_of(pickle.dumps([{1: (2, b"3")}]))) is None
        for name, data in {"text": b"\xc3\xa4", "empty": b"", "pickled": pickle.dumps({"a": {1}})}.items():
            (tmp_path / name).write_bytes(data)
            format = "pickle" if name == "pickled" else "text"
            assert load([name], format, path=str(tmp_path / name)) is None
        assert (get("context"), get("context_0"), get("blob"), get("rows")) == (text, text, blob, [{1: (2, b"3")}])
        assert (get("text"), get("empty"), get("pickled")) == ("ä", "", {"a": {1}})

        assert host.run("context = 5\ndel rows\nmine = object")["error"] is None
        assert (get("context"), get("rows")) == (text, [{1: (2, b"3")}])
        assert get("mine") == ("type", "<class 'object'>")
        assert get("nothing") is KeyError

        assert "EOFError" in load(["broken"], "pickle", data=base64_of(b""))
        assert "FileNotFoundError" in load(["broken"], "text", path=str(tmp_path / "nowhere"))
        assert "ModuleNotFoundError: No module named 'of_the_host'" in load(
            ["broken"], "pickle", data=base64_of(b"cof_the_host\nthing\n.")
        )
        assert get("broken") is KeyError

    inside(script)


def test_a_value_that_cannot_be_read_stays_where_it_is() -> None:
    code = """
class Loud:
    def __repr__(self): raise KeyError("no")
class Growing:
    def __repr__(self): grown[len(grown)] = 1; return "growing"
loud, grown, deep = [Loud()], {0: Growing(), 1: 2}, []
for _ in range(9999): deep = [deep]
"""

    def script(host: Host) -> None:
        host.expect("ready")
        host.run(code)

        def get(name: str) -> Any:
            host.send("get", id=1, name=name)
            return codec.decode(host.expect("value")["value"], lambda *told: told)

        assert get("loud") == [("Loud", "<Loud whose repr raised KeyError>")]
        kind, told = get("grown")
        assert (kind, told[:25]) == ("dict", "<not sent: RuntimeError: ")
        assert isinstance(get("deep"), list)

    inside(script)


def test_names_are_listed_exactly_when_asked() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        host.run("import types\nx = 1\ndef change():\n    globals()['x'] = 'text'")
        host.send("names", id=9)
        listed = host.expect("value")
        assert listed["id"] == 9
        assert listed["value"].items() >= {"x": "int", "types": "module", "change": "function"}.items()
        assert not {"llm_query", "answer", "__name__", "SHOW_VARS"} & listed["value"].keys()
        shown = host.run("new = 1\nprint(SHOW_VARS())")
        assert "x: int\n" in shown["printed"]["stdout"]
        assert "llm_query" not in shown["printed"]["stdout"]
        assert shown["names"] == {"new": "int"}  # what a cell shows itself is told to the host all the same
        host.run("for n in range(600): globals()[f'v{n}'] = n", id=2)
        assert "… and 1" in host.run("print(SHOW_VARS())", id=3)["printed"]["stdout"]

    inside(script)


# -- calls -------------------------------------------------------------------------------------------------------------


def test_queries_and_tools() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        host.send("setup", tools=[{"name": "lookup", "doc": "Looks a host up."}])
        host.send(
            "run",
            id=1,
            fresh=False,
            code="""
a = llm_query("one", model="small")
b = rlm_query(a)
c = llm_query_batched(["x", "y", a])
d = lookup(1, key=b"\\x00")
e = llm_query_batched(p for p in ())
try:
    lookup(object())
except TypeError as error:
    f = str(error)
try:
    rlm_query_batched("one prompt")
except TypeError as error:
    g = str(error)
try:
    lookup(2)
except RuntimeError as error:
    h = type(error).__name__ + ": " + str(error)
i = rlm_query_batched(["p"])
print(a, b, type(b).__name__, b.reason, c, d, e, i, lookup.__name__, lookup.__doc__, sep="|")
""",
        )

        def answer(name: str, args: list[Any], kwargs: dict[str, Any], **reply: Any) -> None:
            call = host.expect("call")
            assert (call["cell"], call["name"], call["args"], call["kwargs"]) == (1, name, args, kwargs)
            host.send("reply", id=call["id"], **reply)

        answer("llm_query", ["one"], {"model": "small"}, value="first")
        answer("rlm_query", ["first"], {}, error="no money left", reason="budget")
        items = [{"value": "X"}, {"error": "bad", "reason": "model"}, {"error": "worse"}]
        answer("llm_query_batched", [["x", "y", "first"]], {}, value=items)
        answer("lookup", [1], {"key": codec.encode(b"\x00")}, value=codec.encode((1, 2)))
        answer("lookup", [2], {}, error="ValueError: no such host")
        answer("rlm_query_batched", [["p"]], {}, error="limit", reason="limit")
        assert host.finish()["printed"]["stdout"] == (
            "first|Error: no money left|Failure|budget|['X', 'Error: bad', 'Error: worse']|(1, 2)|[]|['Error: limit']"
            "|lookup|Looks a host up.\n"
        )
        for name, told in {
            "f": "of type object",
            "g": "for one prompt use rlm_query()",
            "h": "ToolError: ValueError: no such host",
        }.items():
            host.send("get", id=1, name=name)
            assert told in host.expect("value")["value"]

    inside(script)


def test_a_failed_answer_can_be_asked_about() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        host.send("run", id=1, code="llm_query(llm_query('a'))\nllm_query_batched([llm_query('b')])", fresh=False)
        prompts = []
        for _ in range(4):
            call = host.expect("call")
            prompts.append(call["args"][0])
            host.send("reply", id=call["id"], error="down")
        assert prompts == ["a", "Error: down", "b", ["Error: down"]]
        assert host.finish()["error"] is None

    inside(script)


def test_calls_of_many_threads_are_answered_in_any_order() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        host.send(
            "run",
            id=1,
            fresh=False,
            code="""
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(20)
print(list(pool.map(llm_query, [f"q{n}" for n in range(20)])) == [f"a{n}" for n in range(20)])
""",
        )
        calls = [host.expect("call") for _ in range(20)]
        assert len({call["id"] for call in calls}) == 20
        for call in reversed(calls):
            host.send("reply", id=call["id"], value="a" + call["args"][0][1:])
        assert host.finish()["printed"]["stdout"] == "True\n"
        # The pool's threads are from an earlier cell, and work for this one.
        host.send("run", id=2, fresh=False, code="print(pool.submit(llm_query, 'again').result())\npool.shutdown()")
        host.send("reply", id=host.expect("call")["id"], value="yes")
        assert host.finish()["printed"]["stdout"] == "yes\n"

    inside(script)


def test_a_thread_that_outlives_its_cell_gets_an_error() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        host.run("""
import threading
go, errors = threading.Event(), []
def late():
    go.wait()
    try:
        llm_query("too late")
    except RuntimeError as error:
        errors.append(str(error))
thread = threading.Thread(target=late)
thread.start()
""")
        done = host.run("go.set()\nthread.join()\nprint(errors)", id=2)
        assert "whose cell has ended" in done["printed"]["stdout"]

    inside(script)


def test_a_thread_still_waiting_when_its_cell_ends_is_told() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        code = """
import threading
answers = []
thread = threading.Thread(target=lambda: answers.append(llm_query('slow')))
thread.start()
llm_query('fast')
"""
        host.send("run", id=1, fresh=False, code=code)
        calls = {call["args"][0]: call["id"] for call in (host.expect("call"), host.expect("call"))}
        host.send("reply", id=calls["fast"], value="")
        assert host.finish()["error"] is None
        host.send("reply", id=calls["slow"], error="the cell has ended", reason="cancelled")
        assert host.run("thread.join()\nprint(answers)", id=2)["printed"]["stdout"] == "['Error: the cell has ended']\n"

    inside(script)


def test_large_frames_travel_in_parts_both_ways() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        done = host.run("print(len(llm_query('x' * 1_000_000)))", answer=lambda prompt: '"' * 2 * len(prompt))
        assert done["printed"]["stdout"] == "2000000\n"

    inside(script)


def test_a_host_that_leaves_ends_the_waiting() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        code = "try:\n    llm_query('?')\nexcept RuntimeError as error:\n    ended.append(str(error))"
        host.send("run", id=1, code=code, fresh=False)
        host.expect("call")

    ended: list[str] = []
    with pytest.raises(OSError, match=r"Broken pipe|Connection reset"):  # it cannot tell that the cell is done
        inside(script, ended=ended)
    assert ended == ["the host is gone"]


# -- interrupts --------------------------------------------------------------------------------------------------------

BUSY = "print('busy', flush=True)\nwhile True:\n    pass"


@pytest.mark.parametrize(
    "code",
    [
        BUSY,
        "print('busy', flush=True)\nimport time\ntime.sleep(600)",
        "import asyncio\nprint('busy', flush=True)\nawait asyncio.sleep(600)",
    ],
    ids=["busy", "asleep", "awaiting"],
)
def test_an_interrupt_frame_stops_a_cell_and_keeps_the_namespace(code: str) -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        host.send("run", id=1, code="kept = 1\n" + code, fresh=False)
        host.expect("out")
        host.send("interrupt")
        assert host.finish()["error"]["type"] == "KeyboardInterrupt"
        host.send("interrupt")  # too late: nothing runs
        assert host.run("print(kept)", id=2)["printed"]["stdout"] == "1\n"
        host.send("run", id=3, code=BUSY, fresh=False)
        host.expect("out")
        host.send("interrupt")
        assert host.finish()["error"]["type"] == "KeyboardInterrupt"

    inside(script, listen=True)


def test_an_interrupt_strikes_a_cell_that_waits_for_a_call() -> None:
    def script(host: Host) -> None:
        host.expect("ready")
        host.send("run", id=1, code="llm_query('?')", fresh=False)
        call = host.expect("call")
        host.send("interrupt")
        assert host.finish()["error"]["type"] == "KeyboardInterrupt"
        host.send("reply", id=call["id"], value="nobody waits any more")
        assert host.run("print('fine')", id=2)["printed"]["stdout"] == "fine\n"

    inside(script, listen=True)


@pytest.mark.parametrize("listen", [False, True])
def test_calls_work_also_while_a_thread_listens(listen: bool) -> None:
    code = """
import threading
thread = threading.Thread(target=llm_query, args=["1"])
thread.start()
print(llm_query("2"))
thread.join()
"""

    def script(host: Host) -> None:
        host.expect("ready")
        assert host.run(code, answer=str)["printed"]["stdout"] == "2\n"

    inside(script, listen=listen)


# -- as a program ------------------------------------------------------------------------------------------------------


EVERYTHING = """
import asyncio, os, sys, threading
class Row:
    def __init__(self, n): self.n = n
rows = [Row(n) for n in range(3)]
def total(): return sum(row.n for row in rows) + later
later = 1
print(total(), context, "\N{SNOWMAN}")
await asyncio.sleep(0)
threads = [threading.Thread(target=lambda n=n: answers.append(llm_query(str(n)))) for n in range(3)]
answers = []
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(answer[-1] for answer in answers))
os.system("echo child")
try:
    {}["inner"]
except KeyError as error:
    raise ValueError("outer") from error
"""


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14"])
def test_the_same_worker_runs_under_every_python(version: str, tmp_path: Path) -> None:
    python = python_of(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    print(f"Python {version}: {python}")
    with program(tmp_path, python=python) as host:
        assert host.expect("ready")["python"].startswith(version + ".")
        host.send("load", id=1, names=["context"], format="text", data=base64_of(b"text"))
        assert "error" not in host.expect("value")
        done = host.run(EVERYTHING, fresh=True, answer=lambda prompt: "x" * 300_000 + prompt)
        assert done["printed"]["stdout"] == "4 text \N{SNOWMAN}\n['0', '1', '2']\nchild\n"
        assert done["error"]["type"] == "ValueError"
        assert "KeyError: 'inner'" in done["error"]["text"]
        assert "direct cause" in done["error"]["text"]
        assert "worker.py" not in done["error"]["text"]
        assert done["names"].items() >= {"Row": "type", "rows": "list", "later": "int"}.items()
        assert host.run("def f(): return f()\nf()", id=2)["error"]["type"] == "RecursionError"


def test_a_forked_child_ends_as_a_program_does(tmp_path: Path) -> None:
    with program(tmp_path) as host:
        host.expect("ready")
        code = """
import os, sys
def forked(way):
    pid = os.fork()
    if pid == 0:
        print("child", way, flush=True)
        exec(way)
        raise SystemExit
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print([forked(way) for way in ("pass", "sys.exit(3)", "sys.exit('why')", "1/0", "llm_query('?')")])
"""
        done = host.run(code)
        assert done["printed"]["stdout"].splitlines()[-1] == "[0, 3, 1, 1, 1]"
        assert "child pass" in done["printed"]["stdout"]
        told = done["printed"]["stderr"]
        assert "SystemExit: why" in told
        assert "ZeroDivisionError" in told
        assert "only from the REPL's own process" in told


def test_a_users_signal_handler_strikes_in_cells_and_does_no_harm_between_them(tmp_path: Path) -> None:
    with program(tmp_path) as host:
        host.expect("ready")
        code = """
import signal, time
def stop(*_):
    raise TimeoutError("alarm")
print(signal.signal(signal.SIGALRM, stop) == signal.SIG_DFL)
signal.setitimer(signal.ITIMER_REAL, 0.05)
time.sleep(600)
"""
        done = host.run(code)
        assert (done["printed"]["stdout"], done["error"]["type"]) == ("True\n", "TimeoutError")
        host.run("signal.setitimer(signal.ITIMER_REAL, 0.05)", id=2)
        time.sleep(0.5)  # it strikes while no cell runs
        told = host.run("x = 1", id=3)
        assert "TimeoutError: alarm" in told["printed"]["stderr"] + str(told["error"])
        assert host.run("x = 1", id=4)["error"] is None


def test_the_names_of_its_files_are_free_for_the_users_own_modules(tmp_path: Path) -> None:
    for name in ("worker", "calls", "codec", "channel", "capture", "names"):
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    with program(tmp_path) as host:
        host.expect("ready")
        code = "import worker, calls, codec, channel, capture, names\n"
        code += "print(all(module.mine for module in (worker, calls, codec, channel, capture, names)))"
        assert host.run(code)["printed"]["stdout"] == "True\n"
        assert (
            host.run("import pickle; x = pickle.loads(pickle.dumps(llm_query('?')))", id=2, answer=str)["error"] is None
        )


def test_a_program_with_interrupts_in_frames(tmp_path: Path) -> None:
    with program(tmp_path, "listen") as host:
        host.expect("ready")
        host.send("run", id=1, code=BUSY, fresh=False)
        host.expect("out")
        host.send("interrupt")
        assert host.finish()["error"]["type"] == "KeyboardInterrupt"


def test_nothing_outlives_the_host(tmp_path: Path) -> None:
    with program(tmp_path) as host:
        host.expect("ready")
        host.send("run", id=1, code=BUSY, fresh=False)
        host.expect("out")
