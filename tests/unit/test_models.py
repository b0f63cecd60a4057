"""Names of models and what is wrong with them; settings; when to try again; what an error message may say."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.cli.exits import without_keys
from rlm.config import Config, config_path, first_set, load_config, variable
from rlm.errors import ConfigurationError, MissingExtraError, MissingKeyError
from rlm.models import ScriptedModel, get_model
from rlm.models.catalog import EXTRAS, PROVIDERS, SETTINGS, entry_of
from rlm.models.connections import Account
from rlm.models.failures import LONGEST_MESSAGE, Failure, Patience, explain, presentable, provider_message
from rlm.models.providers import ProviderModel, encodable
from rlm.types import Limits, Messages, Price, Reply

# -- names ---------------------------------------------------------------------------------------------------------


def test_a_model_is_returned_as_it_is() -> None:
    class Own:
        name = "own"
        price = None

        async def reply(self, messages: Messages, **settings: Any) -> Reply:
            return Reply("yes", "own")

    model = Own()
    assert get_model(model) is model
    with pytest.raises(ConfigurationError, match="no setting 'latency': it takes its settings where it is made"):
        get_model(ScriptedModel([]), latency=1)


def test_what_is_neither_a_name_nor_a_model_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is no model: a model has a text `name` and an async method `reply`"):
        get_model(42)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "suggestion"),
    [
        ("gpt-5", "openai:gpt-5"),
        ("claude-haiku-4-5", "anthropic:claude-haiku-4-5"),
        ("gemini-2.5-pro", "google:gemini-2.5-pro"),
        (":gpt-5", "openai:gpt-5"),
        ("", "openai:gpt-5"),
    ],
)
def test_a_name_without_a_provider_gets_a_suggestion(spec: str, suggestion: str) -> None:
    with pytest.raises(ConfigurationError, match=f"write provider:model, for example '{suggestion}'"):
        get_model(spec)


def test_an_unknown_provider_is_named_with_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown provider 'antropic'\. Did you mean 'anthropic'\?") as raised:
        get_model("antropic:claude-haiku-4-5")
    assert all(provider in str(raised.value) for provider in (*PROVIDERS, "scripted"))


def test_a_colon_may_be_part_of_a_models_name() -> None:
    model = get_model("ollama:llama3:8b", base_url="http://localhost:11434/v1")
    assert model.name == "ollama:llama3:8b"
    assert Account(model.name, None, None).model == "llama3:8b"


@pytest.mark.parametrize(
    ("spec", "variables"),
    [
        ("openai:gpt-5", "OPENAI_API_KEY"),
        ("anthropic:claude-haiku-4-5", "ANTHROPIC_API_KEY"),
        ("openrouter:openai/gpt-5", "OPENROUTER_API_KEY"),
        ("gateway/openai:gpt-5", "PYDANTIC_AI_GATEWAY_API_KEY or PAIG_API_KEY"),
    ],
)
def test_a_missing_key_is_an_error_at_once_and_names_the_variable(spec: str, variables: str) -> None:
    with pytest.raises(MissingKeyError, match=f"no key. Set the environment variable {variables}, or pass api_key="):
        get_model(spec)


def test_a_provider_that_looks_for_its_key_later_is_asked_before_any_request() -> None:
    with pytest.raises(MissingKeyError, match="Set the environment variable ANTHROPIC_API_KEY"):
        Account("anthropic:claude-haiku-4-5", "http://127.0.0.1:9", None).connect()


def test_a_server_of_ones_own_needs_no_key() -> None:
    for spec in ("openai:local", "vllm:local", "litellm:local"):
        Account(spec, "http://127.0.0.1:9/v1", None).connect()


def test_a_missing_extra_names_the_line_that_installs_it() -> None:
    for extra in EXTRAS:
        assert PROVIDERS[extra].install_line == f"pip install 'rlm-sessions[{extra}]'"
    assert PROVIDERS["xai"].install_line == "pip install 'pydantic-ai-slim[xai]'"

    program = """
import sys
sys.modules["anthropic"] = None  # as good as not installed
from rlm.errors import MissingExtraError
from rlm.models import get_model
try:
    get_model("anthropic:claude-haiku-4-5", api_key="k")
except MissingExtraError as error:
    print(error)
