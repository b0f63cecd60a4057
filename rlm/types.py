"""The values that travel between the parts: messages, replies, results, limits and events.

Everything here is a frozen dataclass over plain data, so that it can be shared between tasks, recorded in a log and
shown to a person without a second representation. This module imports nothing of ours and does no I/O.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypedDict


class Message(TypedDict):
    """One message of a conversation, in the form every chat API shares."""

    role: Literal["system", "user", "assistant"]
    content: str


Messages = Sequence[Message]


# -- usage ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Usage:
    """What one model, or one call of it, consumed. Tokens are the provider's own count; `cost` is in US dollars.

    `cost` is None where no price is known, and stays None in a sum with a part whose price is unknown: a total that
    silently leaves calls out would be a lie. `cached_tokens` are those of the input that the provider read from its
    cache; they are included in `input_tokens`.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost: float | None = 0.0

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            None if self.cost is None or other.cost is None else self.cost + other.cost,
        )

    # The names that code written for other RLM engines reads.
    @property
    def total_calls(self) -> int:
        return self.calls

    @property
    def total_input_tokens(self) -> int:
        return self.input_tokens

    @property
    def total_output_tokens(self) -> int:
        return self.output_tokens

    @property
    def total_cost(self) -> float | None:
        return self.cost

    def to_dict(self) -> dict[str, Any]:
        return {
            "total_calls": self.calls,
            "total_input_tokens": self.input_tokens,
            "total_output_tokens": self.output_tokens,
            "total_cached_tokens": self.cached_tokens,
            "total_cost": self.cost,
        }


@dataclass(frozen=True, slots=True)
class UsageSummary:
    """Usage per model name, of a whole tree of calls."""

    model_usage_summaries: Mapping[str, Usage] = field(default_factory=dict)

    @property
    def total(self) -> Usage:
        return sum(self.model_usage_summaries.values(), Usage())

    @property
    def total_calls(self) -> int:
        return self.total.calls

    @property
    def total_input_tokens(self) -> int:
        return self.total.input_tokens

    @property
    def total_output_tokens(self) -> int:
        return self.total.output_tokens

    @property
    def total_cost(self) -> float | None:
        return self.total.cost

    def add(self, model: str, usage: Usage) -> UsageSummary:
        """This summary with one more piece of usage; the receiver is unchanged."""
        known = dict(self.model_usage_summaries)
        known[model] = known.get(model, Usage()) + usage
        return UsageSummary(known)

    def __add__(self, other: UsageSummary) -> UsageSummary:
        total = self
        for model, usage in other.model_usage_summaries.items():
            total = total.add(model, usage)
        return total

    def to_dict(self) -> dict[str, Any]:
        summaries = {model: usage.to_dict() for model, usage in self.model_usage_summaries.items()}
        return {"model_usage_summaries": summaries, "total_cost": self.total_cost}


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer to one request: its text, the model that gave it, and what it consumed."""

    text: str
    model: str
    usage: Usage = Usage(calls=1)


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens. What `budget` reserves with; the bill itself comes with each reply."""

    input: float
    output: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What one turn (or, given to a session, its whole life) may consume. None means no limit.

    usd: money, over the whole tree of calls. seconds: wall-clock time, waiting for a busy session not included.
    iterations: replies of the root model (and of each child) before the final request. depth: levels of REPLs; with 1
    an `rlm_query` is a plain model call. calls: model requests in the tree. tokens: input and output in the tree.
    errors: failing cells in a row. concurrency: model requests in flight at once, and threads for sync tools.
    """

    usd: float | None = None
    seconds: float | None = None
    iterations: int = 30
    depth: int = 1
    calls: int | None = None
    tokens: int | None = None
    errors: int | None = None
    concurrency: int = 64

    def __post_init__(self) -> None:
        for name in ("usd", "seconds", "calls", "tokens", "errors"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value > 0):
                raise ValueError(f"Limits({name}={value!r}): give a number above 0, or None for no limit")
        for name in ("iterations", "concurrency"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"Limits({name}={value!r}): give a whole number of at least 1")
        if not (isinstance(self.depth, int) and self.depth >= 0):
            raise ValueError(f"Limits(depth={self.depth!r}): give a whole number of at least 0")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# -- cells ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CellError:
    """Why a cell failed: the exception's class name, and the traceback of the user's own frames."""

    type: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Draft:
    """What `answer` holds at the end of a cell. `content` is text; `ready` submits it."""

    content: str = ""
    ready: bool = False


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call that a cell made: what it asked of the host, how long that took, and what it cost."""

    key: str
    name: str
    prompt: str
    response: str
    usage_summary: UsageSummary = UsageSummary()
    execution_time: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class REPLResult:
    """What came of one cell.

    stdout, stderr: text, head and tail kept where it was long; stderr ends with the traceback of a failed cell.
    error: None, or why the cell failed. final_answer: the submitted answer, if any. locals: the names of the
    namespace and the names of their types, as of the end of the cell. execution_time: seconds. draft: what `answer`
    held, submitted or not. restarted: the worker was lost, with this cell or before it, and a new one stands in its
    place.
    """

    stdout: str = ""
    stderr: str = ""
    error: CellError | None = None
    final_answer: str | None = None
    locals: Mapping[str, str] = field(default_factory=dict)
    rlm_calls: Sequence[CallRecord] = ()
    execution_time: float = 0.0
    draft: Draft | None = None
    restarted: bool = False

    @property
    def took_its_worker_along(self) -> bool:
        """Whether the cell itself is what the worker ended by, so that the namespace is as it was before it.

        A worker may also have been lost before the cell, which then ran in a new one.
        """
        return self.restarted and self.error is not None and self.error.type in ENDS_OF_WORKERS


