"""What `import rlm` costs its importer, and what an installation brings."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]

# Seconds of import time, most of which a program that only configures an RLM never needs.
FIRST_USE = {
    "aiohttp",
    "anthropic",
    "cloudpickle",
    "genai_prices",
    "httpx",
    "httpx2",
    "numpy",
    "openai",
    "prompt_toolkit",
    "pydantic",
    "pydantic_ai",
    "rich",
    "typer",
}


def in_fresh_python(code: str) -> object:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_import_loads_nothing_that_can_wait() -> None:
    loaded = in_fresh_python(
        "import sys; before = set(sys.modules); import rlm, json; print(json.dumps([*{*sys.modules} - before]))"
    )
    assert isinstance(loaded, list)
    assert "rlm" in loaded
    assert not FIRST_USE & {name.split(".")[0] for name in loaded}


def test_import_leaves_the_process_as_it_was() -> None:
    state = "[os.getcwd(), dict(os.environ), threading.active_count(), str(sys.stdout), str(signal.getsignal(2))]"
    before, after = in_fresh_python(
        "import json, os, signal, sys, threading\n"
        f"before = {state}\nimport rlm\nafter = {state}\nprint(json.dumps([before, after]))"
    )
    assert before == after


def test_wheel_holds_the_whole_package(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("rlm/")}
    assert packed == {
        str(path.relative_to(CHECKOUT))
        for path in (CHECKOUT / "rlm").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {"rlm/py.typed", "rlm/environments/worker.py"} <= packed
