"""The conversation itself: three turns over one REPL, each answer compared with a truth that another process computes.

It tells a spectator what happens, and gives a report in the end. It prints nothing and knows no scripted model.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rlm.demo import questions
from rlm.demo.corpora import Corpus
from rlm.demo.questions import Question
from rlm.errors import RLMError
from rlm.rlm import RLM
from rlm.session import Session
from rlm.types import Answered, Called, Event, Listener, Ran, Replied, RLMChatCompletion

TRUTH = Path(__file__).with_name("truth.py")
SUB_CALLS = frozenset({"llm_query", "rlm_query"})


@dataclass(frozen=True, slots=True)
class TurnReport:
    """What came of one turn. differences: where the answer is not the truth; none if it is. seconds: of the turn."""

    question: str
    input: str | None
    answer: Any
    truth_from: str
    differences: Sequence[str]
    cells: int
    failed_cells: int
    sub_calls: int
    tokens: int
    cost: float | None
    seconds: float

    @property
    def matches(self) -> bool:
        return not self.differences


@dataclass(frozen=True, slots=True)
class Report:
    """The whole conversation.

    megabytes, characters: of text in all inputs. largest_prompt: tokens of the longest request to the root model.
    variables: from name to type, of what lives in the REPL at the end. error: what ended the conversation early.
    """

    model: str
    turns: Sequence[TurnReport]
    megabytes: float
    characters: int
    largest_prompt: int
    variables: Mapping[str, str]
    seconds: float
    error: str | None = None

    @property
    def matches(self) -> bool:
        return self.error is None and bool(self.turns) and all(turn.matches for turn in self.turns)

    @property
    def cells(self) -> int:
        return sum(turn.cells for turn in self.turns)

    @property
    def sub_calls(self) -> int:
        return sum(turn.sub_calls for turn in self.turns)


class Spectator(Protocol):
    """Is told of the conversation as it goes."""

    def turn(self, number: int, question: Question, corpus: Corpus | None) -> AbstractContextManager[Listener]:
        """Around a turn; what it gives is told of the turn's events."""

    def ended(self, turn: TurnReport) -> None:
        """The turn has an answer."""


@dataclass
class _Tally:
    """What the events of one turn add up to."""

    cells: list[str] = field(default_factory=list)
    failed: int = 0
    sub_calls: int = 0
    largest_prompt: int = 0
    completion: RLMChatCompletion | None = None

    def count(self, event: Event) -> None:
        own = event.at.count("/") == 1  # not a child's
        match event:
            case Ran(code=code, result=result) if own:
                self.cells.append(code)
                self.failed += result.error is not None
            case Called(name=name) if name in SUB_CALLS:
                self.sub_calls += 1
            case Replied(reply=reply) if own:
                self.largest_prompt = max(self.largest_prompt, reply.usage.input_tokens)
            case Answered(completion=completion) if "/" not in event.at:
                self.completion = completion


class Truth:
    """The right answers, from a process of their own that works while the model does."""

    def __init__(self, library: Corpus, packages: Corpus) -> None:
        self._asked = json.dumps(
            {
                "library": {name: str(path) for name, path in library.files.items()},
                "packages": {name: str(path) for name, path in packages.files.items()},
                "licences": dict(packages.licences),
            }
        ).encode()
        self._answers: Any = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-I", "-W", "ignore", str(TRUTH)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us; what becomes of the process is said on leaving
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self._asked)
        self._process.stdin.close()
        self._process.stdin = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def of(self, question: Question) -> Any:
        """The answer to the question. Waits for the process."""
        if self._answers is None:
            told, _ = self._process.communicate()
            if self._process.returncode:
                raise RLMError(f"the truth could not be computed: {TRUTH} ended with {self._process.returncode}")
            self._answers = json.loads(told)
            self._answers["audit"]["first_question"] = questions.REMOVALS.text
        return self._answers[question.name]


def hold(rlm: RLM, model: str, library: Corpus, packages: Corpus, spectator: Spectator) -> Report:
    """Have the conversation. An answer that is wrong ends nothing; a turn that ends without one ends it."""
    started = time.perf_counter()
    turns: list[TurnReport] = []
    largest, error = 0, None
    session = rlm.session()
    inputs = (library, packages, None)
    with Truth(library, packages) as truth:
        for number, (question, corpus) in enumerate(zip(questions.CONVERSATION, inputs, strict=True)):
            tally = _Tally()
            try:
                with spectator.turn(number, question, corpus) as tell:
                    for event in _events(session, question, corpus):
                        tally.count(event)
                        tell(event)
            except RLMError as failure:
                error = f"turn {number + 1} ended without an answer: {type(failure).__name__}: {failure}"
                break
            finally:
                largest = max(largest, tally.largest_prompt)
            turns.append(_judged(question, corpus, tally, truth))
            spectator.ended(turns[-1])
    return Report(
        model=model,
        turns=turns,
        megabytes=sum(corpus.megabytes for corpus in (library, packages)),
        characters=sum(len(text) for corpus in (library, packages) for text in corpus.texts.values()),
        largest_prompt=largest,
        variables=dict(session.variables()),
        seconds=time.perf_counter() - started,
        error=error,
    )


def _events(session: Session, question: Question, corpus: Corpus | None) -> Iterator[Event]:
    if corpus is None:
        return session.stream_ask(question.text, output_type=question.output_type)
    return session.stream(dict(corpus.texts), question.text, output_type=question.output_type)


def _judged(question: Question, corpus: Corpus | None, tally: _Tally, truth: Truth) -> TurnReport:
    completion = tally.completion
    assert completion is not None, "a stream ends with the answer"
    wrong = list(questions.differences(completion.output, truth.of(question)))
    if corpus is None:
        needed = [*(name for one in questions.CONVERSATION for name in one.keeps), "history"]
        wrong += [f"no cell read `{name}`" for name in questions.unused(tally.cells, needed)]
    return TurnReport(
        question=question.text,
        input=corpus.title if corpus else None,
        answer=questions.plain(completion.output),
        truth_from=question.truth_from,
        differences=wrong,
        cells=len(tally.cells),
        failed_cells=tally.failed,
        sub_calls=tally.sub_calls,
        tokens=completion.usage_summary.total.tokens,
        cost=completion.cost,
        seconds=completion.execution_time,
    )
