"""One turn as an async function over a `Host`: ask the model, run its cells, show it what came of them, and again.

There is no other I/O here, no clock and no randomness: over the same answers of its host a turn takes the same way,
which is what makes turns resumable. The transcript is its only state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rlm.engine import cells, prompts
from rlm.errors import ErrorThresholdExceededError, OutputError
from rlm.ports import Host
from rlm.types import CellError, Message, REPLResult

Check = Callable[[str], Any]
"""From an answer's text to the value it stands for; raises `AnswerRejected`."""


class AnswerRejected(Exception):
    """An answer has not the form that was asked for. The message is for the model: where it is wrong, and how."""


@dataclass
class Transcript:
    """The state of a turn, also for whoever has to cut it short.

    messages: system prompt, opening, and what followed; ends with the answer once there is one. partial: the best
    answer so far: the last draft that was not empty, else what the last reply says beside its code. iterations: replies
    before the final request. cells: cells run.
    """

    messages: list[Message]
    partial: str | None = None
    iterations: int = 0
    cells: int = 0
    drafted: bool = False

    def say(self, role: Literal["user", "assistant"], content: str) -> None:
        self.messages.append({"role": role, "content": content})

    def saw(self, result: REPLResult) -> None:
        self.cells += 1
        if result.draft and result.draft.content.strip():
            self.partial, self.drafted = result.draft.content, True


@dataclass(frozen=True, slots=True)
class Outcome:
    """A turn's answer as text, what `check` made of it, and how many iterations it took."""

    response: str
    output: Any
    iterations: int


async def turn(
    host: Host,
    transcript: Transcript,
    *,
    iterations: int,
    errors: int | None = None,
    output_limit: int = 10_000,
    check: Check | None = None,
) -> Outcome:
    """Run a turn to its answer.

    iterations: replies before the final request, which asks for the answer in plain text. errors: failing cells in a
    row that end the turn. output_limit: characters of a stream of output that the model sees. Raises
    `ErrorThresholdExceededError`, `OutputError` (two final answers were rejected), and whatever `host` raises.
    """
    failures = 0
    for left in reversed(range(iterations)):
        codes = cells.extract(await _ask(host, transcript))
        transcript.iterations += 1
        parts = [] if codes else [prompts.no_code()]
        error: CellError | None = None
        for behind, code in zip(reversed(range(len(codes))), codes, strict=True):
            result = await host.run(code)
            transcript.saw(result)
            parts.append(cells.render(transcript.cells, result, output_limit))
            error = result.error
            failures = failures + 1 if error else 0
            if result.final_answer is not None:
                if outcome := _submitted(transcript, parts, result.final_answer, check):
                    return outcome
            elif error is None:
                continue
            if behind:
                parts.append(prompts.skipped(behind))
            break
        transcript.say("user", prompts.feedback(parts if left else [*parts, prompts.final()], left=left))
        if error is not None and errors is not None and failures >= errors:
            raise ErrorThresholdExceededError(
                f"{failures} cells in a row failed, the last by {error.type}; Limits(errors={errors}) allows fewer.",
                error_count=failures,
                threshold=errors,
                last_error=error.text,
                partial_answer=transcript.partial,
            )
    return await _final(host, transcript, check)


def _submitted(transcript: Transcript, parts: list[str], answer: str, check: Check | None) -> Outcome | None:
    """The outcome if the answer is accepted; otherwise why not is added to `parts`, what the model is told next."""
    try:
        output = check(answer) if check else None
    except AnswerRejected as rejected:
        parts.append(prompts.mismatch(str(rejected)))
        return None
    transcript.say("user", "\n\n".join(parts))
    transcript.say("assistant", answer)
    return Outcome(answer, output, transcript.iterations)


async def _final(host: Host, transcript: Transcript, check: Check | None) -> Outcome:
    """The answer as plain text, after the iterations. One that is only code, or not of the form asked for, may be
    corrected once; a draft stands in for one that never comes."""
    why = ""
    for _ in range(2):
        reply = await _ask(host, transcript, "final")
        response = cells.spoken(reply).strip() if cells.prose(reply) else (transcript.partial or "")
        try:
            if not response:
                raise AnswerRejected(prompts.only_text())
            output = check(response) if check else None
        except AnswerRejected as reason:
            why = str(reason)
            transcript.say("user", prompts.mismatch(why))
        else:
            transcript.messages[-1] = {"role": "assistant", "content": response}
            return Outcome(response, output, transcript.iterations)
    raise OutputError(f"No answer of the form asked for: {why}", partial_answer=transcript.partial)


async def _ask(host: Host, transcript: Transcript, purpose: str = "iteration") -> str:
    reply = await host.ask(list(transcript.messages), purpose)
    text = cells.prose(reply.text)
    if text and not transcript.drafted:
        transcript.partial = text
    # Some providers refuse a message without text when it comes back to them.
    transcript.say("assistant", reply.text if reply.text.strip() else "(an empty reply)")
    return reply.text