ENDS_OF_WORKERS = frozenset({"WorkerDied", "CellTimeout", "Interrupted"})


@dataclass(frozen=True, slots=True)
class RemoteValue:
    """Stands for a value that stays in the worker because it has no exact JSON form."""

    type: str
    repr: str

    def __repr__(self) -> str:
        return f"<remote {self.type}: {self.repr}>"


# -- the heap of a session -----------------------------------------------------------------------------------------
#
# What a worker says of its namespace, so that it can be brought back elsewhere. The bytes themselves stand in a store
# under their digests; only a worker ever loads them.


@dataclass(frozen=True, slots=True)
class Saved:
    """Variables that share objects, saved together in one blob: a co-variable.

    names: in the order of the blob's values; "" where the name has another value by now. types: their types' names.
    digest: SHA-256 of the blob, hexadecimal; size: its bytes. definition: functions and classes of the session itself,
    which load before what refers to them. code: the blob holds code objects, which only the same minor version of
    Python loads. sources: of definitions, the statements that made them, to be run again by other versions.
    """

    names: Sequence[str]
    types: Sequence[str]
    digest: str
    size: int
    definition: bool = False
    code: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SavedFile:
    """A file in the session's own folder. mode: its permissions. link: where a symbolic link leads; it has no blob."""

    digest: str
    size: int
    mode: int = 0o600
    link: str | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """What could not be saved, or not be brought back, and why."""

    type: str
    reason: str
    repr: str = ""


@dataclass(frozen=True, slots=True)
class HeapChange:
    """What a capture of the namespace found changed since the one before.

    modules: names of variables -> the module's import name. given: names -> the name of the host's value that they
    hold. lost: names whose values cannot be saved. gone: names that are no more. files, files_gone, files_lost: the
    same of the session's folder, by relative path. caught: names that no analysis of the cells' code had suspected.
    seconds: how long it took; pause: for how much of that no cell could run. whole: everything was looked at.
    """

    groups: Sequence[Saved] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, Lost] = field(default_factory=dict)
    gone: Sequence[str] = ()
    files: Mapping[str, SavedFile] = field(default_factory=dict)
    files_gone: Sequence[str] = ()
    files_lost: Mapping[str, Lost] = field(default_factory=dict)
    caught: Sequence[str] = ()
    python: str = ""
    seconds: float = 0.0
    pause: float = 0.0
    whole: bool = False


@dataclass(frozen=True, slots=True)
class HeapImage:
    """A whole heap, as the changes up to some cell add up to it: what a new worker is given.

    python: the version ("3.11") whose worker saved it last. lost: names that could not be saved.
    """

    groups: Sequence[Saved] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, Lost] = field(default_factory=dict)
    files: Mapping[str, SavedFile] = field(default_factory=dict)
    files_lost: Mapping[str, Lost] = field(default_factory=dict)
    python: str = ""


# -- what host functions look like to the model --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tool:
    """A host function (or a value) that cells can use under `name`; the model sees signature and description."""

    name: str
    value: Any
    description: str = ""
    retry: Literal["safe", "never"] = "safe"

    @property
    def is_function(self) -> bool:
        return callable(self.value)


