"""Logs for tests of what is made from logs: of real sessions in memory, and built by hand where sessions do not go."""

from __future__ import annotations

from collections.abc import Iterable

from rlm import RLM, Limits, ScriptedModel
from rlm.types import (
    Answered,
    Asked,
    Attempted,
    Briefed,
    Called,
    CellError,
    Checkpointed,
    ContextAdded,
    Event,
    Failed,
    Forked,
    HeapChange,
    Lost,
    Messages,
    Opened,
    Price,
    Ran,
    Recorded,
    Replied,
    REPLResult,
    Reply,
    Restored,
    Resumed,
    Rewound,
    RLMChatCompletion,
    Saved,
    SavedFile,
    Stopped,
    Usage,
    UsageSummary,
)
from tests.turns import cell, submit, task

BEGAN = 1_790_000_000.0  # seconds since 1970
HOSTILE = (
    "</script><img src=x onerror=alert(1)><!--<script>alert(2)//\u2028\u2029 &lt; \x1b[31mred\x1b[0m "
    "\x1b]0;title\x07 \u202eevil\u202c \x00\x9b2J \ud800 {{data}} javascript:alert(3)"
)


def recorded(events: Iterable[Event]) -> list[Recorded]:
    """The events as a store has them, a second after each other."""
    return [Recorded(number, BEGAN + number, event) for number, event in enumerate(events)]


def real_session() -> tuple[list[Event], UsageSummary]:
    """What a session with children, batches, a failing cell and a cell of the user's own logged, and its usage."""

    def script(messages: Messages) -> str:
        asked = messages[0]["content"] if len(messages) == 1 else task(messages)
        spoken = sum(message["role"] == "assistant" for message in messages)
        if asked == "Which hour was worst?":
            return [
                "I look at the log first.\n\n" + cell("rows = context.splitlines()\nprint(len(rows), 'rows')"),
                cell("hours = sorted(row[:2] for row in rows)\nprint(hour)"),
                cell("notes = llm_query_batched([f'Summarise hour {hour}' for hour in hours])\nprint(notes[:2])"),
                cell("worst = rlm_query_batched(['Task: compare', 'Task: doubt'])\nprint(worst)"),
                "Hour 03 stands out.\n\n" + submit("'Hour 03: ' + worst[0]"),
            ][spoken]
        if asked == "And the second worst?":
            return submit("hours[-2]")
        if asked == "compare":
            return [cell("print(len(context))"), submit("llm_query('Say it in one word')")][spoken]
        return submit("'no doubt'") if asked == "doubt" else f"about {asked}"

    model = ScriptedModel(script, name="play:root", price=Price(1.0, 4.0))
    small = ScriptedModel(script, name="play:small", price=Price(0.1, 0.4))
    log = "\n".join(f"{hour:02}:00 {'error' if hour % 3 else 'fine'} service-{hour}" for hour in range(12))
    with RLM(model, sub_model=small, limits=Limits(depth=2)) as rlm, rlm.session() as session:
        session.completion(log, "Which hour was worst?")
        session.run("print(worst[0])")
        session.ask("And the second worst?")
        return list(session.log), session.usage()


def every_kind() -> list[Event]:
    """A session with all kinds of events: forked, rewound, restored with losses, cut short, not finished."""

    def turn(number: int, *events: Event, answer: str | None = None) -> list[Event]:
        at = f"t{number}"
        end = [Answered(at, RLMChatCompletion("m:big", None, answer, execution_time=2.0))] if answer else []
        return [Asked(at, f"Question {number}?", model="m:big"), *events, *end]

    def step(number: int, ask: int, code: str, result: REPLResult) -> list[Event]:
        usage = Usage(1, 1_000, 50, 400, 0.002)
        reply = Reply(cell(code), "m:big", usage)
        sent = ({"role": "user", "content": f"Task: {number}.{ask}"},)
        at = f"t{number}"
        return [Replied(f"{at}/a{ask}", "iteration", reply, 0.7, sent), Ran(f"{at}/c{ask}", code, result)]

    first = HeapChange(
        groups=[Saved(["rows", "view"], ["list", "Rows"], "d1", 4_200), Saved(["Rows"], ["type"], "d2", 900, True)],
        modules={"np": "numpy"},
        given={"context": "context_0"},
        lost={"feed": Lost("generator", "generators cannot be saved", "<generator feed>")},
        files={"out/table.csv": SavedFile("d3", 77)},
        python="3.11",
        seconds=0.02,
        pause=0.004,
    )
    second = HeapChange(groups=[Saved(["total"], ["int"], "d4", 12)], gone=["view"], caught=["rows"], whole=True)
    dropped = HeapChange(groups=[Saved(["mistake"], ["dict"], "d5", 40)])
    failed = REPLResult(stderr="Traceback …\nKeyError: 'x'", error=CellError("KeyError", "Traceback …\nKeyError: 'x'"))
    return [
        Opened("", "audit", "m:big", "local", "0.1.0"),
        ContextAdded("context_0", 0, "str", 12_345, "contract", "d9", "text", "This contract …"),
        *turn(
            0,
            Briefed("t0", 0, 1, 0, ["the user added `context_0`"], '{"type": "object"}'),
            *step(0, 0, "rows = load()", REPLResult(stdout="loaded", execution_time=0.3)),
            Checkpointed("t0", 1, first, base=True),
            answer="Nothing.",
        ),
        Forked("", "acme", 0),
        *turn(1, *step(1, 0, "total = 3", REPLResult(stdout="3", execution_time=0.1)), answer="Three."),
        Checkpointed("t1", 2, second),
        *turn(2, *step(2, 0, "mistake = {}", failed), answer="Wrong."),
        Checkpointed("t2", 3, dropped),
        Rewound("", 1),
        Restored("", 2, 1, 4, {"feed": Lost("generator", "it was not saved")}, 1),
        Ran("u0/c0", "print(total)", REPLResult(stdout="3\n", execution_time=0.01)),
        *turn(3, *step(3, 0, "while True: pass", REPLResult(restarted=True, error=CellError("Killed", "Killed")))),
        Stopped("t3", "TimeoutExceededError", "Limits(seconds=5) left this turn 5 s", "so far: 3"),
        *turn(4),
        Failed("t4", "ModelError", "m:big: 503", None),
        *turn(5, Replied("t5/a0", "iteration", Reply(cell("llm_query('a')"), "m:big", Usage(1, 10, 10, 0, None)), 0.5)),
        Resumed("t5"),
        Attempted("t5/c0/send:bb#0", "send", "a mail"),
        Called("t5/c0/llm_query:aa#0", "llm_query", "a", None, "ModelError: 503", "model", UsageSummary(), 0.2),
    ]


