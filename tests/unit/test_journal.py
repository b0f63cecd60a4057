"""What is on record is never asked again, whatever a crash left of it and in whatever order calls arrive."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.engine.journal import Journal, Priced, Record
from rlm.engine.loop import Outcome, Transcript, turn
from rlm.errors import BudgetExceededError
from rlm.ports import Answer, CallFailed
from rlm.types import (
    Called,
    CellError,
    Draft,
    Event,
    Message,
    Messages,
    Ran,
    Replied,
    REPLResult,
    Reply,
    Usage,
    UsageSummary,
)

Script = Callable[[Answer], Awaitable[REPLResult]]


class Scripted:
    """A host whose cells are functions by the name that their code is, and whose calls echo their first argument.

    A prompt that begins with "fail" fails, "limit" hits a limit, and "wait" is never answered.
    """

    def __init__(self, cells: Mapping[str, Script] | None = None) -> None:
        self.cells = cells or {}
        self.asked: list[str] = []
        self.ran: list[str] = []
        self.called: list[str] = []
        self.cancelled = 0

    async def ask(self, messages: Messages, purpose: str = "iteration") -> Reply:
        self.asked.append(purpose)
        return Reply(f"reply {len(self.asked)}", "scripted")

    async def run(self, code: str, answer: Answer | None = None) -> REPLResult:
        assert answer is not None
        self.ran.append(code)
        if code in self.cells:
            return await self.cells[code](answer)
        return REPLResult(stdout=code)

    async def call(self, key: str, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self.called.append(key)
        prompt = str(args[0]) if args else ""
        if prompt.startswith("fail"):
            raise CallFailed(f"no {prompt}", "refused")
        if prompt.startswith("limit"):
            raise BudgetExceededError("gone")
        if prompt.startswith("wait"):
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled += 1
        return Priced(f"{name} {prompt}", UsageSummary({"m": Usage(1, 2, 3)}))


class Log:
    """Keeps events, and makes journals over a record of others."""

    def __init__(self, host: Scripted, past: Sequence[Event] = (), **settings: Any) -> None:
        self.events: list[Event] = []
        self.live: list[Event] = []
        self.host = host
        self.journal = Journal(host, "t0", Record(past), self.append, tell=self.live.append, **settings)

    async def append(self, event: Event) -> None:
        self.events.append(event)

    @property
    def keys(self) -> list[str]:
        return [event.at for event in self.events if isinstance(event, Called)]


def calling(*calls: tuple[str, list[Any], dict[str, Any]]) -> dict[str, Script]:
    """A cell `c` that makes these calls one after another and prints what came of them."""

    async def cell(answer: Answer) -> REPLResult:
        values = []
        for name, args, kwargs in calls:
            try:
                values.append(await answer(name, args, kwargs))
            except CallFailed as failed:
                values.append([str(failed), failed.reason])
        return REPLResult(stdout=json.dumps(values))

    return {"c": cell}


def printed(log: Log) -> Any:
    return json.loads(asyncio.run(log.journal.run("c")).stdout)


# -- places --------------------------------------------------------------------------------------------------------


def test_places_count_asks_cells_and_equal_calls() -> None:
    log = Log(Scripted(calling(*[("llm_query", [prompt], {}) for prompt in ("a", "b", "a")])))

    async def scenario() -> None:
        await log.journal.ask([])
        await log.journal.run("x")
        await log.journal.run("c")
        await log.journal.ask([], "final")

    asyncio.run(scenario())
    assert [event.at for event in log.events if not isinstance(event, Called)] == ["t0/a0", "t0/c0", "t0/c1", "t0/a1"]
    a, b, again = log.keys
    assert a.startswith("t0/c1/llm_query:")
    assert len(a) == len("t0/c1/llm_query:#0") + 16
    assert (a[-2:], again) == ("#0", a[:-1] + "1")
    assert b[:-2] != a[:-2]
    assert log.host.called == log.keys


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("f", ["a"], {}), ("g", ["a"], {})),
        (("f", ["a"], {}), ("f", [["a"]], {})),
        (("f", ["a"], {}), ("f", [], {"a": "a"})),
        (("f", [1], {}), ("f", ["1"], {})),
        (("f", ["\ud83d\ude00"], {}), ("f", ["😀"], {})),
        (("f", [None], {}), ("f", [float("nan")], {})),
        (("f", ["a"], {}), ("f", ["a"], {"model": "m"})),
        (("f", ["text{}\na"], {}), ("f", ["a"], {})),
        (("f", ['[["a"],{}]'], {}), ("f", ["a"], {})),
    ],
)
def test_different_calls_have_different_places(one: Any, other: Any) -> None:
    log = Log(Scripted(calling(one, other)))
    printed(log)
    assert len({key.partition("#")[0] for key in log.keys}) == 2


def test_the_order_in_which_keywords_arrive_makes_no_difference() -> None:
    log = Log(Scripted(calling(("f", [], {"a": 1, "b": {"x": 1, "y": 2}}), ("f", [], {"b": {"y": 2, "x": 1}, "a": 1}))))
    printed(log)
    assert [key[-2:] for key in log.keys] == ["#0", "#1"]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=8,
)


@given(st.lists(_json, max_size=3), st.dictionaries(st.text(max_size=5), _json, max_size=3))
def test_any_json_is_recorded_and_found_again(args: list[Any], kwargs: dict[str, Any]) -> None:
    async def once(past: Sequence[Event]) -> Log:
        log = Log(Scripted(calling(("tool", args, kwargs))), past)
        await log.journal.run("c")
        return log

    first = asyncio.run(once([]))
    again = asyncio.run(once([event for event in first.events if isinstance(event, Called)]))
    assert again.host.called == []
    assert [event.at for event in again.events] == ["t0/c0"]


# -- what is recorded ----------------------------------------------------------------------------------------------


def test_calls_are_recorded_with_what_they_asked_gave_cost_and_took() -> None:
    moments = iter(range(100))
    log = Log(
        Scripted(calling(("llm_query", ["a" * 3_000], {}), ("tool", [{"x": 1}], {}), ("llm_query", ["fail"], {}))),
        clock=lambda: float(next(moments)),
    )
    assert printed(log) == ["llm_query " + "a" * 3_000, "tool {'x': 1}", ["no fail", "refused"]]
    text, tool, failed = (event for event in log.events if isinstance(event, Called))
    assert (text.name, text.prompt, text.seconds) == ("llm_query", "a" * 2_000, 1.0)
    assert text.usage_summary == UsageSummary({"m": Usage(1, 2, 3)})
    assert (tool.prompt, tool.value, tool.error) == ('[{"x":1}]', "tool {'x': 1}", None)
    assert (failed.value, failed.error, failed.reason, failed.usage_summary.total) == (
        None,
        "no fail",
        "refused",
        Usage(),
    )


def test_a_failed_call_is_recorded_with_what_it_cost() -> None:
    used = UsageSummary({"m": Usage(2, 30, 4)})

    async def failing(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        failed = CallFailed("too late", "limit")
        failed.usage_summary = used
        raise failed

    log = Log(Scripted(calling(("rlm_query", ["a"], {}))))
    result = asyncio.run(log.journal.run("c", failing))
    [called] = [event for event in log.events if isinstance(event, Called)]
    assert (called.error, called.reason, called.usage_summary) == ("too late", "limit", used)
    assert [record.usage_summary for record in result.rlm_calls] == [used]


class Watched(list[int]):
    """A list that says whether somebody has written all of it out."""

    written = 0

    def __repr__(self) -> str:
        Watched.written += 1
        return super().__repr__()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"x": [1, (2.5, None)]}, "{'x': [1, (2.5, None)]}"),
        ("a" * 100_000, "a" * 100_000),
        ([Watched(range(50_000))], "<list of length 1, too large to be shown>"),
        (Watched(range(50_000)), "<Watched of length 50,000, too large to be shown>"),
        ({"a": b"x" * 20_000, "b": 1}, "<dict of length 2, too large to be shown>"),
        (10**4_300, "<int, too large to be shown>"),
    ],
    ids=["small", "text", "inside", "list", "bytes", "number"],
)
def test_a_large_value_of_a_tool_is_recorded_whole_and_not_written_out(value: Any, shown: str) -> None:
    async def tool(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return value

    async def cell(answer: Answer) -> REPLResult:
        assert await answer("tool", [], {}) is value
        return REPLResult()

    log = Log(Scripted({"c": cell}))
    [record] = asyncio.run(log.journal.run("c", tool)).rlm_calls
    [called] = [event for event in log.events if isinstance(event, Called)]
    assert called.value is value
    assert (record.response, Watched.written) == (shown, 0)


def test_a_prompt_is_placed_without_writing_it_as_json() -> None:
    class Prompt(str):
        """A text whose characters nobody but the hash has looked at."""

        def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
            encoded.append(encoding)
            return super().encode(encoding, errors)

    encoded: list[str] = []
    log = Log(Scripted(calling(("f", [Prompt("a")], {}), ("f", ["a"], {}))))
    printed(log)
    assert (encoded, [key[-2:] for key in log.keys]) == (["utf-8"], ["#0", "#1"])


def test_what_has_begun_is_told_and_not_recorded() -> None:
    log = Log(Scripted(calling(("llm_query", ["a"], {}))))
    asyncio.run(log.journal.ask([], "final"))
    printed(log)
    assert [event.kind for event in log.live] == ["asking", "running", "calling"]
    assert [event.kind for event in log.events] == ["replied", "called", "ran"]
    replayed = Log(log.host, log.events, restored=1)
    asyncio.run(replayed.journal.ask([], "final"))
    printed(replayed)
    assert replayed.live == []


def test_nothing_is_handed_on_before_it_is_durable() -> None:
    async def scenario() -> None:
        durable, reached = asyncio.Event(), asyncio.Event()

        async def append(event: Event) -> None:
            reached.set()
            await durable.wait()

        journal = Journal(Scripted(), "t0", Record(), append)
        asked = asyncio.create_task(journal.ask([]))
        await reached.wait()
        assert not asked.done()
        durable.set()
        await asked

    asyncio.run(scenario())


def test_what_cannot_be_recorded_is_not_handed_on() -> None:
    async def append(event: Event) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        asyncio.run(Journal(Scripted(), "t0", Record(), append).ask([]))


def test_cells_may_be_answered_by_someone_else_and_are_recorded_all_the_same() -> None:
    async def other(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return f"other {args[0]}"

    log = Log(Scripted(calling(("llm_query", ["a"], {}))))
    assert asyncio.run(log.journal.run("c", other)).stdout == '["other a"]'
    assert log.host.called == []
    assert len(log.keys) == 1


# -- batches -------------------------------------------------------------------------------------------------------


def test_a_batch_is_single_calls_in_order_of_which_one_may_fail_alone() -> None:
    log = Log(Scripted(calling(("llm_query_batched", [["a", "fail", "a"]], {"model": "small"}))))
    assert printed(log) == [
        [{"value": "llm_query a"}, {"error": "no fail", "reason": "refused"}, {"value": "llm_query a"}]
    ]
    assert {key.split("/")[-1].split(":")[0] for key in log.keys} == {"llm_query"}
    assert len(set(log.keys)) == 3


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ([["p"], "small"], {}),
        ([["p"]], {"model": "small"}),
        ([], {"prompts": ["p"], "model": "small"}),
    ],
)
def test_a_batch_and_a_single_call_that_ask_the_same_have_the_same_digest(args: list[Any], kwargs: Any) -> None:
    single = ("rlm_query", ["p"], {"model": "small"})
    log = Log(Scripted(calling(("rlm_query_batched", args, kwargs), single)))
    printed(log)
    first, second = log.keys
    assert (first[:-1], second[-1]) == (second[:-1], "1")


def test_a_batch_without_a_model_asks_the_default_one() -> None:
    log = Log(Scripted(calling(("llm_query_batched", [["p"], None], {}), ("llm_query", ["p"], {}))))
    printed(log)
    assert [key[-2:] for key in log.keys] == ["#0", "#1"]


@pytest.mark.parametrize("args", [[], ["one text"], [None], [{"a": 1}]])
def test_a_batch_takes_a_list(args: list[Any]) -> None:
    log = Log(Scripted(calling(("llm_query_batched", args, {}))))
    [[message, reason]] = printed(log)
    assert "takes a list of prompts" in message
    assert reason == "value"


def test_an_empty_batch_is_empty() -> None:
    assert printed(Log(Scripted(calling(("llm_query_batched", [[]], {}))))) == [[]]


def test_a_batch_after_a_crash_asks_only_for_what_is_missing() -> None:
    prompts = [f"p{number}" for number in range(1000)]
    cells = calling(("llm_query_batched", [prompts], {}))
    first = Log(Scripted(cells))
    result = printed(first)
    kept = first.events[:700]
    again = Log(Scripted(cells), kept)
    assert printed(again) == result
    assert sorted(again.host.called) == sorted(event.at for event in first.events[700:1000])


def test_an_exception_that_is_no_failed_call_ends_the_whole_batch() -> None:
    log = Log(Scripted(calling(("llm_query_batched", [["wait", "limit", "wait"]], {}))))
    with pytest.raises(BudgetExceededError, match="gone"):
        printed(log)
    assert log.host.cancelled == 2
    assert log.events == []


def test_a_cancelled_batch_cancels_all_of_its_calls_and_records_nothing() -> None:
    log = Log(Scripted(calling(("llm_query_batched", [["wait", "wait", "a"]], {}))))

    async def scenario() -> None:
        task = asyncio.create_task(log.journal.run("c"))
        for _ in range(20):  # until the answer is recorded and the others wait
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert log.host.cancelled == 2
    called, ran = log.events  # the call that was answered before, and that the cell did not come to its end
    assert isinstance(called, Called)
    assert isinstance(ran, Ran)
    assert (ran.result.error or CellError("", "")).type == "Cancelled"


# -- what the record does not fit ----------------------------------------------------------------------------------


def test_a_failed_call_fails_again() -> None:
    cells = calling(("llm_query", ["fail"], {}))
    first = Log(Scripted(cells))
    again = Log(Scripted(cells), [event for event in first.events if isinstance(event, Called)])
    assert printed(again) == printed(first) == [["no fail", "refused"]]
    bare = Called("t0/c0/x:0#0", "x", error="no")
    with pytest.raises(CallFailed) as caught:
        asyncio.run(Log(Scripted(), [bare]).journal.call(bare.at, "x", [], {}))
    assert caught.value.reason == "error"


def test_a_cell_is_run_again_for_the_namespace_and_the_loop_gets_the_recorded_result() -> None:
    log = Log(Scripted(), [Ran("t0/c0", "x", REPLResult(stdout="as it was"))])
    assert asyncio.run(log.journal.run("x")).stdout == "as it was"
    assert (log.host.ran, log.events, log.journal.diverged) == (["x"], [], 1)  # it printed something else


def test_cells_that_the_namespace_contains_are_not_run_again() -> None:
    past = [Ran(f"t0/c{number}", f"x{number}", REPLResult(stdout="then")) for number in range(2)]
    log = Log(Scripted(), past, restored=1)

    async def scenario() -> list[str]:
        return [(await log.journal.run(f"x{number}")).stdout for number in range(3)]

    assert asyncio.run(scenario()) == ["then", "then", "x2"]
    assert log.host.ran == ["x1", "x2"]


def test_a_cell_that_took_its_worker_along_is_not_run_again() -> None:
    died = REPLResult(restarted=True, error=CellError("WorkerDied", ""))
    log = Log(Scripted(), [Ran("t0/c0", "exit", died)])
    assert asyncio.run(log.journal.run("exit")).restarted
    assert log.host.ran == []


def test_a_cell_that_ran_after_its_worker_was_replaced_is_run_again() -> None:
    log = Log(Scripted(), [Ran("t0/c0", "x", REPLResult(restarted=True, stdout="x"))])
    assert asyncio.run(log.journal.run("x")).restarted
    assert log.host.ran == ["x"]


def test_another_code_or_purpose_at_a_place_is_asked_anew_once_and_counted() -> None:
    past: list[Event] = [
        Replied("t0/a0", "iteration", Reply("then", "m")),
        Ran("t0/c0", "old", REPLResult(stdout="old")),
    ]

    async def scenario(log: Log) -> tuple[str, str]:
        return (await log.journal.ask([], "final")).text, (await log.journal.run("new")).stdout

    first = Log(Scripted(), past, restored=1)
    assert asyncio.run(scenario(first)) == ("reply 1", "new")
    assert first.journal.diverged == 2
    again = Log(Scripted(), [*past, *first.events], restored=1)
    assert asyncio.run(scenario(again)) == ("reply 1", "new")
    assert (again.host.asked, again.host.ran, again.journal.diverged) == ([], [], 0)


def test_a_cell_that_calls_or_ends_otherwise_than_it_did_is_counted() -> None:
    ran = Ran("t0/c0", "c", REPLResult(error=CellError("KeyError", "KeyError: 1")))
    log = Log(Scripted(calling(("llm_query", ["a"], {}))), [ran])
    assert asyncio.run(log.journal.run("c")) == ran.result
    assert log.journal.diverged == 2
    assert len(log.keys) == 1


def order_again(*past: Event, asks: bool = True) -> tuple[Any, list[str]]:
    """What a cell gets for orders whose arguments differ from those on record, and the calls that were made for it.

    On record are the order of a nut and its answer, and that a bolt was being ordered. asks: for a reply first.
    """

    async def cell(answer: Answer) -> REPLResult:
        got: list[Any] = []
        for part in ("nut 2", "bolt 2", "screw 2"):
            try:
                got.append(await answer("order", [part], {}))
            except CallFailed as failed:
                got.append(failed.reason)
        return REPLResult(stdout=json.dumps(got))

    first = Log(Scripted(calling(("order", ["nut 1"], {}), ("order", ["bolt 1"], {}))), once=["order"])
    asyncio.run(first.journal.run("c"))
    begun = [event for event in first.events if not isinstance(event, Ran)][:3]
    log = Log(Scripted({"c": cell}), [*past, *begun], once=["order"])

    async def scenario() -> None:
        if asks:
            await log.journal.ask([])
        await log.journal.run("c")

    asyncio.run(scenario())
    told = [event for event in log.events if isinstance(event, Called)]
    return [event.value or event.reason for event in told], log.host.called


def test_a_function_that_must_not_be_called_twice_is_answered_in_the_order_of_its_calls() -> None:
    told, called = order_again(Replied("t0/a0", reply=Reply("c", "m")))
    assert told == ["uncertain", "order screw 2"]  # the nut's answer is on record already
    assert len(called) == 1
    told, called = order_again(Ran("t0/c0", "c", REPLResult(stdout="as it was")))
    assert (told, called) == (["uncertain", "uncertain"], [])  # the cell had made all of its calls


def test_a_cell_that_may_be_another_one_gets_no_answers_in_the_order_of_its_calls() -> None:
    told, called = order_again(asks=False)
    assert (told, called) == (["uncertain"] * 3, [])


def test_of_equal_places_the_first_counts() -> None:
    past = [Replied("t0/a0", reply=Reply("first", "m")), Replied("t0/a0", reply=Reply("second", "m"))]
    assert asyncio.run(Log(Scripted(), past).journal.ask([])).text == "first"


# -- resuming after every prefix of random turns -------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Calls that a cell makes at once; their prompts depend on what the namespace holds."""

    name: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    steps: tuple[Step, ...]
    fails: bool = False
    submits: bool = False


