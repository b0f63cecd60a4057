"""What holds for every test: nothing is spent, nobody's settings count, and no test fails because a machine is slow."""

from __future__ import annotations

import os

from hypothesis import settings


def pytest_configure() -> None:
    for name in list(os.environ):
        if name.endswith("_API_KEY") or name.startswith("RLM_"):
            del os.environ[name]
    settings.register_profile("here", deadline=None)
    if not os.environ.get("CI"):  # there Hypothesis takes its own profile "ci": the same examples in every run
        settings.load_profile("here")
