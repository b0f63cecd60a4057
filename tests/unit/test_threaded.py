"""A stranger's blocking environment in a thread of its own. It is written from the docstrings of base_env.py alone."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import io
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from rlm.environments.base_env import BaseEnv, SupportsPersistence
from rlm.environments.lm_handler import call
from rlm.environments.threaded import Threaded
from rlm.errors import ConfigurationError, ContextError, ReplError, SandboxError, SessionError
from rlm.types import CellError, REPLResult, Tool

PATIENCE = 30.0


class Exec(BaseEnv):
    """Cells by `exec`, in this process. Nothing persists."""

    cleaned = 0

    def setup(self) -> None:
        self.threads = {threading.get_ident()}
        self.locals: dict[str, Any] = {"answer": {"content": "", "ready": False}}
        self.put_back: dict[str, Any] = {}

    def give(self, name: str, value: Any) -> None:
        self.put_back[name] = self.locals[name] = value

    def load_context(self, context_payload: Any) -> None:
        self.give("context", context_payload)
        self.give("context_0", context_payload)

    def execute_code(self, code: str) -> REPLResult:
        self.threads.add(threading.get_ident())
        error, output = None, io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                exec(compile(code, "<cell>", "exec"), self.locals)
        except Exception as raised:  # noqa: BLE001 - a failing cell is data
            error = CellError(type(raised).__name__, traceback.format_exc())
        self.locals.update(self.put_back)
        answer = self.locals["answer"]
        final = str(answer["content"]) if answer["ready"] else None
        visible = {name: type(value).__name__ for name, value in self.locals.items() if not name.startswith("_")}
        return REPLResult(output.getvalue(), error.text if error else "", error, final, visible)

    def cleanup(self) -> None:
        self.cleaned += 1


class Persistent(Exec):
    """The same with the five methods, and tools."""

    def setup(self) -> None:
        super().setup()
        self.counts = {"context": 0, "history": 0}
        self.give("llm_query", lambda prompt, model=None: call(self.address, "llm_query", [prompt, model]))

    def update_handler_address(self, address: tuple[str, int]) -> None:
        self.address = address

    def add_tool(self, name: str, doc: str) -> None:
        self.give(name, lambda *args, **kwargs: call(self.address, name, args, kwargs))
        self.locals[name].__doc__ = doc

    def _add(self, kind: str, value: Any, index: int | None) -> int:
        number = self.counts[kind] if index is None else index
        self.counts[kind] = max(self.counts[kind], number + 1)
        self.give(f"{kind}_{number}", value)
        if number == 0:
            self.give(kind, value)
        return number

    def add_context(self, context_payload: Any, context_index: int | None = None) -> int:
        return self._add("context", context_payload, context_index)

    def get_context_count(self) -> int:
        return self.counts["context"]

    def add_history(self, message_history: Sequence[Mapping[str, Any]], history_index: int | None = None) -> int:
        return self._add("history", copy.deepcopy(list(message_history)), history_index)

    def get_history_count(self) -> int:
        return self.counts["history"]


def over(environment: BaseEnv, script: Callable[[Threaded], Awaitable[Any]], tools: Sequence[Tool] = ()) -> Any:
    """What the script returns that is given the environment as the engine uses it."""

    async def main() -> Any:
        threaded = Threaded(type(environment), lambda: environment, tools)
        try:
            async with asyncio.timeout(PATIENCE):
                return await script(threaded)
        finally:
            await threaded.close()
            await threaded.close()

    return asyncio.run(main())


async def echo(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return [name, list(args), dict(kwargs)]


def test_cells_contexts_and_histories() -> None:
    environment = Persistent(persistent=True)
    assert isinstance(environment, SupportsPersistence)

    async def script(threaded: Threaded) -> None:
        await threaded.start()
        assert await threaded.put_context("first") == 0
        assert await threaded.put_context([2], name="numbers") == 1
        messages = [{"role": "user", "content": ["hi"]}]
        assert await threaded.put_history(messages) == 0
        messages[0]["content"] = "changed"
        assert (threaded.contexts, threaded.histories, threaded.take_notes()) == (2, 1, [])
        result = await threaded.run("x = context + str(numbers)\nprint(x)\ncontext = None")
        assert (result.stdout, result.locals["x"]) == ("first[2]\n", "str")
        assert (await threaded.run("print(context, history)")).stdout == "first [{'role': 'user', 'content': ['hi']}]\n"
        assert (await threaded.variables())["x"] == "str"
        assert await threaded.get("x") == "first[2]"
        with pytest.raises(KeyError, match="nothing"):
            await threaded.get("nothing")
        failed = await threaded.run("y = 1\n1 / 0")
        assert failed.error is not None
        assert (failed.error.type, failed.locals["y"]) == ("ZeroDivisionError", "int")
        assert (await threaded.run("answer.update(content='yes', ready=True)")).final_answer == "yes"
        assert (await threaded.run("print(answer)", fresh=True)).stdout == "{'content': '', 'ready': False}\n"

    over(environment, script)
    assert environment.cleaned == 1
    assert len(environment.threads) == 1
    assert threading.get_ident() not in environment.threads


def test_one_that_does_not_persist_has_one_context_and_no_histories() -> None:
    async def script(threaded: Threaded) -> None:
        assert await threaded.put_context({"a": 1}) == 0
        assert await threaded.put_history([{"role": "user", "content": "hi"}]) == 0
        assert (threaded.contexts, threaded.histories) == (1, 0)
        assert (
            await threaded.run("print(context, context_0, 'history' in globals())")
        ).stdout == f"{ {'a': 1} } { {'a': 1} } False\n"

    over(Exec(), script)


def test_calls_and_tools_go_over_the_handler() -> None:
    async def script(threaded: Threaded) -> None:
        code = "print(llm_query('a'), lookup(1, key=b'2'), lookup.__doc__, table)"
        result = await threaded.run(code, echo)
        assert result.stdout == "['llm_query', ['a', None], {}] ['lookup', [1], {'key': b'2'}] Finds. {'k': (1,)}\n"
        nobody = await threaded.run("llm_query('b')")
        assert nobody.error is not None
        assert nobody.error.type == "CallFailed"

    over(Persistent(), script, [Tool("lookup", len, "Finds."), Tool("table", {"k": (1,)})])


def test_tools_need_a_method_and_values_a_pickle() -> None:
    with pytest.raises(ConfigurationError, match=r"tools=\['lookup'\]: Exec has no add_tool"):
        Threaded(Exec, Exec, [Tool("lookup", len)])

    async def script(threaded: Threaded) -> None:
        with pytest.raises(ContextError, match="tool 'lock' cannot be pickled"):
            await threaded.start()

    over(Persistent(), script, [Tool("lock", threading.Lock())])


def test_a_thread_that_outlives_its_cell_gets_an_error() -> None:
    code = """