"""
    assert run_python(program).stdout.strip().endswith("not installed: pip install 'rlm-sessions[anthropic]'")


def test_a_provider_outside_the_catalog_is_looked_up_in_pydantic_ai() -> None:
    if importlib.util.find_spec("typesafe") is None:
        with pytest.raises(MissingExtraError, match=r"pip install 'pydantic-ai-slim\[typesafe\]'"):
            get_model("typesafe:x")
    assert get_model("openai-decisions:x", api_key="k").name == "openai-decisions:x"


def test_neither_importing_models_nor_naming_one_loads_what_requests_need() -> None:
    program = """
import sys
from rlm.models import get_model
model = get_model("openai:gpt-5", api_key="k", temperature=0.5)
late = ("pydantic", "pydantic_ai", "openai", "httpx", "httpx2", "genai_prices")
print([name for name in late if name in sys.modules])
assert model.price.input > 0
print("genai_prices" in sys.modules, "pydantic_ai" in sys.modules)
"""
    assert run_python(program).stdout.splitlines() == ["[]", "True False"]


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)


# -- the catalog against pydantic-ai -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_catalog_says_of_a_provider_what_pydantic_ai_says(name: str) -> None:
    from pydantic_ai.providers import infer_provider_class

    entry = PROVIDERS[name]
    try:
        provider = infer_provider_class(name)
    except ImportError:
        assert not entry.is_installed
        return
    source = inspect.getsource(importlib.import_module(provider.__module__))
    assert all(key in source for key in entry.keys)
    assert entry.address is None or entry.address in source
    assert entry.fast_http is None or "http_client" in inspect.signature(provider).parameters


def test_the_common_settings_are_those_of_pydantic_ai() -> None:
    from pydantic_ai.settings import ModelSettings

    assert set(SETTINGS) <= ModelSettings.__annotations__.keys()


def test_a_provider_through_the_gateway_is_the_same_provider_with_the_gateways_key() -> None:
    through, direct = entry_of("gateway/anthropic"), entry_of("anthropic")
    assert through is not None
    assert direct is not None
    assert (through.extra, through.fast_http) == (direct.extra, direct.fast_http)
    assert through.keys != direct.keys


def test_openai_is_asked_by_its_responses_interface_and_others_by_chat_completions() -> None:
    def interface(spec: str, base_url: str | None) -> str:
        return type(Account(spec, base_url, "k").connect().model).__name__

    assert interface("openai:gpt-5", None) == "OpenAIResponsesModel"
    assert interface("openai:gpt-5", "https://api.openai.com/v1") == "OpenAIResponsesModel"
    assert interface("openai:gpt-5", "http://localhost:8000/v1") == "OpenAIChatModel"
    assert interface("openai-responses:gpt-5", "http://localhost:8000/v1") == "OpenAIResponsesModel"


# -- settings ------------------------------------------------------------------------------------------------------


def test_an_unknown_setting_is_named_with_the_nearest_and_the_known_ones() -> None:
    with pytest.raises(ConfigurationError) as raised:
        get_model("openai:gpt-5", api_key="k", temprature=1)
    message = str(raised.value)
    assert message.startswith(
        "openai:gpt-5 has no setting 'temprature'. Did you mean 'temperature'? Known are base_url,"
    )
    assert all(setting in message for setting in SETTINGS)


def test_a_providers_own_settings_are_known() -> None:
    get_model("openai:gpt-5", api_key="k", openai_reasoning_effort="low")
    with pytest.raises(ConfigurationError, match="no setting 'anthropic_cache'"):
        get_model("openai:gpt-5", api_key="k", anthropic_cache=True)


def test_retries_are_set_in_one_place() -> None:
    with pytest.raises(ConfigurationError, match=r"no setting 'max_retries'\. Did you mean 'retries'\?"):
        get_model("openai:gpt-5", api_key="k", max_retries=3)


def test_what_belongs_to_the_account_goes_to_the_provider() -> None:
    account = Account("azure:my-deployment", "https://example.openai.azure.com", "k")
    assert account.take_options({"api_version": "2024-12-01-preview", "temperature": 1}) == {"temperature": 1}
    assert account.connect().model.base_url.startswith("https://example.openai.azure.com")  # type: ignore[union-attr]


def test_a_provider_with_one_address_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"deepseek takes no base_url .* use openai-chat"):
        Account("deepseek:deepseek-chat", "http://localhost:1", "k").connect()


def test_a_providers_own_refusal_is_passed_on() -> None:
    with pytest.raises(ConfigurationError, match=r"azure:x: Must provide .*AZURE_OPENAI_ENDPOINT"):
        Account("azure:x", None, "k").connect()


# -- prices --------------------------------------------------------------------------------------------------------


def test_prices_are_dollars_per_million_tokens() -> None:
    assert get_model("openai:gpt-4o", api_key="k").price == Price(2.5, 10)
    assert get_model("openai-responses:gpt-4o", api_key="k").price == Price(2.5, 10)
    assert get_model("anthropic:claude-haiku-4-5", api_key="k").price == Price(1, 5)


def test_a_price_nobody_knows_is_none_and_can_be_given() -> None:
    assert get_model("openai:no-such-model", api_key="k").price is None
    assert get_model("vllm:local", base_url="http://127.0.0.1:9").price is None
    assert get_model("vllm:local", base_url="http://127.0.0.1:9", price=(0, 0)).price == Price(0, 0)
    assert get_model("openai:gpt-4o", api_key="k", price=Price(1, 2)).price == Price(1, 2)


# -- when to try again ---------------------------------------------------------------------------------------------

failures = st.builds(
    Failure,
    message=st.just("x"),
    again=st.booleans(),
    retry_after=st.none() | st.floats(0, 1e6),
)


@given(
    st.lists(st.tuples(failures, st.floats(0, 1, exclude_max=True)), min_size=10, max_size=20),
    st.integers(0, 8),
    st.floats(0, 300),
)
def test_patience_ends_after_so_many_retries_and_so_many_seconds(
    course: list[tuple[Failure, float]], retries: int, most: float
) -> None:
    patience = Patience(retries, most)
    waited, attempt = 0.0, 0
    for failure, random in course:
        wait = patience.wait(failure, attempt, waited, random)
        if wait is None:
            break
        assert failure.again
        assert wait >= (failure.retry_after or 0)
        attempt, waited = attempt + 1, waited + wait
    assert attempt <= retries
    assert waited <= most


def test_waits_double_with_a_random_half_taken_off() -> None:
    patience, failure = Patience(retries=20, most=math.inf), Failure("x")
    assert [patience.wait(failure, attempt, 0, 0.0) for attempt in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert [patience.wait(failure, attempt, 0, 0.5) for attempt in range(3)] == [0.375, 0.75, 1.5]


def test_a_providers_wish_counts_instead_and_callers_do_not_come_back_together() -> None:
    patience, failure = Patience(), Failure("x", 429, retry_after=20)
    assert patience.wait(failure, 0, 0, 0.0) == 20
    assert patience.wait(failure, 0, 0, 0.5) == 21
    assert patience.wait(failure, 0, 101, 0.0) is None


# -- error messages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"message": "too much"},
        {"error": {"message": "too much", "code": 1}},
        {"type": "error", "error": {"type": "x", "message": "too much"}},
        [{"error": {"message": "too much"}}],
        {"detail": [{"message": "too much"}]},
        "too much",
    ],
)
def test_the_providers_sentence_is_found_wherever_it_is(body: object) -> None:
    assert provider_message(body) == "too much"
    assert provider_message(None) == provider_message({}) == provider_message([]) == provider_message(7) == ""


@given(st.text(), st.text(string.ascii_letters + string.digits + "-_", min_size=12, max_size=60), st.text())
def test_a_message_never_holds_the_key(before: str, key: str, after: str) -> None:
    assert key not in presentable(before + key + after, [key])


@pytest.mark.parametrize("key", ["sk-proj-abcdef0123456789", "sk-abc***wxyz", "Bearer abc.def.ghi", "gsk_abcdefghijkl"])
def test_a_message_never_holds_what_looks_like_a_key(key: str) -> None:
    assert presentable(f"Incorrect key: {key} is wrong") == "Incorrect key: [key] is wrong"


KEYS = {
    "sk-": 20, "sk-proj-": 20, "sk-ant-api03-": 20, "gsk_": 20, "xai-": 20, "nvapi-": 20, "pplx-": 32, "AIzaSy": 33,
    "hf_": 34, "ghp_": 36, "gho_": 36, "github_pat_": 22, "r8_": 37,
}  # fmt: skip


@given(
    st.one_of(
        *(
            st.text(string.ascii_letters + string.digits, min_size=length, max_size=length + 20).map(prefix.__add__)
            for prefix, length in KEYS.items()
        ),
        st.text(string.ascii_uppercase + string.digits, min_size=16, max_size=16).map("AKIA".__add__),
    ),
    st.sampled_from(["", "key=", "'", "x-goog-api-key: ", "https://host/v1?key=", '{"key":"', "\n"]),
    st.sampled_from(["", ".", "'", "&alt=sse", '"}', " is wrong"]),
)
def test_a_token_that_looks_like_a_key_never_survives(key: str, before: str, after: str) -> None:
    assert key not in (shown := without_keys(before + key + after))
    assert key[-8:] not in shown
    assert key[-8:] not in presentable(before + key + after)


@pytest.mark.parametrize("text", ["hf_transfer is missing", "no model pplx-70b-online", "r8_g8_b8_a8_unorm", "AKIAB"])
def test_what_only_begins_like_a_key_is_kept(text: str) -> None:
    assert without_keys(text) == presentable(text) == text


def test_a_long_message_is_cut_and_put_on_one_line() -> None:
    assert presentable("a\n  b") == "a b"
    assert len(presentable("word " * 1000)) == LONGEST_MESSAGE + 1


def test_an_exception_nobody_knows_is_a_response_that_cannot_be_understood() -> None:
    failure = explain(IndexError("list index out of range"))
    assert failure == Failure("the response cannot be understood: list index out of range")
    assert explain(KeyError()).message == "the response cannot be understood: KeyError"


def test_a_refused_answer_is_not_asked_for_again() -> None:
    from pydantic_ai.exceptions import ContentFilterError

    assert explain(ContentFilterError("content filter triggered")) == Failure(
        "content filter triggered", None, again=False
    )


# -- texts ---------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=())))
def test_every_text_can_be_sent(text: str) -> None:
    sent = encodable(text)
    sent.encode()
    if not any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        assert sent == text


def test_a_lone_surrogate_is_sent_as_the_replacement_character() -> None:
    assert encodable("a\ud800b\udfffc") == "a\ufffdb\ufffdc"


def test_a_model_shows_its_name_and_nothing_else() -> None:
    assert repr(get_model("openai:gpt-5", api_key="secret")) == "ProviderModel('openai:gpt-5')"
    assert isinstance(get_model("openai:gpt-5", api_key="secret"), ProviderModel)


# -- config --------------------------------------------------------------------------------------------------------


def test_an_empty_variable_counts_as_not_set() -> None:
    assert variable("X", {"X": ""}) is None
    assert first_set(["X", "Y", "Z"], {"X": "", "Y": "y", "Z": "z"}) == "y"
    assert first_set([], {}) is None


def test_the_config_file_stands_where_the_platform_keeps_such_files() -> None:
    assert config_path({"RLM_CONFIG": "/etc/rlm.toml", "XDG_CONFIG_HOME": "/x"}) == Path("/etc/rlm.toml")
    if sys.platform != "win32":
        assert config_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/rlm/config.toml")
        assert config_path({}) == Path.home() / ".config" / "rlm" / "config.toml"


def test_defaults_come_from_the_file_and_the_environment_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('model = "openai:gpt-5"\nsub_model = "openai:gpt-5-mini"\n[limits]\nusd = 2\ncalls = 500\n')
    assert load_config(file, {}) == Config("openai:gpt-5", "openai:gpt-5-mini", Limits(usd=2, calls=500))
    assert load_config(file, {"RLM_MODEL": "groq:x"}).model == "groq:x"
    assert load_config(environ={"RLM_CONFIG": str(file)}).sub_model == "openai:gpt-5-mini"


def test_without_a_file_nothing_is_set(tmp_path: Path) -> None:
    assert load_config(environ={"XDG_CONFIG_HOME": str(tmp_path), "APPDATA": str(tmp_path)}) == Config()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("modle = 1", "unknown name 'modle'; known are isolation, limits, model, store, sub_model"),
        ("model = 1", "model = 1: give a text such as 'openai:gpt-5'"),
        ("limits = 1", r"limits = 1: give a table \[limits\]"),
        ("[limits]\ndollars = 1", "unknown limit 'dollars'; known are usd, seconds, "),
        ("[limits]\nusd = -1", r"Limits\(usd=-1\): give a number above 0"),
        ("= nonsense", "is not a TOML file"),
    ],
)
def test_a_config_file_that_nobody_understands_is_named_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=reason) as raised:
        load_config(file, {})
    assert str(raised.value).startswith(str(file))


def test_a_config_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_config(tmp_path / "absent.toml", {})