# -- answers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RLMChatCompletion:
    """The answer to one turn.

    root_model: the model's name. prompt: what the caller asked (the question, or else the context as given). response:
    the answer as text; output: the same, validated, where an `output_type` was given. usage_summary: of the whole tree
    of calls; cost: its total in US dollars, None where a price is unknown. execution_time: seconds, waiting for the
    session not included. turn: the turn's number in its session. metadata: how it went (iterations, cells, calls).
    """

    root_model: str
    prompt: Any
    response: str
    usage_summary: UsageSummary = UsageSummary()
    execution_time: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    output: Any = None
    turn: int = 0

    @property
    def cost(self) -> float | None:
        return self.usage_summary.total_cost

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `prompt` and `output` are given as they are where JSON has them, else as repr."""
        return {
            "root_model": self.root_model,
            "prompt": _plain(self.prompt),
            "response": self.response,
            "output": _plain(self.output),
            "usage_summary": self.usage_summary.to_dict(),
            "cost": self.cost,
            "execution_time": self.execution_time,
            "turn": self.turn,
            "metadata": _plain(self.metadata),
        }


@dataclass(frozen=True, slots=True)
class UnfinishedTurn:
    """A turn that was cut off by the end of its process.

    turn: its number. question, key: as asked. iterations, cells: replies and cells on record. lacks_input: its input
    had not arrived, so that it can only be discarded. typed: it was asked for an answer of a type.
    """

    turn: int
    question: str | None
    key: str | None = None
    iterations: int = 0
    cells: int = 0
    lacks_input: bool = False
    typed: bool = False


# -- events --------------------------------------------------------------------------------------------------------
#
# A session's log is a list of events (docs/log.md); everything else that is known of a session is a fold over it. `at`
# says where in the tree of calls an event stands: "t3" is turn 3, "t3/a0" its first request, "t3/c1" its second cell,
# "u2/c0" the user's own third cell, and "t3/c1/rlm_query:9f…#0/c0" the first cell of a child that this cell started.
# Events with `durable = False` only tell a spectator what has begun; they are not recorded.


@dataclass(frozen=True, slots=True)
class Event:
    """What all events share. `at`: the place in the tree of calls."""

    kind: ClassVar[str] = "event"
    durable: ClassVar[bool] = True

    at: str

    def to_dict(self) -> dict[str, Any]:
        values = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"kind": self.kind, **values}


@dataclass(frozen=True, slots=True)
class Opened(Event):
    """A session began. model: its root model; environment: where its cells run; version: of this package."""

    kind: ClassVar[str] = "opened"
    name: str = ""
    model: str = ""
    environment: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class ContextAdded(Event):
    """`context_{index}` exists; `type` and `size` (characters, bytes or items; None without a length) describe it.

    Told again where a turn comes with an input equal to the one that a turn without an answer left behind.
    """

    kind: ClassVar[str] = "context"
    index: int = 0
    type: str = "str"
    size: int | None = None
    name: str | None = None
    digest: str | None = None
    format: str | None = None
    preview: str | None = None


@dataclass(frozen=True, slots=True)
class Asked(Event):
    """A turn began. Recorded before its input is brought in, so that whatever ends the turn there is known too.

    context: index of the input, where it is the very one that a turn without an answer left behind; any other input is
    named by the `ContextAdded` that follows. key, inputs: what the caller named the question, and the digest of all
    that it depends on; the same two later find the recorded answer. given: an input came with it.
    """

    kind: ClassVar[str] = "asked"
    question: str | None = None
    context: int | None = None
    key: str | None = None
    model: str = ""
    inputs: str | None = None
    given: bool = False


@dataclass(frozen=True, slots=True)
class Briefed(Event):
    """What went into the turn's opening message beside question and conversation, so that it can be made again.

    context: index of the turn's input; contexts, histories: how many there are. notes: what happened since the last
    turn. schema: JSON schema of the answer.
    """

    kind: ClassVar[str] = "briefed"
    context: int | None = None
    contexts: int = 0
    histories: int = 0
    notes: Sequence[str] = ()
    schema: str | None = None


@dataclass(frozen=True, slots=True)
class Asking(Event):
    """A model request is on its way (not recorded)."""

    kind: ClassVar[str] = "asking"
    durable: ClassVar[bool] = False
    purpose: str = "iteration"


@dataclass(frozen=True, slots=True)
class Replied(Event):
    """The root model of the turn (or of a child) replied.

    sent: the messages that it had not been sent before with this turn; its own replies are not repeated.
    """

    kind: ClassVar[str] = "replied"
    purpose: str = "iteration"
    reply: Reply = Reply("", "")
    seconds: float = 0.0
    sent: Sequence[Message] = ()


@dataclass(frozen=True, slots=True)
class Running(Event):
    """A cell began (not recorded)."""

    kind: ClassVar[str] = "running"
    durable: ClassVar[bool] = False
    code: str = ""


@dataclass(frozen=True, slots=True)
class Printed(Event):
    """A running cell printed something (not recorded; the whole output comes with `Ran`)."""

    kind: ClassVar[str] = "printed"
    durable: ClassVar[bool] = False
    stream: Literal["stdout", "stderr"] = "stdout"
    text: str = ""


@dataclass(frozen=True, slots=True)
class Ran(Event):
    """A cell ended."""

    kind: ClassVar[str] = "ran"
    code: str = ""
    result: REPLResult = REPLResult()


@dataclass(frozen=True, slots=True)
class Checkpointed(Event):
    """The heap after the session's first `cells` cells (those of children not counted) is safe, by what changed.

    base: it stands on no checkpoint before it.
    """

    kind: ClassVar[str] = "checkpoint"
    cells: int = 0
    change: HeapChange = HeapChange()
    base: bool = False


@dataclass(frozen=True, slots=True)
class Restored(Event):
    """A new worker took the heap over. live: how many names it has of it; lost: those it has not, and why.

    cells: how many cells the checkpoint held; rerun: how many were run again after it; diverged: how often one of them
    did something else than the first time; skipped: how many after it were not run again.
    """

    kind: ClassVar[str] = "restored"
    cells: int = 0
    rerun: int = 0
    live: int = 0
    lost: Mapping[str, Lost] = field(default_factory=dict)
    diverged: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """An unfinished turn goes on, after its process ended."""

    kind: ClassVar[str] = "resumed"


@dataclass(frozen=True, slots=True)
class Forked(Event):
    """This session began as a copy of another one, up to the end of a turn (None: of all that it had)."""

    kind: ClassVar[str] = "forked"
    source: str = ""
    turn: int | None = None


@dataclass(frozen=True, slots=True)
class Rewound(Event):
    """The session went back to the end of a turn (None: to its beginning). What came after stays in the log."""

    kind: ClassVar[str] = "rewound"
    turn: int | None = None


@dataclass(frozen=True, slots=True)
class Calling(Event):
    """A running cell asked something of the host (not recorded). `model`: the one that it named, if it did."""

    kind: ClassVar[str] = "calling"
    durable: ClassVar[bool] = False
    name: str = ""
    prompt: str = ""
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Attempted(Event):
    """A call that must not be made twice is about to be made. Without a `Called` after it, nobody knows its effect."""

    kind: ClassVar[str] = "attempted"
    name: str = ""
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Called(Event):
    """A call was answered: `value` is what the cell gets, `error` says that it failed and `reason` of what kind.

    `prompt` is the beginning of what was asked (the digest in `at` stands for the whole).
    """

    kind: ClassVar[str] = "called"
    name: str = ""
    prompt: str = ""
    value: Any = None
    error: str | None = None
    reason: str | None = None
    usage_summary: UsageSummary = UsageSummary()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """A turn is complete. The stream's last event; the turn counts from here on.

    completion: what the caller gets, but for `prompt` where there was no question: that is head and tail of a long
    text, and type and size of any other input, which would else stay in the log as a whole. kept, said: the turn's
    messages are the first `kept` of what its replies and the messages sent for them add up to, and then these.
    """

    kind: ClassVar[str] = "answered"
    completion: RLMChatCompletion = RLMChatCompletion("", None, "")
    kept: int = 0
    said: Sequence[Message] = ()


@dataclass(frozen=True, slots=True)
class Stopped(Event):
    """A turn ended without an answer, by a limit (`reason` names the exception) or because it was cancelled.

    kept, said: as with `Answered`. seconds: that it took, since it was resumed where it was.
    """

    kind: ClassVar[str] = "stopped"
    reason: str = ""
    message: str = ""
    partial_answer: str | None = None
    kept: int = 0
    said: Sequence[Message] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """A turn ended by an exception that is neither a limit nor a cancellation.

    kept, said, seconds: as with `Stopped`.
    """

    kind: ClassVar[str] = "failed"
    error: str = ""
    message: str = ""
    partial_answer: str | None = None
    kept: int = 0
    said: Sequence[Message] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event in its place in a log. number: counts from 0, without gaps. time: seconds since 1970, by the clock of
    the machine that wrote it; it may run backwards, and nothing depends on it."""

    number: int
    time: float
    event: Event


@dataclass(frozen=True, slots=True)
class StoredSession:
    """What a store lists of a session.

    id: never changes. created, updated: seconds since 1970. events: in its log. turns: begun so far. unfinished: the
    last turn has no end. question: the last one. model: its root model.
    """

    id: str
    name: str
    created: float
    updated: float
    events: int
    turns: int = 0
    unfinished: bool = False
    question: str | None = None
    model: str = ""


Listener = Callable[[Event], None]


def _plain(value: Any) -> Any:
    """`value` as JSON can say it, for people and viewers; what has no JSON form becomes its repr."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (RLMChatCompletion, UsageSummary, Usage)):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and isinstance(value, (list, tuple, set, frozenset, Iterator)):
        return [_plain(item) for item in value]
    return repr(value)