import threading
go, told = threading.Event(), []
def ask():
    go.wait()
    try:
        llm_query("late")
    except Exception as error:
        told.append(error.reason)
thread = threading.Thread(target=ask)
thread.start()
"""

    async def script(threaded: Threaded) -> None:
        await threaded.run(code, echo)
        environment.locals["go"].set()
        await asyncio.to_thread(environment.locals["thread"].join)
        assert environment.locals["told"] == ["late"]

    environment = Persistent()
    over(environment, script)


def test_cancelling_abandons_the_thread_and_loses_the_session() -> None:
    release = threading.Event()

    class Slow(Persistent):
        def execute_code(self, code: str) -> REPLResult:
            begun.set()
            release.wait(PATIENCE)
            return super().execute_code(code)

        def cleanup(self) -> None:
            cleaned.set()

    begun, cleaned = threading.Event(), threading.Event()

    async def script(threaded: Threaded) -> None:
        await threaded.start()
        cell = asyncio.create_task(threaded.run("x = 1", echo))
        await asyncio.to_thread(begun.wait)
        cell.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cell
        for use in (threaded.run("1"), threaded.put_context("a"), threaded.get("x")):
            with pytest.raises(SessionError, match="this session is lost"):
                await use

    over(Slow(), script)
    release.set()
    assert cleaned.wait(PATIENCE)


def test_an_environment_that_cannot_be_set_up_stays_so() -> None:
    class Broken(Persistent):
        def setup(self) -> None:
            raise SandboxError("no such image")

    class Odd(Persistent):
        def setup(self) -> None:
            raise KeyError("image")

    async def script(threaded: Threaded) -> None:
        with pytest.raises((SandboxError, ReplError), match=r"no such image|Odd failed: KeyError: 'image'"):
            await threaded.start()
        with pytest.raises(SessionError, match="could not be set up"):
            await threaded.run("1")

    for environment in (Broken(), Odd()):
        over(environment, script)


def test_what_an_environment_raises_of_its_own_is_told() -> None:
    class Failing(Persistent):
        def execute_code(self, code: str) -> REPLResult:
            raise OSError("connection lost")

    async def script(threaded: Threaded) -> None:
        with pytest.raises(ReplError, match="Failing failed: OSError: connection lost"):
            await threaded.run("1")

    over(Failing(), script)


def test_without_a_mapping_of_locals_no_value_can_be_fetched() -> None:
    class Closed(BaseEnv):
        def setup(self) -> None:
            """Nothing to do."""

        def load_context(self, context_payload: Any) -> None:
            """Not kept."""

        def execute_code(self, code: str) -> REPLResult:
            return REPLResult(stdout=code)

    async def script(threaded: Threaded) -> None:
        assert (await threaded.run("1")).stdout == "1"
        with pytest.raises(ReplError, match="Closed has no mapping `locals`"):
            await threaded.get("x")

    over(Closed(), script)


def test_closing_one_that_never_started_is_fine() -> None:
    environment = Exec()

    async def script(threaded: Threaded) -> None:
        assert (threaded.contexts, await threaded.variables(), threaded.isolation) == (0, {}, "unknown")

    over(environment, script)
    assert environment.cleaned == 0
