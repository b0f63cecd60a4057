"""Where this package keeps what users leave to it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlm.config import store_folder


def test_the_store_is_where_rlm_store_says() -> None:
    assert store_folder({"RLM_STORE": "/data/sessions", "XDG_DATA_HOME": "/elsewhere"}) == Path("/data/sessions")
    assert store_folder({"RLM_STORE": "~/sessions"}) == Path.home() / "sessions"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="what freedesktop.org says holds on neither")
def test_the_store_is_beside_the_data_of_other_programs() -> None:
    assert store_folder({"XDG_DATA_HOME": "/data"}) == Path("/data/rlm")
    assert store_folder({"RLM_STORE": "", "XDG_DATA_HOME": ""}) == Path.home() / ".local" / "share" / "rlm"


@pytest.mark.skipif(sys.platform != "darwin", reason="only macOS has such a folder")
def test_the_store_is_where_macos_keeps_data() -> None:
    assert store_folder({}) == Path.home() / "Library" / "Application Support" / "rlm"
