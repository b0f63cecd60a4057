"""What holds for every test: nothing is spent, nobody's settings count, and no test fails because a machine is slow."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import settings


@pytest.fixture(autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a store of its own, made when a session is first named."""
    folder = tmp_path_factory.getbasetemp() / f"store-{next(_numbers)}"
    monkeypatch.setenv("RLM_STORE", str(folder))
    return folder


_numbers = itertools.count()


def pytest_configure() -> None:
    for name in list(os.environ):
        if name.endswith("_API_KEY") or name.startswith("RLM_"):
            del os.environ[name]
    settings.register_profile("here", deadline=None)
    if not os.environ.get("CI"):  # there Hypothesis takes its own profile "ci": the same examples in every run
        settings.load_profile("here")
