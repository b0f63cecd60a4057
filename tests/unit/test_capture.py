"""What cells print and how they fail: head and tail with an exact count, tracebacks of the user's own frames."""

from __future__ import annotations

import ctypes
import io
import linecache
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sandboxed import capture
from tests.sandboxed import names as listing

KEEP = capture.KEEP


def whole(part: dict[str, Any]) -> str:
    """A stream's report as the host puts it together, with `[n]` for what was cut."""
    return str(part["text"] + (f"[{part['cut']}]" if part["cut"] else "") + part["tail"])


def expected(text: str) -> str:
    if len(text) <= 2 * KEEP:
        return text
    return f"{text[:KEEP]}[{len(text) - 2 * KEEP}]{text[-KEEP:]}"


@given(
    st.lists(st.tuples(st.text("abc\n", min_size=1, max_size=9), st.sampled_from([1, 7, 5_000, 40_000])), max_size=12),
    st.sets(st.integers(0, 12)),
)
def test_head_and_tail_are_kept_and_the_rest_is_counted(pieces: list[tuple[str, int]], reports: set[int]) -> None:
    captured, told, text = capture.Captured(), "", ""
    for place, (piece, times) in enumerate(pieces):
        if place in reports:
            told += captured.take()
        captured.add(piece * times)
        text += piece * times
    assert told + whole(captured.finish()) == expected(text)


