"""What a listing says of a session, as a fold over its events, so that listing a thousand of them reads no log.

The same for every store. Events of children, whose place in the tree of calls has a slash, change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rlm.types import Answered, Asked, Event, Failed, Opened, Stopped

LONGEST = 1_000  # characters of a question


@dataclass(frozen=True, slots=True)
class Summary:
    """turns: begun so far. unfinished, question: of the last one, which has no end; cut where it is long."""

    turns: int = 0
    unfinished: bool = False
    question: str | None = None
    model: str = ""

    def after(self, events: Iterable[Event]) -> Summary:
        """This summary with more events; the receiver is unchanged."""
        turns, unfinished, question, model = self.turns, self.unfinished, self.question, self.model
        for event in events:
            if "/" in event.at:
                continue
            if isinstance(event, Asked):
                turns, unfinished, question = turns + 1, True, _cut(event.question)
            elif isinstance(event, (Answered, Stopped, Failed)):
                unfinished = False
            elif isinstance(event, Opened):
                model = event.model
        return Summary(turns, unfinished, question, model)


def _cut(question: str | None) -> str | None:
    return question if question is None or len(question) <= LONGEST else question[: LONGEST - 1] + "…"
