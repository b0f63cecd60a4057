"""An environment as a stranger writes one, from the docstrings of `base_env` alone: blocking code, no worker of ours.

It works through the whole engine: contexts, histories, sub-calls over the loopback handler, tools, limits, sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import io
import json
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rlm import RLM, Limits, ScriptedModel, SupportsPersistence
from rlm.environments import BaseEnv, NonIsolatedEnv, get_environment
from rlm.environments.lm_handler import call
from rlm.errors import (
    CancellationError,
    ConfigurationError,
    ContextError,
    ModelError,
    ReplError,
    SandboxError,
    SessionError,
    TimeoutExceededError,
)
from rlm.ports import CallFailed
from rlm.types import CellError, Messages, REPLResult
from tests.turns import by_task, cell, opening, submission, submit, task, told


class ExecREPL(NonIsolatedEnv):
    """Cells by `exec` in a dict of this process."""

    instances: list[ExecREPL]

    def __init__(self, persistent: bool = False, greeting: str = "") -> None:
        super().__init__(persistent)
        self.greeting = greeting
        self.namespace: dict[str, Any] = {}
        self.given: dict[str, Any] = {}
        self.contexts = self.histories = 0
        self.address: tuple[str, int] | None = None
        self.addresses: list[tuple[str, int]] = []
        self.cleaned = 0
        self.threads: set[str] = set()

    @property
    def locals(self) -> Mapping[str, Any]:
        return {name: value for name, value in self.namespace.items() if not name.startswith("_")}

    def setup(self) -> None:
        self.given = {
            "llm_query": lambda prompt, model=None: self.ask("llm_query", prompt, model),
            "llm_query_batched": lambda prompts, model=None: self.ask_all("llm_query_batched", prompts, model),
            "rlm_query": lambda prompt, model=None: self.ask("rlm_query", prompt, model),
            "rlm_query_batched": lambda prompts, model=None: self.ask_all("rlm_query_batched", prompts, model),
            "SHOW_VARS": lambda: "\n".join(f"{name}: {type(value).__name__}" for name, value in self.locals.items()),
        }
        self.namespace = {**self.given, "answer": {"content": "", "ready": False}, "greeting": self.greeting}

    def ask(self, name: str, prompt: Any, model: str | None) -> str:
        assert self.address is not None
        try:
            return str(call(self.address, name, [prompt], {"model": model} if model else {}))
        except CallFailed as failed:
            return f"Error: {failed}"

    def ask_all(self, name: str, prompts: list[Any], model: str | None) -> list[str]:
        assert self.address is not None
        items = call(self.address, name, [prompts], {"model": model} if model else {})
        return [item["value"] if "value" in item else f"Error: {item['error']}" for item in items]

    def add_tool(self, name: str, doc: str) -> None:
        def function(*args: Any, **kwargs: Any) -> Any:
            assert self.address is not None
            return call(self.address, name, args, kwargs)

        function.__doc__ = doc
        self.give(name, function)

    def give(self, name: str, value: Any) -> None:
        self.given[name] = self.namespace[name] = value

    def load_context(self, context_payload: Any) -> None:
        self.add_context(context_payload, 0)

    def execute_code(self, code: str) -> REPLResult:
        self.threads.add(threading.current_thread().name)
        error, out = None, io.StringIO()
        started = time.perf_counter()
        with contextlib.redirect_stdout(out):
            try:
                exec(compile(code, "<cell>", "exec"), self.namespace)
            except BaseException as raised:  # noqa: BLE001 - a failing cell is data
                text = "".join(traceback.format_exception(raised))
                error = CellError(type(raised).__name__, text)
        self.namespace.update(self.given)
        answer = self.namespace.get("answer", {})
        return REPLResult(
            stdout=out.getvalue(),
            stderr=error.text if error else "",
            error=error,
            final_answer=str(answer["content"]) if answer.get("ready") else None,
            locals=self.locals,
            execution_time=time.perf_counter() - started,
        )

    def cleanup(self) -> None:
        self.cleaned += 1

    def update_handler_address(self, address: tuple[str, int]) -> None:
        self.address = address
        self.addresses.append(address)

    def add_context(self, context_payload: Any, context_index: int | None = None) -> int:
        index = self.contexts if context_index is None else context_index
        self.contexts = max(self.contexts, index + 1)
        for name in [f"context_{index}", *(["context"] if index == 0 else [])]:
            self.give(name, context_payload)
        return index

    def get_context_count(self) -> int:
        return self.contexts

    def add_history(self, message_history: Sequence[Mapping[str, Any]], history_index: int | None = None) -> int:
        index = self.histories if history_index is None else history_index
        self.histories = max(self.histories, index + 1)
        for name in [f"history_{index}", *(["history"] if index == 0 else [])]:
            self.give(name, copy.deepcopy(list(message_history)))
        return index

    def get_history_count(self) -> int:
        return self.histories


@pytest.fixture
def built() -> list[ExecREPL]:
    """The environments that the engine built, of the class that remembers them."""
    return []


@pytest.fixture
def kind(built: list[ExecREPL]) -> type[ExecREPL]:
    class Remembered(ExecREPL):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            built.append(self)

    return Remembered


# -- the contract --------------------------------------------------------------------------------------------------


def test_the_five_methods_are_all_it_takes() -> None:
    assert isinstance(ExecREPL(), SupportsPersistence)
    assert isinstance(ExecREPL(), BaseEnv)


def test_it_goes_by_its_class_or_by_its_path(kind: type[ExecREPL]) -> None:
    model = ScriptedModel([submit("greeting + context")] * 2)
    for environment in (kind, "tests.integration.test_third_party_environment:ExecREPL"):
        rlm = RLM(model, environment=environment, environment_kwargs={"greeting": "hello, "})
        assert rlm.completion("world", "?").response == "hello, world"


def test_arguments_that_it_does_not_take_are_named() -> None:
    rlm = RLM(ScriptedModel([]), environment=ExecREPL, environment_kwargs={"colour": "red"})
    with pytest.raises(ConfigurationError, match="colour"):
        rlm.completion("a", "?")
    with pytest.raises(ConfigurationError, match=r"nowhere.*cannot be imported"):
        get_environment("nowhere.at:All")


# -- turns ---------------------------------------------------------------------------------------------------------


def test_many_turns_over_one_namespace(built: list[ExecREPL], kind: type[ExecREPL]) -> None:
    model = ScriptedModel(
        [
            cell("x = len(context)\nprint('looking')"),
            submit("x"),
            cell("context = None\n1 / 0"),
            submit("[x, context, context_1, history[-1]['content']]"),
        ]
    )
    with RLM(model, environment=kind, persistent=True) as rlm:
        assert rlm.completion("four", "First?").response == "4"
        assert rlm.completion([1], "Second?").response == "[4, 'four', [1], '4']"
        session = rlm.session()
        assert session.variables()["x"] == "int"
        assert session.get("x") == 4
        assert session.get("history_1")[-1]["content"] == "[4, 'four', [1], '4']"
        assert session.isolation == "unknown"
    assert told(model.requests[1]) == "[cell 1]\nlooking"
    assert "ZeroDivisionError" in told(model.requests[3])
    assert "This turn's input: `context_1`: list, 1 items." in opening(model.requests[2])
    assert "First?\n→ 4" in opening(model.requests[2])
    [environment] = built
    assert (environment.persistent, environment.cleaned) == (True, 1)
    assert environment.threads == {"rlm-Remembered"}
    assert len(environment.addresses) == 2


def test_a_single_completion_gets_an_environment_of_its_own(built: list[ExecREPL], kind: type[ExecREPL]) -> None:
    rlm = RLM(ScriptedModel([submit("context")] * 2), environment=kind)
    assert [rlm.completion(text, "?").response for text in "ab"] == ["a", "b"]
    assert [(environment.persistent, environment.cleaned) for environment in built] == [(False, 1)] * 2


def test_sub_calls_go_over_the_handler_with_its_token() -> None:
    code = "answers = [llm_query('a'), *llm_query_batched(['b', 'bad', 'c']), llm_query('d', model='nobody')]"

    def script(messages: Messages) -> str:
        if len(messages) > 1:
            return cell(code, submission("__import__('json').dumps(answers)"))
        if task(messages) == "bad":
            raise RuntimeError("no")
        return messages[0]["content"].upper()

    result = RLM(ScriptedModel(script), environment=ExecREPL).completion("x", "?")
    *answered, unknown = json.loads(result.response)
    assert answered == ["A", "B", "Error: RuntimeError: no", "C"]
    assert unknown.startswith("Error: model='nobody' is not one of this session's models")
    assert result.usage_summary.total_calls == 4


def test_children_run_in_environments_of_their_own(built: list[ExecREPL], kind: type[ExecREPL]) -> None:
    model = by_task({"Ask.": submit("rlm_query('Task: child')"), "child": submit("context + str('x' in globals())")})
    with RLM(model, environment=kind, limits=Limits(depth=2)) as rlm, rlm.session() as session:
        result = session.completion("a", "Ask.")
        assert session.usage() == result.usage_summary
    assert result.response == "Task: childFalse"
    assert [environment.cleaned for environment in built] == [1, 1]


def test_tools_are_called_over_the_handler_and_values_are_there() -> None:
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    async def fail() -> None:
        raise ValueError("not today")

    code = """
        try:
            fail()
        except Exception as error:
            said = str(error)
    """
    model = ScriptedModel([cell(code, submission("[add(1, b=2), add.__doc__, said, table]"))])
    tools: dict[str, Any] = {"add": add, "fail": fail, "table": {"k": (1, b"x")}}
    result = RLM(model, environment=ExecREPL, tools=tools).completion("a", "?")
    assert result.response == "[3, 'Adds.', 'ValueError: not today', {'k': (1, b'x')}]"


def test_tools_without_add_tool_are_refused_at_construction() -> None:
    class Simple(BaseEnv):
        def setup(self) -> None:
            """Nothing to do."""

        def load_context(self, context_payload: Any) -> None:
            """Not kept."""

        def execute_code(self, code: str) -> REPLResult:
            return REPLResult(stdout=code)

    with pytest.raises(ConfigurationError, match=r"tools=\['look'\]: Simple has no add_tool\(name, doc\)"):
        RLM(ScriptedModel([]), environment=Simple, tools={"look": lambda: 1})


def test_an_address_without_its_token_is_answered_nothing() -> None:
    probed: list[Any] = []

    def probe(host: str, port: int) -> None:
        for token in ("", "guessed"):
            frame = {"type": "call", "id": 1, "token": token, "name": "llm_query", "args": ["x"], "kwargs": {}}
            with socket.create_connection((host, port)) as connection, connection.makefile("rb") as replies:
                connection.sendall(json.dumps(frame).encode() + b"\n")
                probed.append(replies.readline())
        with pytest.raises(CallFailed, match="closed the connection"):
            call((host, port), "llm_query", ["x"])

    class Probing(ExecREPL):
        def execute_code(self, code: str) -> REPLResult:
            if "answer[" in code:
                assert self.address is not None
                probe(*self.address)
            return super().execute_code(code)

    model = ScriptedModel([submit("1")])
    result = RLM(model, environment=Probing).completion("a", "?")
    assert result.usage_summary.total_calls == 1
    assert probed == [b"", b""]


# -- persistence is looked at again before each reuse --------------------------------------------------------------


def test_an_environment_that_loses_a_method_between_turns_is_not_trusted(
    built: list[ExecREPL], kind: type[ExecREPL]
) -> None:
    model = ScriptedModel([submit("1"), submit("2")])
    with RLM(model, environment=kind, persistent=True) as rlm:
        rlm.completion("a", "?")
        built[0].add_history = None  # type: ignore[method-assign,assignment]
        with pytest.raises(ValueError, match=r"^persistent=True is not supported for environment") as caught:
            rlm.completion("b", "?")
        assert "Remembered" in str(caught.value)
        assert "lacks add_history." in str(caught.value)
        assert len(model.requests) == 1
        del built[0].add_history
        assert rlm.completion("b", "?").response == "2"


def test_a_class_that_loses_a_method_between_turns_is_not_trusted(kind: type[ExecREPL]) -> None:
    model = ScriptedModel([submit("1")])
    with RLM(model, environment=kind, persistent=True) as rlm:
        rlm.completion("a", "?")
        kind.get_context_count = None  # type: ignore[assignment]
        with pytest.raises(ValueError, match=r"^persistent=True is not supported for environment .*get_context_count"):
            rlm.completion("b", "?")


# -- what cannot be stopped, and what fails ------------------------------------------------------------------------


@pytest.fixture
def busy() -> str:
    """A cell that ends long after the test has: nothing outside of its thread can stop it."""
    return "import time\nbegun()\nfor _ in range(100): time.sleep(0.05)"


def test_cancelling_ends_the_environment_and_the_session_says_that_it_is_lost(
    built: list[ExecREPL], kind: type[ExecREPL], busy: str
) -> None:
    async def go() -> list[str]:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()
        tools = {"begun": lambda: loop.call_soon_threadsafe(begun.set) and None}
        model = ScriptedModel([cell(busy)])
        async with RLM(model, environment=kind, tools=tools) as rlm, rlm.session() as session:
            turn = asyncio.create_task(session.acompletion("a", "Busy?"))
            await begun.wait()
            turn.cancel()
            with pytest.raises(asyncio.CancelledError):
                await turn
            said = []
            for use in (session.aask("?"), session.acompletion("b", "?"), session.arun("1"), session.aadd_context("c")):
                with pytest.raises(SessionError) as caught:
                    await use
                said.append(str(caught.value))
            assert len(model.requests) == 1
            ends = [event.kind for event in session.log if event.kind in ("stopped", "failed")]
            assert ends == ["stopped", "failed", "failed"]  # those asked afterwards began too
            return said

    said = asyncio.run(go())
    assert set(said) == {
        "this session is lost: a cell of it was cancelled, which this environment cannot do but by ending"
    }
    assert built[0].cleaned == 1


def test_a_limit_of_seconds_and_close_do_the_same(built: list[ExecREPL], kind: type[ExecREPL], busy: str) -> None:
    model = ScriptedModel([cell(busy)] * 2)
    rlm = RLM(model, environment=kind, tools={"begun": lambda: None}, limits=Limits(seconds=0.3))
    session = rlm.session()
    with pytest.raises(TimeoutExceededError) as caught:
        session.completion("a", "Busy?")
    assert caught.value.usage.total_calls == 1
    with pytest.raises(SessionError, match="this session is lost"):
        session.ask("?")
    rlm.close()
    assert built[0].cleaned == 1

    begun = threading.Event()
    rlm = RLM(model, environment=kind, tools={"begun": begun.set})
    closing = threading.Thread(target=lambda: begun.wait() and rlm.close())
    closing.start()
    with pytest.raises(CancellationError, match="closed during this turn"):
        rlm.session().completion("a", "Busy?")
    closing.join()


def test_an_environment_that_cannot_be_set_up_is_told_before_anything_is_spent() -> None:
    class Broken(ExecREPL):
        def setup(self) -> None:
            raise SandboxError("no room")

    class Buggy(ExecREPL):
        def setup(self) -> None:
            raise ZeroDivisionError("oops")

    model = ScriptedModel([])
    with RLM(model, environment=Broken) as rlm, rlm.session() as session:
        with pytest.raises(SandboxError, match=r"^no room$"):
            session.ask("?")
        with pytest.raises(SessionError, match="it could not be set up: no room"):
            session.ask("?")
    with RLM(model, environment=Buggy) as rlm, pytest.raises(ReplError, match="Buggy failed: ZeroDivisionError: oops"):
        rlm.completion("a", "?")
    assert model.requests == []


def test_an_environment_that_breaks_its_promise_ends_the_turn_and_not_the_engine() -> None:
    class Raising(ExecREPL):
        def execute_code(self, code: str) -> REPLResult:
            if "boom" in code:
                raise StopIteration("out of the cell")
            return super().execute_code(code)

        def add_history(self, message_history: Sequence[Mapping[str, Any]], history_index: int | None = None) -> int:
            if self.histories == 1:
                raise OSError("disk full")
            return super().add_history(message_history, history_index)

    model = ScriptedModel([cell("boom"), submit("1"), submit("2")])
    with RLM(model, environment=Raising) as rlm, rlm.session() as session:
        with pytest.raises(ReplError, match="Raising failed: StopIteration: out of the cell"):
            session.ask("First?")
        assert session.ask("Second?").response == "1"
        session.ask("Third?")
    said = opening(model.requests[2])
    assert "The messages of turn 1 could not be kept: Raising failed: OSError: disk full" in said


def test_an_environment_without_locals_lists_names_and_fetches_no_values() -> None:
    class Closed(ExecREPL):
        locals = property(lambda self: None)  # type: ignore[assignment]

        def execute_code(self, code: str) -> REPLResult:
            exec(code, self.namespace)
            return REPLResult(locals={"x": "int"})

    with RLM(ScriptedModel([]), environment=Closed) as rlm, rlm.session() as session:
        session.run("x = 1")
        assert session.variables() == {"x": "int"}
        with pytest.raises(ReplError, match="Closed has no mapping `locals`"):
            session.get("x")


def test_one_whose_constructor_blocks_does_not_stop_other_sessions() -> None:
    begun, release = threading.Event(), threading.Event()

    class Slow(ExecREPL):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            begun.set()
            release.wait()

    with (
        RLM(ScriptedModel([submit("'slow'")]), environment=Slow, persistent=True) as slow,
        RLM(ScriptedModel([submit("'quick'")])) as quick,
        ThreadPoolExecutor(1) as threads,
    ):
        waiting = threads.submit(slow.completion, "a", "?")
        begun.wait()
        assert quick.completion("a", "?").response == "quick"
        release.set()
        assert waiting.result().response == "slow"


def test_one_that_is_cancelled_while_it_is_built_is_cleaned_up_when_it_is() -> None:
    cleaned, begun, release = threading.Event(), threading.Event(), threading.Event()

    class Slow(ExecREPL):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            begun.set()
            release.wait()

        def cleanup(self) -> None:
            cleaned.set()

    async def go() -> None:
        async with RLM(ScriptedModel([]), environment=Slow) as rlm:
            turn = asyncio.create_task(rlm.acompletion("a", "?"))
            await asyncio.to_thread(begun.wait)
            turn.cancel()
            with pytest.raises(asyncio.CancelledError):
                await turn

    asyncio.run(go())
    release.set()
    cleaned.wait()


def test_one_that_could_not_be_set_up_is_cleaned_up(built: list[ExecREPL], kind: type[ExecREPL]) -> None:
    class Broken(kind):  # type: ignore[misc,valid-type]
        def setup(self) -> None:
            raise SandboxError("no room")

    with pytest.raises(SandboxError):
        RLM(ScriptedModel([]), environment=Broken).completion("a", "?")
    assert built[0].cleaned == 1


def test_values_that_cannot_be_brought_in_are_named() -> None:
    class Odd:
        def __reduce__(self) -> Any:
            return (int, ("no number",))

    for value, said in ((threading.Lock(), "cannot be pickled"), (Odd(), "cannot be brought into the REPL:\n")):
        rlm = RLM(ScriptedModel([]), environment=ExecREPL, tools={"value": value})
        with pytest.raises(ContextError, match=f"tool 'value' {said}"):
            rlm.completion("a", "?")


def test_a_call_that_no_session_has_is_refused_by_name() -> None:
    code = "from rlm.environments.lm_handler import call\ncall(address(), 'rm', ['x'])"

    class Calling(ExecREPL):
        def setup(self) -> None:
            super().setup()
            self.give("address", lambda: self.address)

    model = ScriptedModel([cell(code), submit("1")])
    RLM(model, environment=Calling, tools={"look": lambda: 1}).completion("a", "?")
    assert "rm() is not a function of this session; there are llm_query, rlm_query, look" in told(model.requests[1])


def test_an_input_that_nothing_can_compare_is_a_new_context_at_a_retry() -> None:
    rows = (row for row in [1, 2])
    model = ScriptedModel([])
    with RLM(model, environment=ExecREPL) as rlm, rlm.session() as session:
        for _ in range(2):
            with pytest.raises(ModelError):
                session.completion(rows, "?")
        assert [event.kind for event in session.log if event.kind == "context"] == ["context"] * 2


def test_a_turn_that_is_cancelled_when_it_has_its_answer_is_still_answered() -> None:
    async def go() -> list[str]:
        loop, writing, write = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        class Slow(ExecREPL):
            def add_history(
                self, message_history: Sequence[Mapping[str, Any]], history_index: int | None = None
            ) -> int:
                loop.call_soon_threadsafe(writing.set)
                write.wait()
                return super().add_history(message_history, history_index)

        async with RLM(ScriptedModel([submit("1"), submit("2")]), environment=Slow) as rlm, rlm.session() as session:
            turn = asyncio.create_task(session.aask("?", key="k"))
            await writing.wait()
            turn.cancel()
            loop.call_later(0.05, write.set)
            with pytest.raises(asyncio.CancelledError):
                await turn
            recorded = await session.aask("?", key="k")
            return [session.log[-1].kind, recorded.response, (await session.aask("Next?")).response]

    assert asyncio.run(go()) == ["answered", "1", "2"]


def test_a_users_names_and_cells_work_in_it_too() -> None:
    model = ScriptedModel([submit("contract + context_1")])
    with RLM(model, environment=ExecREPL) as rlm, rlm.session() as session:
        session.add_context("abc", name="contract")
        session.add_context("def")
        assert session.run("print(contract)").stdout == "abc\n"
        with pytest.raises(KeyError, match="nothing"):
            session.get("nothing")
        assert session.ask("?").response == "abcdef"


def test_the_process_keeps_its_standard_output() -> None:
    before = sys.stdout
    RLM(ScriptedModel([cell("print('x')"), submit("1")]), environment=ExecREPL).completion("a", "?")
    assert sys.stdout is before


# -- durable sessions ----------------------------------------------------------------------------------------------


def test_a_named_session_of_it_is_made_again_by_running_its_cells() -> None:
    replies = {
        "One?": cell("rows = [len(context), llm_query('q')]; alias = rows", submission("'one'")),
        "Two?": submit("f'{rows} {alias is rows} {context_1} {len(history)} {doc}'"),
    }
    model = ScriptedModel(lambda messages: "sub" if len(messages) == 1 else replies[task(messages)])
    with RLM(model, environment=ExecREPL) as rlm, rlm.session("s") as session:
        session.completion("text", "One?")
        session.add_context({"plain": {1, (2, b"3")}}, name="doc")
        session.run("rows.append(doc)")
    asked = len(model.requests)
    with RLM(model, environment=ExecREPL) as rlm, rlm.session("s") as session:
        plain = {"plain": {1, (2, b"3")}}
        assert session.ask("Two?").response == f"{[4, 'sub', plain]} True {plain} 4 {plain}"
        assert session.restored is not None
        assert (session.restored.rerun, session.restored.diverged, session.restored.lost) == (3, 0, {})
    assert len(model.requests) == asked + 1


def test_an_input_that_only_a_worker_of_ours_could_load_is_lost_there_by_name() -> None:
    model = by_task({"?": submit("str(context)")})
    with RLM(model, environment=ExecREPL) as rlm, rlm.session("s") as session:
        session.add_context(object())
    with RLM(model, environment=ExecREPL) as rlm, rlm.session("s") as session:
        assert session.ask("?").response == "None"
        assert session.restored is not None
        assert list(session.restored.lost) == ["context_0"]
    assert "could not be brought back: context_0 (object" in opening(model.requests[0])