@pytest.mark.parametrize("length", [0, 1, KEEP, KEEP + 1, 2 * KEEP, 2 * KEEP + 1, 5 * KEEP])
@pytest.mark.parametrize("piece", [1_000, 1 << 30])
def test_the_count_is_exact_at_every_edge(length: int, piece: int) -> None:
    captured, text = capture.Captured(), ("0123456789" * (length // 10 + 1))[:length]
    for start in range(0, length, piece):
        captured.add(text[start : start + piece])
    assert whole(captured.finish()) == expected(text)


@pytest.fixture
def output() -> Iterator[tuple[Any, list[int]]]:
    """An output, and the two ends that children write to."""
    pipes = [os.pipe(), os.pipe()]
    yield capture.Output([reading for reading, _ in pipes], lambda take: None), [writing for _, writing in pipes]
    for end in (*pipes[0], *pipes[1]):
        os.close(end)


def test_streams_behave_as_text_files_do(output: tuple[Any, list[int]]) -> None:
    stdout, stderr = output[0].streams()
    assert (stdout.fileno(), stderr.fileno(), stdout.writable(), stdout.isatty()) == (1, 2, True, False)
    assert (stdout.encoding, stdout.write("ab"), stderr.write("")) == ("utf-8", 2, 0)
    stdout.reconfigure(line_buffering=True)
    with pytest.raises(TypeError, match="must be str, not bytes"):
        stdout.write(b"bytes")
    with pytest.raises(io.UnsupportedOperation):
        stdout.read()
    print("text", 1, file=stdout, flush=True)
    assert output[0].collect() == {
        "stdout": {"text": "abtext 1\n", "cut": 0, "tail": ""},
        "stderr": {"text": "", "cut": 0, "tail": ""},
    }
    assert output[0].collect() == {}


def test_bytes_become_text_also_where_a_character_is_cut(output: tuple[Any, list[int]]) -> None:
    buffer = output[0].streams()[0].buffer
    assert buffer.writable()
    assert buffer.write("ä".encode()[:1]) == 1
    assert buffer.write(memoryview("ä".encode()[1:])) == 1
    buffer.write(b"\xff\n")
    buffer.flush()
    assert output[0].collect()["stdout"]["text"] == "ä�\n"


def test_lone_surrogates_are_shown_as_escapes(output: tuple[Any, list[int]]) -> None:
    output[0].streams()[0].write("a\ud800b")
    assert output[0].collect()["stdout"]["text"] == "a\\ud800b"


def test_what_children_had_written_by_the_end_is_all_there(output: tuple[Any, list[int]]) -> None:
    for number, end in enumerate(output[1]):
        os.set_blocking(end, False)
        assert os.write(end, b"%d" % number * (1 << 20)) >= 1 << 16  # as much as the pipe takes
    collected = output[0].collect()
    assert {len(collected[stream]["text"]) for stream in ("stdout", "stderr")} == {1 << 16}


def test_text_that_c_code_holds_is_flushed(output: tuple[Any, list[int]], capfd: Any) -> None:
    libc = ctypes.CDLL(None)
    libc.printf(b"from C\n")
    output[0].collect()
    output[0].collect()
    assert capfd.readouterr().out == "from C\n"


def test_a_child_made_by_fork_writes_past_the_capture(output: tuple[Any, list[int]], capfd: Any) -> None:
    stream = output[0].streams()[0]
    output[0].after_fork()
    print("from a", "child \ud800", file=stream)
    assert capfd.readouterr().out == "from a child \\ud800\n"
    print("half a line", end="", file=stream)
    assert capfd.readouterr().out == ""
    stream.flush()
    assert capfd.readouterr().out == "half a line"
    assert output[0].collect() == {}


def test_a_report_is_made_when_it_is_time_and_not_from_within_another() -> None:
    told: list[Any] = []
    output = capture.Output([], lambda take: told.append(take()))
    stdout, _ = output.streams()
    output.reported = float("inf")
    stdout.write("too early")
    assert told == []
    output.reported = 0.0
    stdout.write(", now")
    assert told == [[("stdout", "too early, now")]]
    with output.lock:  # a __del__ that prints while this thread reports
        stdout.write("later")
        stdout.flush()
    assert told == [[("stdout", "too early, now")]]
    stdout.flush()
    assert told[1:] == [[("stdout", "later")]]


# -- tracebacks --------------------------------------------------------------------------------------------------------


def failure(code: str, filename: str = "<cell 1>", **names: Any) -> dict[str, str]:
    """How the code's failure is described."""
    linecache.cache[filename] = (len(code), None, code.splitlines(True), filename)
    try:
        exec(compile(code, filename, "exec"), names)
    except BaseException as error:  # noqa: BLE001 - it is the result
        trace = error.__traceback__
        described: dict[str, str] = capture.describe(error.with_traceback(trace and trace.tb_next))
        return described
    raise AssertionError("it did not fail")


def test_frames_of_libraries_are_left_out() -> None:
    told = failure("import json\ndef parse(text):\n    return json.loads(text)\nparse('{')")
    assert told["type"] == "JSONDecodeError"
    assert told["text"].splitlines()[1:5:2] == [
        '  File "<cell 1>", line 4, in <module>',
        '  File "<cell 1>", line 3, in parse',
    ]
    assert "    return json.loads(text)" in told["text"]
    assert "decoder.py" not in told["text"]
    assert told["text"].endswith("Expecting property name enclosed in double quotes: line 1 column 2 (char 1)")


def test_frames_of_text_that_a_cell_executes_are_the_users_own() -> None:
    told = failure("exec('def f():\\n    1 / 0\\nf()')")["text"]
    assert 'File "<string>", line 2, in f' in told


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('b') from e", "direct cause"),
        ("try:\n    {}['a']\nexcept KeyError:\n    raise ValueError('b')", "During handling"),
    ],
)
def test_chains_are_shown(code: str, said: str) -> None:
    told = failure(code)["text"]
    assert told.index("KeyError: 'a'") < told.index(said) < told.index("ValueError: b")


def test_groups_are_shown_without_frames_of_libraries() -> None:
    code = """
import asyncio
async def fail(n): raise ValueError(n)
async def main():
    async with asyncio.TaskGroup() as group:
        for n in range(3): group.create_task(fail(n))
asyncio.run(main())
"""
    told = failure(code)
    assert told["type"] == "ExceptionGroup"
    assert told["text"].count("in fail") == 3
    assert "taskgroups.py" not in told["text"]


