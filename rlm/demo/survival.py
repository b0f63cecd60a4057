"""The conversation once more, in a durable session, with a process that kills itself in the middle of it.

The same program runs twice: the first process ends by SIGKILL in turn two, the second one opens the session, gets what
is on record for nothing, and finishes. Each request is written down where it is made, so that what was asked in all can
be compared with a run that nobody interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlm.demo import corpora, policy, questions
from rlm.errors import RLMError
from rlm.models import ScriptedModel
from rlm.rlm import RLM
from rlm.types import Limits, Messages

LIMITS = Limits(iterations=25, concurrency=16)
DIES_IN, DIES_AT = "`context_1`", 3  # the turn whose input this is, and the replies of it that came before


@dataclass(frozen=True, slots=True)
class Survival:
    """What came of it. requests: made by the first process, and by the second. answers: of the three turns.

    pid: of the killed process. from_record: turns that cost the second process nothing. seconds: of both processes.
    """

    pid: int
    requests: tuple[int, int]
    answers: Sequence[Any]
    from_record: int
    resumed: bool
    seconds: float


def survive() -> Survival:
    """Have the conversation, be killed, and go on. Raises `RLMError` where a process ends otherwise."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="rlm-demo-") as folder:
        first = _process(folder, "die")
        if first.returncode != -signal.SIGKILL:
            raise RLMError(f"the process that was to be killed ended with {first.returncode}: {first.stderr[-500:]}")
        before = _metered(folder)
        second = _process(folder, "live")
        if second.returncode:
            raise RLMError(f"the process that was to go on ended with {second.returncode}: {second.stderr[-500:]}")
        told = json.loads(second.stdout)
        pid = int(Path(folder, "pid").read_text())
        requests = (before, _metered(folder) - before)
    return Survival(pid, requests, told["answers"], told["from_record"], told["resumed"], time.perf_counter() - started)


def _process(folder: str, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", __name__, folder, how]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _metered(folder: str) -> int:
    return Path(folder, "requests").stat().st_size


class Metered:
    """A script's replies, each request written down before it is answered."""

    def __init__(self, script: Any, meter: int, dies: bool = False) -> None:
        self._script, self._meter, self._dies = script, meter, dies

    def __call__(self, messages: Messages) -> str:
        said = sum(message["role"] == "assistant" for message in messages)
        if self._dies and said == DIES_AT and f"This turn's input: {DIES_IN}" in messages[1]["content"]:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(self._meter, b".")
        reply: str = self._script(messages)
        return reply


def converse(folder: Path, dies: bool) -> Mapping[str, Any]:
    """The conversation as any program would have it that may be run again: each question has a key."""
    meter = os.open(folder / "requests", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    root = ScriptedModel(Metered(policy.root, meter, dies), name="scripted", record=False)
    sub = ScriptedModel(Metered(policy.sub, meter), name="scripted-sub", record=False)
    texts = [dict(corpora.library().texts), dict(corpora.packages().texts)]
    with RLM(root, sub_model=sub, limits=LIMITS, store=folder / "store") as rlm, rlm.session("demo") as session:
        resumed = session.unfinished is not None
        known = session.turns - resumed
        answers = []
        for number, question in enumerate(questions.CONVERSATION):
            given: dict[str, Any] = {"key": question.name, "output_type": question.output_type}
            if number < len(texts):
                completion = session.completion(texts[number], question.text, **given)
            else:
                completion = session.ask(question.text, **given)
            answers.append(questions.plain(completion.output))
    return {"answers": answers, "from_record": known, "resumed": resumed}


def main(folder: str, how: str) -> None:
    if how == "die":
        Path(folder, "pid").write_text(str(os.getpid()))
    print(json.dumps(converse(Path(folder), dies=how == "die")))


if __name__ == "__main__":
    main(*sys.argv[1:])