def hostile() -> list[Event]:
    """A session whose every text tries to be something else."""
    result = REPLResult(stdout=HOSTILE, stderr=HOSTILE, error=CellError(HOSTILE, HOSTILE), final_answer=HOSTILE)
    lost = {HOSTILE: Lost(HOSTILE, HOSTILE, HOSTILE)}
    change = HeapChange([Saved([HOSTILE], [HOSTILE], "d", 1)], {HOSTILE: HOSTILE}, {HOSTILE: HOSTILE}, lost, [HOSTILE])
    sent = ({"role": "user", "content": HOSTILE},)
    usage = UsageSummary({HOSTILE: Usage(1, 1, 1), "other": Usage(1)})
    return [
        Opened("", HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        ContextAdded("context_0", 0, HOSTILE, 1, HOSTILE, None, None, HOSTILE),
        Asked("t0", HOSTILE, key=HOSTILE, model=HOSTILE),
        Briefed("t0", notes=[HOSTILE], schema=HOSTILE),
        Replied("t0/a0", "iteration", Reply(HOSTILE, HOSTILE), 0.1, sent),
        Called(f"t0/c0/{HOSTILE}#0".replace("/t", ""), HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, None, None, usage),
        Called("t0/c0/llm_query:1#0", HOSTILE, HOSTILE, None, HOSTILE, HOSTILE),
        Ran("t0/c0", HOSTILE, result),
        Checkpointed("t0", 1, change, base=True),
        Answered("t0", RLMChatCompletion(HOSTILE, HOSTILE, HOSTILE, metadata={"isolation": HOSTILE})),
        Restored(HOSTILE, lost=lost),
        Forked("", HOSTILE),
        Asked("t1", None),
        Stopped("t1", HOSTILE, HOSTILE, HOSTILE),
    ]


def long_run(turns: int = 92, calls: int = 1_000) -> list[Event]:
    """More than 5,000 events: turns of eight cells, some with children, and one cell with a thousand calls."""
    events: list[Event] = [Opened("", "long", "m:big", "local", "0.1.0")]
    for number in range(turns):
        at = f"t{number}"
        events.append(
            Asked(at, f"Question {number}: what do the rows of part {number} say of the others?", model="m:big")
        )
        for step in range(8):
            usage = Usage(1, 2_000 + 300 * step, 120, 900 * step, 0.003 + 0.0005 * step)
            code = f"part_{step} = rows[{step}::8]\nprint(len(part_{step}))"
            events.append(Replied(f"{at}/a{step}", "iteration", Reply(cell(code), "m:big", usage), 0.8))
            asked = calls if (number, step) == (7, 3) else 4 if step % 2 else 0
            for call in range(asked):
                used = UsageSummary({"m:small": Usage(1, 300, 20, 0, 0.0001)})
                key = f"{at}/c{step}/llm_query:{call:016x}#0"
                error = "ModelError: 429" if asked == calls and call % 333 == 332 else None
                value = None if error else f"part {call} says nothing of {step}"
                why = "model" if error else None
                events.append(Called(key, "llm_query", f"Summarise part {call}", value, error, why, used, 0.1))
            if number % 10 == 0 and step == 5:
                child = f"{at}/c{step}/rlm_query:{number:016x}#0"
                for inner in range(10):
                    reply = Reply(cell("print(context)"), "m:small", Usage(1, 500, 30, 0, 0.0002))
                    events.append(Replied(f"{child}/a{inner}", "iteration", reply, 0.2))
                    events.append(Ran(f"{child}/c{inner}", "print(context)", REPLResult(stdout="the part\n" * inner)))
                events.append(Called(child, "rlm_query", "Look closer", "closer", seconds=3.0))
            rows = "\n".join(f"row {row} of part {number}" for row in range(200 if step == 6 else 3))
            events.append(Ran(f"{at}/c{step}", code, REPLResult(stdout=rows, execution_time=0.05)))
            change = HeapChange([Saved([f"part_{step}"], ["list"], f"d{number}{step}", 1_000 * (step + 1))])
            cells = number * 8 + step + 1
            events.append(Checkpointed(at, cells, change, base=cells == 1))
        done = RLMChatCompletion("m:big", None, f"Part {number} says nothing of the others.", execution_time=7.5)
        events.append(Answered(at, done))
    return events
