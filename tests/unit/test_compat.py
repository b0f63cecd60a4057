"""The constructor that existing RLM code uses: every one of its names means something here, or is refused by name."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import pytest

from rlm import RLM, Limits, ScriptedModel, compat
from rlm.compat import Callbacks, Older
from rlm.errors import BudgetExceededError, ConfigurationError
from rlm.models import catalog
from rlm.types import Called, Calling, Price, Reply, Usage
from tests.turns import by_task, cell, opening, submission, submit

KEY = {"api_key": "a-key-of-the-tests"}
OPENAI = {"model_name": "gpt-4o-mini", **KEY}


def translated(model: Any = "scripted:nowhere:x", **older: Any) -> compat.Given:
    return compat.translate(model, None, None, (), None, None, None, None, older)  # type: ignore[arg-type]


# -- models --------------------------------------------------------------------------------------------------------


def test_a_backend_and_its_kwargs_name_a_model() -> None:
    given = translated(None, backend="openai", backend_kwargs=OPENAI)
    assert given.model.name == "openai:gpt-4o-mini"


def test_the_backend_may_stand_first_without_its_name() -> None:
    rlm = RLM("openai", backend_kwargs=OPENAI)
    assert rlm.completion is not None
    assert translated("openai", backend_kwargs=OPENAI).model.name == "openai:gpt-4o-mini"


@pytest.mark.parametrize("backend", ["anthropic", "openrouter", "litellm", "vercel"])
def test_backends_are_providers(backend: str) -> None:
    assert translated(backend, backend_kwargs={"model_name": "m", **KEY}).model.name == f"{backend}:m"


def test_backends_of_another_name_are_providers_too() -> None:
    assert set(compat.PROVIDERS.values()) <= set(catalog.PROVIDERS)
    with pytest.raises(ConfigurationError, match="google"):
        translated(None, backend="gemini", backend_kwargs={"model_name": "m", "nonsense": 1})


def test_sampling_args_within_backend_kwargs_reach_the_model() -> None:
    kwargs = {**OPENAI, "sampling_args": {"temperature": 0.5}}
    assert translated(None, backend="openai", backend_kwargs=kwargs).model.name == "openai:gpt-4o-mini"
    with pytest.raises(ConfigurationError, match="temprature"):
        translated(None, backend="openai", backend_kwargs={**OPENAI, "sampling_args": {"temprature": 0.5}})


def test_other_backends_are_the_models_of_sub_calls() -> None:
    given = translated(
        None,
        backend="openai",
        backend_kwargs=OPENAI,
        other_backends=["openai", "anthropic"],
        other_backend_kwargs=[{"model_name": "gpt-5-nano", **KEY}, {"model_name": "claude-haiku-4-5", **KEY}],
    )
    assert [model.name for model in given.sub_models] == ["openai:gpt-5-nano", "anthropic:claude-haiku-4-5"]


@pytest.mark.parametrize(
    ("model", "older", "said"),
    [
        (None, {}, "RLM() needs a model"),
        ("openai", {}, "backend='openai' needs backend_kwargs={'model_name': …}; or name both: RLM('openai:model')"),
        ("gemini", {}, "backend='gemini' needs backend_kwargs"),
        (None, {"backend": "openai", "backend_kwargs": KEY}, "backend='openai' needs backend_kwargs={'model_name': …}"),
        ("openai:gpt-5", {"backend": "openai"}, "backend= and a model: give one of them"),
        ("openai:gpt-5", {"backend_kwargs": OPENAI}, "backend_kwargs= goes with backend="),
        ("openai", {"backend_kwargs": OPENAI, "other_backends": ["openai"]}, "must have the same length"),
        ("openai", {"backend_kwargs": OPENAI, "other_backend_kwargs": [OPENAI]}, "goes with other_backends="),
    ],
)
def test_models_that_are_named_half_or_twice_are_refused(model: Any, older: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RLM(model, **older)
    assert said in str(caught.value)


def test_a_model_without_its_provider_is_told_how_to_write_it() -> None:
    with pytest.raises(ConfigurationError, match="write provider:model, for example 'openai:gpt-5'"):
        RLM("gpt-5")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="portkey"):
        RLM(backend="portkey", backend_kwargs={"model_name": "m"})


# -- limits --------------------------------------------------------------------------------------------------------


def test_each_maximum_is_a_limit() -> None:
    given = translated(
        max_depth=2,
        max_iterations=7,
        max_budget=1.5,
        max_timeout=60.0,
        max_tokens=1_000,
        max_errors=3,
        max_concurrent_subcalls=4,
    )
    assert given.limits == Limits(usd=1.5, seconds=60.0, iterations=7, depth=2, tokens=1_000, errors=3, concurrency=4)


def test_maxima_of_none_are_no_limits() -> None:
    assert translated(max_budget=None, max_timeout=None, max_tokens=None, max_errors=None).limits == Limits()


def test_a_maximum_beside_limits_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"max_budget= and limits=: .*limits=Limits\(usd=…\)"):
        RLM(ScriptedModel([]), limits=Limits(calls=5), max_budget=1.0)


# -- the rest ------------------------------------------------------------------------------------------------------


def look() -> None:
    """Nothing."""


@pytest.mark.parametrize(
    ("theirs", "ours", "value"),
    [
        ("custom_tools", "tools", {"look": look}),
        ("custom_sub_tools", "sub_tools", {}),
        ("custom_system_prompt", "system_prompt", "You are."),
        ("sampling_args", "settings", {"temperature": 0.0}),
        ("sub_sampling_args", "sub_settings", {"temperature": 0.0}),
    ],
)
def test_older_names_mean_ours_and_both_at_once_are_refused(theirs: str, ours: str, value: Any) -> None:
    assert getattr(translated(**{theirs: value}), ours) == value
    with pytest.raises(ConfigurationError, match=f"{theirs}= and {ours}= mean the same"):
        RLM(ScriptedModel([]), **{theirs: value, ours: value})


def test_other_backends_and_a_sub_model_are_refused_together() -> None:
    with pytest.raises(ConfigurationError, match="other_backends= and sub_model= mean the same"):
        RLM(ScriptedModel([]), sub_model=ScriptedModel([]), other_backends=["openai"], other_backend_kwargs=[OPENAI])


def test_an_empty_list_of_sub_models_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="name at least one model"):
        RLM(ScriptedModel([]), sub_model=[])


@pytest.mark.parametrize("older", [{"compaction": True}, {"compaction_threshold_pct": 0.85}])
def test_compaction_is_refused_by_name(older: Older) -> None:
    with pytest.raises(ConfigurationError, match="compaction= is not available"):
        RLM(ScriptedModel([]), **older)


def test_no_compaction_is_what_there_is() -> None:
    RLM(ScriptedModel([]), compaction=False)


def test_an_unknown_name_is_refused_and_not_ignored() -> None:
    with pytest.raises(ConfigurationError, match=r"RLM\(\) has no argument 'max_bugdet'"):
        RLM(ScriptedModel([]), max_bugdet=1.0)  # type: ignore[call-arg]


def test_every_name_of_the_older_constructor_is_known() -> None:
    theirs = """backend backend_kwargs depth max_depth max_iterations max_budget max_timeout max_tokens max_errors
        custom_system_prompt other_backends other_backend_kwargs logger verbose custom_tools custom_sub_tools compaction
        compaction_threshold_pct max_concurrent_subcalls on_subcall_start on_subcall_complete on_iteration_start
        on_iteration_complete sampling_args sub_sampling_args orchestrator user_prologue"""
    assert set(Older.__annotations__) == set(theirs.split())


def test_a_prologue_opens_each_turn_and_the_strategy_can_be_left_out() -> None:
    model = ScriptedModel([submit("1"), submit("2")])
    with RLM(model, persistent=True, user_prologue="Be brief.", orchestrator=False) as rlm:
        rlm.completion("a", "?")
        rlm.completion("b", "?")
    assert all(opening(request).startswith("Be brief.\n\n") for request in model.requests)
    assert "How to work" not in model.requests[0][0]["content"]


def test_a_system_prompt_takes_the_place_of_ours_and_gets_the_tools() -> None:
    model = ScriptedModel([submit("1")])
    prompt = "You are a pirate.\n{custom_tools_section}\nArr."
    RLM(model, custom_system_prompt=prompt, custom_tools={"look": look}).completion("a", "?")
    said = model.requests[0][0]["content"]
    assert said == "You are a pirate.\nAlso defined for this task:\n- `look() -> None`: Nothing.\nArr."


def test_sampling_args_go_to_the_root_and_those_of_sub_calls_to_sub_calls() -> None:
    class Remembering(ScriptedModel):
        settings: list[Mapping[str, Any]]

        async def reply(self, messages: Any, **settings: Any) -> Reply:
            self.settings.append(settings)
            return await super().reply(messages, **settings)

    root, sub = Remembering([submit("llm_query('x')")]), Remembering(["sub"])
    root.settings, sub.settings = [], []
    RLM(root, sub_model=sub, sampling_args={"temperature": 0.1}, sub_sampling_args={"top_p": 0.2}).completion("a", "?")
    assert (root.settings, sub.settings) == ([{"temperature": 0.1}], [{"top_p": 0.2}])


# -- listeners -----------------------------------------------------------------------------------------------------


class Recorder:
    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.told.append((name, *args))


def test_a_logger_is_told_of_each_recorded_event_as_plain_data() -> None:
    logged: list[dict[str, Any]] = []

    class Logger:
        def log(self, event: Mapping[str, Any]) -> None:
            logged.append(json.loads(json.dumps(event)))

    RLM(ScriptedModel([submit("llm_query('x')"), "sub"]), logger=Logger()).completion("a", "?")
    assert [event["kind"] for event in logged] == [
        "asked",
        "context",
        "briefed",
        "replied",
        "called",
        "ran",
        "answered",
    ]
    assert logged[-1]["completion"]["response"] == "sub"


def test_a_logger_without_log_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"has no method log\(event\)"):
        RLM(ScriptedModel([]), logger=object())  # type: ignore[arg-type]


def test_verbose_tells_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    RLM(ScriptedModel([submit("40 + 2")]), verbose=True).completion("a", "How much?")
    out, err = capsys.readouterr()
    assert out == ""
    assert "t0 scripted: How much?" in err
    assert err.splitlines()[-1].lstrip().startswith("answer (")


def test_the_four_callbacks_are_called_around_iterations_and_children() -> None:
    seen = Recorder()
    model = by_task(
        {
            "What?": [cell("a = rlm_query('Task: child')"), submit("a")],
            "child": submit("'from the child'"),
        }
    )
    rlm = RLM(
        model,
        max_depth=2,
        on_subcall_start=seen.subcall_start,
        on_subcall_complete=seen.subcall_complete,
        on_iteration_start=seen.iteration_start,
        on_iteration_complete=seen.iteration_complete,
    )
    assert rlm.completion("a", "What?").response == "from the child"
    assert [one[:3] for one in seen.told] == [
        ("iteration_start", 0, 0),
        ("subcall_start", 1, "scripted"),
        ("iteration_start", 1, 0),
        ("iteration_complete", 1, 0),
        ("subcall_complete", 1, "scripted"),
        ("iteration_complete", 0, 0),
        ("iteration_start", 0, 1),
        ("iteration_complete", 0, 1),
    ]
    assert seen.told[1][3] == "Task: child"
    seconds, error = seen.told[4][3:]
    assert seconds >= 0
    assert error is None


def test_a_failing_child_tells_its_error_and_a_turn_that_is_cut_short_completes_its_iteration() -> None:
    seen = Recorder()
    model = by_task({"What?": [cell("print(rlm_query('Task: child'))"), "no more"], "child": [cell("1"), cell("2")]})
    rlm = RLM(
        model,
        max_depth=2,
        limits=None,
        max_iterations=3,
        on_subcall_complete=seen.subcall_complete,
        on_iteration_start=seen.iteration_start,
        on_iteration_complete=seen.iteration_complete,
    )
    with pytest.raises(IndexError):
        rlm.completion("a", "What?")
    assert [one[0] for one in seen.told].count("iteration_start") == 6
    assert [one[0] for one in seen.told].count("iteration_complete") == 6
    [complete] = [one for one in seen.told if one[0] == "subcall_complete"]
    assert "IndexError" in complete[4]


def test_callbacks_do_not_mix_up_sessions_that_run_at_once() -> None:
    seen = Recorder()
    older: Older = {"on_iteration_start": seen.start, "on_iteration_complete": seen.complete}
    rlm = RLM(ScriptedModel([submit("1")] * 8), **older)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: rlm.completion(f"input {n}", "?"), range(8)))
    assert sorted(one[0] for one in seen.told) == ["complete"] * 8 + ["start"] * 8


def test_callbacks_take_a_plain_sub_call_for_no_child_and_a_named_model_for_the_childs() -> None:
    seen = Recorder()
    callbacks = Callbacks({"on_subcall_start": seen.start}, Limits(depth=2), 0, "default")
    callbacks(Calling("t0/c0/rlm_query:a#0", "rlm_query", "p" * 100, "big"))
    callbacks(Calling("t0/c0/rlm_query:a#0/c0/rlm_query:b#0", "rlm_query", "a plain call", None))
    callbacks(Calling("t0/c0/llm_query:a#0", "llm_query", "a plain call", None))
    callbacks(Called("t0/c0/rlm_query:a#0", "rlm_query"))
    assert seen.told == [("start", 1, "big", "p" * 80)]


def test_a_callback_that_raises_does_not_end_the_turn(caplog: pytest.LogCaptureFixture) -> None:
    def fail(depth: int, number: int) -> None:
        raise RuntimeError("a callback's own trouble")

    with caplog.at_level(logging.ERROR, "rlm"):
        assert RLM(ScriptedModel([submit("1")]), on_iteration_start=fail).completion("a", "?").response == "1"
    assert "a callback's own trouble" in caplog.text


def test_callbacks_have_been_called_when_a_limit_is_raised() -> None:
    seen = Recorder()
    reply = Reply(cell("1"), "scripted", Usage(calls=1, cost=1.0))
    model = ScriptedModel([reply] * 3, price=Price(1, 1))
    rlm = RLM(model, max_budget=1.5, on_iteration_start=seen.start, on_iteration_complete=seen.complete)
    with pytest.raises(BudgetExceededError):
        rlm.completion("a", "?")
    assert [one[:3] for one in seen.told] == [(kind, 0, n) for n in range(3) for kind in ("start", "complete")]


def test_the_submission_of_a_turn_ends_its_last_iteration() -> None:
    seen = Recorder()
    rlm = RLM(ScriptedModel([cell(submission("'x'"))]), on_iteration_complete=seen.complete)
    rlm.completion("a", "?")
    assert [one[:3] for one in seen.told] == [("complete", 0, 0)]
