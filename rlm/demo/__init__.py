"""`rlm demo`: a conversation over some 20 MB of real text, each answer compared with a truth that is found another way.

Three turns in one REPL: the sources of Python's standard library, then those of installed distributions, then a
question that only variables of both turns and the history can answer. Without a model's name a script plays the
model, so that it runs anywhere, in seconds, without a key.
"""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rlm.demo.conversation import Report
    from rlm.demo.survival import Survival
    from rlm.narrate import View
    from rlm.ports import Model

__all__ = ["run"]


def run(
    model: str | Model | None = None,
    *,
    sub_model: str | Model | None = None,
    json: bool = False,
    view: View | None = None,
    output: TextIO | None = None,
) -> int:
    """Have the conversation and print it; returns 0 if every answer is right, else 1.

    With the script as its model, the conversation is then had once more by a process that kills itself in turn two and
    another one that goes on: the answers must be the same, and so must the number of requests.

    model: `provider:model` or a Model; None is the script. sub_model: what cells ask, the same model by default. json:
    print one JSON object in the end and nothing else. view: shows the turns in place of the plain lines. output: where
    to print, standard output by default. Raises `ConfigurationError` for a model that cannot be had.
    """
    from rich.console import Console

    from rlm.demo import conversation, corpora, policy
    from rlm.demo.show import Show
    from rlm.models import ScriptedModel, get_model
    from rlm.rlm import RLM
    from rlm.types import Limits

    scripted = ScriptedModel(policy.root, name="scripted", record=False)
    reader = ScriptedModel(policy.sub, name="scripted-sub", record=False)
    root = scripted if model is None else get_model(model)
    if sub_model is None and model is None:
        sub_model = reader
    console = Console(file=output, highlight=False, quiet=json)
    show = Show(console, None if json else view)
    with RLM(root, sub_model=sub_model, limits=Limits(iterations=25, concurrency=16)) as rlm:
        show.opening(root.name, scripted=model is None)
        report = conversation.hold(rlm, root.name, corpora.library(), corpora.packages(), show)
        requests = rlm.session().usage().total_calls
    survival = None
    if model is None and report.matches:
        from rlm.demo.survival import survive

        show.killing()
        survival = survive()
        show.survived(survival, report, requests)
    show.closing(report)
    if json:
        print(jsonlib.dumps(to_dict(report, survival, requests), indent=2), file=output)
    return 0 if report.matches and (survival is None or same(survival, report, requests)) else 1


def same(survival: Survival, report: Report, requests: int) -> bool:
    """Whether the killed conversation came to the same answers, and was asked no more often."""
    return [turn.answer for turn in report.turns] == survival.answers and sum(survival.requests) == requests


def to_dict(report: Report, survival: Survival | None = None, requests: int = 0) -> dict[str, Any]:
    """The report as JSON has it; `ok` says whether every answer is right, `requests` how many there were in all."""
    told = {**asdict(report), "requests": requests}
    for one, turn in zip(told["turns"], report.turns, strict=True):
        one["ok"] = turn.matches
    if survival is not None:
        told["survival"] = {"ok": same(survival, report, requests), **asdict(survival)}
    return {"ok": report.matches and (survival is None or told["survival"]["ok"]), **told}