def test_notes_and_syntax_errors_are_shown() -> None:
    assert failure("e = ValueError(1)\ne.add_note('look here')\nraise e")["text"].endswith("look here")
    told = failure("x = 1\nexec('def f(:')")["text"]
    assert "SyntaxError: invalid syntax" in told
    assert "def f(:" in told


def test_endless_recursion_is_short() -> None:
    told = failure("def f():\n    return f()\nf()")
    assert told["type"] == "RecursionError"
    assert "Previous line repeated" in told["text"]
    assert len(told["text"]) < 1_000


def test_a_chain_that_ends_in_itself_ends() -> None:
    told = failure("a, b = ValueError('a'), ValueError('b')\na.__cause__, b.__cause__ = b, a\nraise a")
    assert told["text"].endswith("ValueError: a")


def test_a_huge_message_is_cut_in_the_middle() -> None:
    told = failure(f"raise ValueError('x' * {10 * KEEP})")["text"]
    assert len(told) < 2 * KEEP + 100
    assert "characters cut] …" in told
    assert told.startswith("Traceback")


def test_what_cannot_be_shown_is_named() -> None:
    odd = failure("error = SyntaxError('x', ('f', 'one', 'two', object()))\nraise error")
    assert odd["type"] == "SyntaxError"
    assert "SyntaxError" in odd["text"]
    assert failure("raise ValueError('\\udc00')")["text"].endswith("ValueError: \\udc00")


# -- names -------------------------------------------------------------------------------------------------------------

NAMES = ["a", "b", "c", "_d", "__e"]
statements = st.builds(
    lambda form, name, other: form.format(name, other),
    st.sampled_from(
        [
            "{0} = 1",
            "{0} = 'text'",
            "{0} = {1} = None",
            "def {0}(): pass",
            "class {0}: pass",
            "import os as {0}",
            "for {0} in [1]: pass",
            "[{0} := 2 for _ in range(1)]",
            "{0} = 1; del {0}",
            "globals().pop({0!r}, None)",
            "globals()[{0!r}] = 1.5",
            "exec('{0} = b\"\"')",
            "def set_():\n    global {0}\n    {0} = []\nset_()",
            "try:\n    {0}\nexcept NameError as {1}:\n    pass",
        ]
    ),
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
)


@given(st.lists(statements, max_size=12), st.sampled_from([0, 200]))
def test_the_changes_add_up_to_the_names(cells: list[str], others: int) -> None:
    namespace: dict[Any, Any] = {f"v{n}": n for n in range(others)}
    names, seen = listing.Names(namespace, {"set_"}), {}
    for cell in cells:
        compiled = compile(cell, "<cell>", "exec")
        exec(compiled, namespace)
        new, gone = names.changes(compiled, 0.0)
        seen = {name: kind for name, kind in {**seen, **new}.items() if name not in gone}
        assert seen == {
            name: type(value).__name__
            for name, value in namespace.items()
            if not name.startswith("__") and name != "set_"
        }


def test_a_name_that_a_called_function_changes_is_seen_when_all_are_listed() -> None:
    namespace: dict[str, Any] = {f"v{n}": n for n in range(200)}
    exec("def change():\n    global v1\n    v1 = 'text'", namespace)
    names = listing.Names(namespace, set())
    assert names.all()["v1"] == "int"
    compiled = compile("change()", "<cell>", "exec")
    exec(compiled, namespace)
    assert names.changes(compiled, 0.0) == ({}, [])  # a short cell that names nothing of it
    assert names.changes(compiled, 1.0) == ({"v1": "str"}, [])  # a long one has the time for a look at all
    assert names.changes(None, 0.0) == ({}, [])


def test_a_namespace_that_threads_change_meanwhile_is_listed_all_the_same() -> None:
    class Busy(dict[str, Any]):
        def __reversed__(self) -> Iterator[str]:
            raise RuntimeError("dictionary changed size during iteration")

    namespace = Busy({f"v{n}": n for n in range(200)})
    names = listing.Names(namespace, set())
    new, gone = names.changes(compile("pass", "<cell>", "exec"), 0.0)
    assert (len(new), gone) == (200, [])
