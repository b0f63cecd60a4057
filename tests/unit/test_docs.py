"""Every example of the README and the docs runs as printed: with the real OpenAI client, against a loopback server.

The server plays a model that writes cells: it answers a sub-call with a word, and a turn with an answer that fits the
schema it was shown.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.provider_server import Answer, ProviderServer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text())


def play(messages: list[tuple[str, str]]) -> str:
    """A model for any example: one cell that looks, then one that answers."""
    if not any("Recursive Language Model" in text for _, text in messages):
        return "a word"
    asked = next(text for role, text in messages if role == "user")
    answer: Any = "an answer"
    if '"buyer"' in asked:
        answer = {"buyer": "Acme Ltd.", "seller": "Bolt Inc."}
    return f"```repl\nanswer.update(content={answer!r}, ready=True)\n```"


RUNNER = """
import runpy, sys
for example in sys.argv[1:]:
    print("running", example, flush=True)
    runpy.run_path(example, run_name="__main__")
"""


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=lambda page: page.name)
def test_the_examples_run(page: Path, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "app.log").write_text("12:00 db-1 failed\n12:01 web-1 failed\n")
    names = []
    for number, code in enumerate(examples(page)):
        names.append(f"example_{number}.py")
        (tmp_path / names[-1]).write_text(code)

    with ProviderServer(lambda request: Answer(play(request.texts))) as server:
        env = os.environ | {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "none", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", RUNNER, *names]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [page.name for page in PAGES[1:] if f"docs/{page.name}" not in readme]
    assert missing == []


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+\.md)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.name} -> {target}")
    assert broken == []


def test_json_blocks_are_json() -> None:
    for page in PAGES:
        for block in re.findall(r"^```json\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            json.loads(block)
