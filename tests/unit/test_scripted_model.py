"""A scripted model: replies known beforehand, in order, with an estimated usage and whatever price it is given."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.errors import ConfigurationError, ModelError
from rlm.models import ScriptedModel, get_model
from rlm.models.scripted import FREE
from rlm.types import Message, Messages, Price, Reply, Usage


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def ask(model: ScriptedModel, *texts: str) -> list[Reply]:
    async def all_in_turn() -> list[Reply]:
        return [await model.reply(user(text)) for text in texts]

    return asyncio.run(all_in_turn())


def test_a_list_gives_one_reply_a_request_and_keeps_the_requests() -> None:
    model = ScriptedModel(["one", "two"])
    assert [reply.text for reply in ask(model, "a", "b")] == ["one", "two"]
    assert model.requests == [user("a"), user("b")]


def test_a_list_that_is_used_up_says_how_many_replies_it_had() -> None:
    model = ScriptedModel(["only"])
    ask(model, "a")
    with pytest.raises(ModelError, match=r"request 2 has no reply, the script has 1 reply$") as raised:
        ask(model, "b")
    assert raised.value.model == "scripted"


def test_a_function_sees_the_messages_and_may_be_async() -> None:
    def shout(messages: Messages) -> str:
        return messages[-1]["content"].upper()

    async def whisper(messages: Messages) -> str:
        await asyncio.sleep(0)
        return messages[-1]["content"].lower()

    assert ask(ScriptedModel(shout), "Hey")[0].text == "HEY"
    assert ask(ScriptedModel(whisper), "Hey")[0].text == "hey"


def test_a_reply_of_the_script_is_passed_on_as_it_is() -> None:
    dear = Reply("text", "another", Usage(1, 10, 20, 5, cost=3.5))
    assert ask(ScriptedModel([dear]), "a") == [dear]
    assert ask(ScriptedModel(lambda messages: dear), "a") == [dear]


def test_an_exception_of_the_script_reaches_the_caller() -> None:
    def fail(messages: Messages) -> str:
        raise ModelError("the provider is down", model="scripted", status=503)

    with pytest.raises(ModelError, match="the provider is down"):
        ask(ScriptedModel(fail), "a")


def test_what_is_no_reply_is_named() -> None:
    nothing = ScriptedModel(lambda messages: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ModelError, match="the script gave None, not a text or a Reply"):
        ask(nothing, "a")


def test_a_text_is_not_taken_for_a_list_of_replies() -> None:
    with pytest.raises(ConfigurationError, match="give a list of replies, or a function"):
        ScriptedModel("yes")


def test_later_changes_of_a_message_do_not_reach_the_record() -> None:
    model = ScriptedModel(["a"])
    messages = user("before")
    asyncio.run(model.reply(messages))
    messages[0]["content"] = "after"
    assert model.requests == [user("before")]


def test_requests_need_not_be_kept() -> None:
    model = ScriptedModel(lambda messages: "a", record=False)
    ask(model, "x", "y")
    assert model.requests == []


def test_it_is_free_unless_it_is_given_a_price() -> None:
    free = ScriptedModel(["a"])
    assert free.price == FREE == Price(0, 0)
    assert ask(free, "x")[0].usage.cost == 0.0

    dear = ScriptedModel(["four" * 4], price=Price(input=1_000_000, output=2_000_000))
    assert ask(dear, "12345678")[0].usage == Usage(1, input_tokens=2, output_tokens=4, cost=2 + 8)

    unknown = ScriptedModel(["a"], price=None)
    assert unknown.price is None
    assert ask(unknown, "x")[0].usage.cost is None


@given(st.lists(st.text(), max_size=5), st.text())
def test_tokens_are_a_quarter_of_the_characters_rounded_up(contents: list[str], answer: str) -> None:
    messages: list[Message] = [{"role": "user", "content": content} for content in contents]
    usage = asyncio.run(ScriptedModel([answer]).reply(messages)).usage
    assert 0 <= usage.input_tokens * 4 - sum(map(len, contents)) < 4
    assert 0 <= usage.output_tokens * 4 - len(answer) < 4


def test_without_latency_no_other_task_runs_in_between() -> None:
    async def uninterrupted() -> list[str]:
        seen: list[str] = []
        other = asyncio.create_task(asyncio.sleep(0))
        other.add_done_callback(lambda _: seen.append("another task"))
        seen.append((await ScriptedModel(["the reply"]).reply(user("a"))).text)
        await other
        return seen

    assert asyncio.run(uninterrupted())[0] == "the reply"


def test_replies_with_latency_come_concurrently_and_in_the_order_of_the_requests() -> None:
    model = ScriptedModel([str(number) for number in range(50)], latency=0.01)

    async def all_at_once() -> Sequence[Reply]:
        return await asyncio.gather(*(model.reply(user(str(number))) for number in range(50)))

    assert [reply.text for reply in asyncio.run(all_at_once())] == [str(number) for number in range(50)]


def test_requests_from_several_threads_each_get_a_reply_of_their_own() -> None:
    model = ScriptedModel([str(number) for number in range(400)])
    given: list[str] = []

    def work() -> None:
        given.extend(reply.text for reply in ask(model, *["x"] * 100))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given, key=int) == [str(number) for number in range(400)]


# -- by name -------------------------------------------------------------------------------------------------------


def echo(messages: Messages) -> str:
    return messages[-1]["content"]


REPLIES = ["first", "second"]
MODEL = ScriptedModel(["made in the module"], name="mine")


def test_a_function_is_named_by_module_and_name() -> None:
    model = get_model(f"scripted:{__name__}:echo", latency=0.001)
    assert model.name == f"scripted:{__name__}:echo"
    reply = asyncio.run(model.reply(user("hello")))
    assert (reply.text, reply.model) == ("hello", model.name)


def test_a_list_and_a_model_can_be_named_too() -> None:
    assert asyncio.run(get_model(f"scripted:{__name__}:REPLIES").reply(user("a"))).text == "first"
    assert get_model(f"scripted:{__name__}:MODEL") is MODEL


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("scripted:just_a_module", r"write scripted:package\.module:function"),
        ("scripted:no_such_module_anywhere:reply", "No module named 'no_such_module_anywhere'"),
        (f"scripted:{__name__}:absent", "has no attribute 'absent'"),
    ],
)
def test_a_script_that_cannot_be_loaded_says_why(spec: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        get_model(spec)


def test_a_script_refuses_settings_that_mean_nothing_to_it() -> None:
    with pytest.raises(ConfigurationError, match=r"no setting 'temperature': it has latency, price, record"):
        get_model(f"scripted:{__name__}:echo", temperature=1)