Program = tuple[tuple[Cell, ...], ...]

_step = st.builds(
    Step,
    st.sampled_from(["llm_query", "llm_query", "llm_query_batched", "tool", "rlm_query", "rlm_query_batched"]),
    st.lists(st.sampled_from(["a", "b", "b", "fail"]), min_size=1, max_size=3).map(tuple),
)
_cell = st.builds(Cell, st.lists(_step, max_size=2).map(tuple), st.booleans(), st.sampled_from([False, False, True]))
_program = st.lists(st.lists(_cell, max_size=2).map(tuple), min_size=1, max_size=3).map(tuple)


@dataclass
class World:
    """Plays a program: its replies are the program's cells, and answers depend on what is asked and nothing else.

    What differs with `seed` is only when things happen: in which order calls arrive and are answered.
    """

    program: Program
    path: str
    record: Record
    append: Callable[[Event], Awaitable[None]]
    seed: int
    asked: Counter[str] = field(default_factory=Counter)
    ran: list[str] = field(default_factory=list)
    called: list[str] = field(default_factory=list)
    namespace: list[Any] = field(default_factory=list)
    snapshots: list[list[Any]] = field(default_factory=lambda: [[]])

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    async def moment(self) -> None:
        for _ in range(self.chance.randrange(4)):
            await asyncio.sleep(0)

    async def ask(self, messages: Messages, purpose: str = "iteration") -> Reply:
        self.asked[self.path] += 1
        await self.moment()
        number = sum(message["role"] == "assistant" for message in messages)
        if number >= len(self.program):
            return Reply(f"final after {messages[-1]['content']}", "m")
        blocks = [f"```repl\n{number}.{cell}\n```" for cell in range(len(self.program[number]))]
        return Reply("\n".join(blocks) or "no code", "m")

    async def run(self, code: str, answer: Answer | None = None) -> REPLResult:
        assert answer is not None
        self.ran.append(f"{self.path}:{code}")
        number, position = map(int, code.split("."))
        cell = self.program[number][position]
        for step in cell.steps:
            self.namespace.append(await self.step(step, answer))
        self.snapshots.append(list(self.namespace))
        text = json.dumps(self.namespace)
        error = CellError("ValueError", f"ValueError: {len(text)}") if cell.fails else None
        final = text if cell.submits else None
        return REPLResult(stdout=text, error=error, final_answer=final, draft=Draft(text, cell.submits))

    async def step(self, step: Step, answer: Answer) -> Any:
        seen = f" after {len(json.dumps(self.namespace))}"
        prompts = [prompt + seen for prompt in step.prompts]
        if step.name.endswith("_batched"):
            return await answer(step.name, [prompts], {})

        async def one(prompt: str) -> str:
            await self.moment()
            try:
                return str(await answer(step.name, [prompt], {}))
            except CallFailed as failed:
                return f"Error: {failed}"

        return await asyncio.gather(*(one(prompt) for prompt in prompts))

    async def call(self, key: str, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self.called.append(key)
        await self.moment()
        prompt: str = args[0]
        if prompt.startswith("fail"):
            raise CallFailed(f"no {prompt}", "refused")
        if name == "rlm_query":
            return await self.child(key, prompt)
        return f"{name}({prompt})"

    async def child(self, key: str, prompt: str) -> str:
        first = Cell((Step("llm_query", (prompt, "b")), Step("tool", ("fail",))))
        program = ((first,), (Cell((Step("llm_query_batched", ("a", "a")),), submits=True),))
        child = World(program, key, self.record, self.append, self.seed, self.asked, self.ran, self.called)
        journal = Journal(child, key, self.record, self.append)
        return (await turn(journal, Transcript(list(OPENING)), iterations=3)).response


OPENING: list[Message] = [{"role": "user", "content": "go"}]


@dataclass
class Life:
    """A turn from its beginning, or from what a crash left of it, to its end."""

    world: World
    events: list[Event]
    outcome: Outcome
    messages: list[Message]


async def live(program: Program, seed: int, past: Sequence[Event] = (), restored: Sequence[list[Any]] = ()) -> Life:
    """restored: snapshots of the namespace up to the checkpoint that was loaded."""
    events: list[Event] = []

    async def append(event: Event) -> None:
        await asyncio.sleep(0)
        events.append(event)

    record = Record(past)
    world = World(program, "t0", record, append, seed)
    if restored:
        world.snapshots, world.namespace = list(restored), list(restored[-1])
    journal = Journal(world, "t0", record, append, restored=max(0, len(restored) - 1))
    transcript = Transcript(list(OPENING))
    outcome = await turn(journal, transcript, iterations=3)
    assert journal.diverged == 0
    return Life(world, events, outcome, transcript.messages)


def places(events: Sequence[Event]) -> Counter[tuple[str, str]]:
    return Counter((event.kind, event.at) for event in events)


def check_resumed(whole: Life, past: Sequence[Event], rest: Life) -> None:
    """The same turn, and nothing of it twice."""
    assert rest.outcome == whole.outcome
    assert rest.messages == whole.messages
    assert places([*past, *rest.events]) == places(whole.events)
    assert not set(rest.world.called) & {event.at for event in past if isinstance(event, Called)}
    assert max(Counter(rest.world.called).values(), default=1) == 1
    recorded = Counter(event.at.rpartition("/")[0] for event in past if isinstance(event, Replied))
    assert rest.world.asked == whole.world.asked - recorded


@settings(max_examples=60, deadline=None)
@given(_program, st.integers(0, 1000))
def test_after_every_prefix_a_turn_resumes_to_the_same_end_and_repeats_nothing(program: Program, seed: int) -> None:
    async def scenario() -> None:
        whole = await live(program, seed)
        for length in range(len(whole.events) + 1):
            past = whole.events[:length]
            ran = sum(isinstance(event, Ran) and event.at.count("/") == 1 for event in past)
            for restored in {0, 1, ran // 2 + 1, ran + 1}:
                if restored <= ran + 1:
                    rest = await live(program, seed + length, past, whole.world.snapshots[:restored])
                    check_resumed(whole, past, rest)
                    own = [code for code in rest.world.ran if code.startswith("t0:")]
                    assert len(own) == len(whole.world.snapshots) - max(1, restored)

    asyncio.run(scenario())


@settings(max_examples=20, deadline=None)
@given(_program, st.integers(0, 1000), st.data())
def test_a_turn_may_crash_again_while_it_resumes(program: Program, seed: int, data: st.DataObject) -> None:
    async def scenario() -> None:
        whole = await live(program, seed)
        past = whole.events[: data.draw(st.integers(0, len(whole.events)))]
        for crash in range(3):
            rest = await live(program, seed + crash, past)
            check_resumed(whole, past, rest)
            past = [*past, *rest.events[: data.draw(st.integers(0, len(rest.events)))]]

    asyncio.run(scenario())
