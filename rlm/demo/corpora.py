"""The two inputs of the demo, both found on the machine: the standard library, and distributions installed with rlm.

A corpus is a mapping from a name to a file's text, as `Path(folder)` would give it, without what nobody would read. It
also says where its files are, so that the truth can be computed from the files themselves. Nothing is downloaded.
"""

from __future__ import annotations

import os
import platform
import re
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rlm import inputs
from rlm.errors import ConfigurationError

LIBRARY_SIZE = 10_000_000  # bytes that the first corpus has at least; its tests come along where it is smaller
PACKAGES_SIZE = 10_000_000  # bytes that the second corpus has at most: parsing them takes a few seconds
TESTS = frozenset({"test", "tests", "idle_test"})
FOREIGN = frozenset({"site-packages", "dist-packages", "__pycache__"})
DISTRIBUTION = "rlm-sessions"

# How distributions declare the licences that the demo asks for: SPDX expressions, the older field, and classifiers. One
# that declares another, several, or none is left out, since its licence has no truth to check an answer against.
DECLARED = {
    "Apache": {
        "Apache-2.0",
        "Apache 2.0",
        "Apache License 2.0",
        "Apache License, Version 2.0",
        "Apache Software License",
    },
    "BSD": {"BSD-2-Clause", "BSD-3-Clause", "BSD", "BSD License"},
    "GPL": {"GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later"},
    "ISC": {"ISC", "ISC License", "ISC License (ISCL)"},
    "LGPL": {"LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later"},
    "MIT": {"MIT", "MIT License"},
    "MPL": {"MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)"},
    "PSF": {"PSF-2.0", "Python Software Foundation License"},
}
_LICENCE_FILE = re.compile(r"(?i)[^/]+\.dist-info/(?:licenses/)?(?:licen[cs]e|copying)[^/]*")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Real text. files: name -> place on disk. texts: name -> text (bytes where it is not UTF-8). size: in bytes."""

    title: str
    files: Mapping[str, Path]
    texts: Mapping[str, str | bytes]
    size: int
    licences: Mapping[str, str]

    @property
    def megabytes(self) -> float:
        return self.size / 1e6


# -- the standard library ------------------------------------------------------------------------------------------


def library() -> Corpus:
    """The sources of this Python's standard library, its tests left out where the rest is large enough."""
    root = Path(sysconfig.get_path("stdlib"))
    files = {path.relative_to(root).as_posix(): path for path in _sources(root)}
    lean = {name: path for name, path in files.items() if TESTS.isdisjoint(name.split("/"))}
    chosen = lean if sum(path.stat().st_size for path in lean.values()) >= LIBRARY_SIZE else files
    if not chosen:
        raise ConfigurationError(
            f"{root} has no Python sources: the demo reads the standard library's. This Python came without them; "
            "use another one"
        )
    tests = "" if chosen is lean else " with its tests"
    return _corpus(f"the standard library of Python {platform.python_version()}{tests}", chosen, {})


def _sources(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - FOREIGN)
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def _corpus(title: str, files: Mapping[str, Path], licences: Mapping[str, str]) -> Corpus:
    texts = {name: inputs.read_file(path) for name, path in files.items()}
    return Corpus(title, files, texts, sum(path.stat().st_size for path in files.values()), licences)


# -- installed distributions ---------------------------------------------------------------------------------------


def packages() -> Corpus:
    """Sources and licence text of distributions that declare one licence: what rlm needs, the smallest first.

    The declarations themselves are kept out of `texts`: `licences` has them, from a distribution to its licence.
    """
    files: dict[str, Path] = {}
    licences: dict[str, str] = {}
    size = 0
    for weight, name, paths, licence in sorted(_candidates(), key=lambda candidate: candidate[:2]):
        if size + weight <= PACKAGES_SIZE:
            files |= paths
            licences[name] = licence
            size += weight
    if len(licences) < 3:
        raise ConfigurationError(
            f"only {len(licences)} installed distributions come with sources and the text of a licence that they "
            f"declare; the demo reads them. Install this one with its dependencies: pip install {DISTRIBUTION}"
        )
    return _corpus(f"{len(licences)} distributions installed beside rlm", files, licences)


def _candidates() -> Iterator[tuple[int, str, dict[str, Path], str]]:
    """Size, name, files and declared licence of each distribution that can be asked about."""
    for distribution in _needed():
        name, licence = distribution.name, declared(distribution.metadata)
        paths = [path for path in distribution.files or [] if ".." not in path.parts]
        terms = [path for path in paths if _LICENCE_FILE.fullmatch(path.as_posix())]
        sources = [path for path in paths if path.suffix == ".py"]
        if licence is None or len(terms) != 1 or not sources:
            continue
        places = {f"{name}/{path.as_posix()}": Path(str(path.locate())) for path in sources}
        places[f"{name}/{terms[0].name}"] = Path(str(terms[0].locate()))
        found = {key: place for key, place in places.items() if place.is_file()}
        yield sum(place.stat().st_size for place in found.values()), name, found, licence


def _needed() -> Sequence[metadata.Distribution]:
    """What rlm needs, and what that needs, as far as it is installed; all distributions where rlm itself is none."""
    installed = {_normal(one.name): one for one in metadata.distributions() if one.metadata["Name"]}
    waiting, found = [_normal(DISTRIBUTION)], dict[str, metadata.Distribution]()
    while waiting:
        name = waiting.pop()
        if name in installed and name not in found:
            found[name] = installed[name]
            waiting += [_normal(requirement) for requirement in installed[name].requires or []]
    found.pop(_normal(DISTRIBUTION), None)
    return list((found or installed).values())


def _normal(requirement: str) -> str:
    """The name that a requirement begins with, as names of distributions are compared."""
    name = re.match(r"[\w.-]*\w", requirement)
    return re.sub(r"[-_.]+", "-", name[0] if name else "").lower()


def declared(about: metadata.PackageMetadata) -> str | None:
    """The licence that a distribution's metadata declare, None where that is not one of `DECLARED`."""
    classifiers = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line[:7] == "License"]
    statements = [about["License-Expression"]] if about["License-Expression"] else [about["License"], *classifiers]
    families = {_family(statement) for statement in statements if statement}
    return families.pop() if len(families) == 1 else None


def _family(statement: str) -> str | None:
    return next((family for family, names in DECLARED.items() if statement.strip() in names), None)
