"""What a sandbox holds: the interpreter, the packages, the paths that a user added; as mounts, and as Landlock's paths.

Nothing else of this machine is in there. Everything is read-only, and stands where it stands outside.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlm.errors import ConfigurationError, SandboxError

SYSTEM: Sequence[str] = (
    *("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32", "/usr/libexec", "/usr/share"),
    *("/usr/local/bin", "/usr/local/lib", "/usr/local/lib64", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime"),
)
NETWORK: Sequence[str] = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services", "/etc/gai.conf", "/etc/ssl/certs"),
    *("/etc/pki/tls/certs", "/etc/ca-certificates"),
)
OF_A_PREFIX = ("bin", "lib", "lib64", "include", "share", "pyvenv.cfg")  # of Python's own folder, which may hold others
FILES = {
    "/etc/passwd": "rlm:x:1000:1000::/tmp/work:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    "/etc/group": "rlm:x:1000:\nnogroup:x:65534:\n",
}
OWN = ("/proc", "/dev", "/tmp/work")  # which each sandbox makes
OFFLINE = {"/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n", "/etc/nsswitch.conf": "hosts: files\n"}
ASK = """import json, site, sys, sysconfig
user = site.getusersitepackages() if site.ENABLE_USER_SITE else None
paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
print(json.dumps([sys.executable, sys.prefix, sys.base_prefix, sorted(paths), user]))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python: its program, the folders it is installed in, and those of its packages."""

    executable: str
    prefix: str
    base_prefix: str
    packages: Sequence[str]
    user_packages: str | None


def interpreter(python: str = sys.executable) -> Interpreter:
    """Where this Python keeps what it needs. Raises `SandboxError` where it cannot be asked."""
    if python == sys.executable:
        user = site.getusersitepackages() if site.ENABLE_USER_SITE else None
        found = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
        return Interpreter(python, sys.prefix, sys.base_prefix, sorted(found), user)
    return _asked(python)


@functools.lru_cache(16)
def _asked(python: str) -> Interpreter:
    try:
        done = subprocess.run([python, "-c", ASK], env={}, capture_output=True, text=True, timeout=30, check=True)
        executable, prefix, base_prefix, packages, user = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise SandboxError(f"{python} cannot be started: {error}") from error
    return Interpreter(executable, prefix, base_prefix, packages, user)


@dataclass(frozen=True, slots=True)
class Plan:
    """mounts: source, target, and "ro", "rw" or "empty" (a folder of its own, in which others are mounted)."""

    mounts: Sequence[tuple[str, str, str]]
    links: Mapping[str, str]
    files: Mapping[str, str]
    path: Sequence[str]

    @property
    def readable(self) -> Sequence[str]:
        """What Landlock lets sessions read: the same, but that it cannot hide a part of what it shows."""
        return [source for source, _, how in self.mounts if how == "ro"]

    @property
    def writable(self) -> Sequence[str]:
        return [source for source, _, how in self.mounts if how == "rw"]


def plan(
    python: Interpreter,
    packages: bool | Sequence[str] = True,
    extra: Mapping[str, str] | None = None,
    network: bool = False,
) -> Plan:
    """What is in there. extra: path -> "ro" or "rw". Raises `ConfigurationError` for what is not on this machine."""
    mounts: dict[str, tuple[str, str]] = {}
    links: dict[str, str] = {}
    for place in (*SYSTEM, *(NETWORK if network else ()), *_of_python(python)):
        _add(place, "ro", mounts, links)
    path = []
    if packages is True:
        if python.user_packages and Path(python.user_packages).is_dir():
            _add(python.user_packages, "ro", mounts, links)
            path.append(python.user_packages)
        for folder in python.packages:
            if not _is_below(folder, mounts):
                _add(folder, "ro", mounts, links)
    else:
        chosen = list(_files_of(packages or (), python)) if packages else []
        for folder in python.packages:
            if Path(folder).is_dir():
                mounts[folder] = ("", "empty")
        for source in chosen:
            mounts[source] = (source, "ro")
    for given, how in (extra or {}).items():
        place = "/" + os.path.normpath(given).lstrip("/")
        if not Path(place).exists():
            raise ConfigurationError(f"extra_paths: {place} is not there")
        if place in ("/", "/tmp") or _is_below(place, OWN):
            raise ConfigurationError(f"extra_paths: a sandbox has a {place} of its own; give what lies elsewhere")
        mounts[place] = (place, how)
    # What lies within something else comes after it, or it would be hidden; nothing is written into what is mounted.
    listed = [(source, target, how) for target, (source, how) in sorted(mounts.items())]
    files = {**FILES, **({} if network else OFFLINE)}
    return Plan(listed, links, {path: text for path, text in files.items() if not _is_below(path, mounts)}, path)


def _of_python(python: Interpreter) -> Iterator[str]:
    for prefix in dict.fromkeys((python.base_prefix, python.prefix)):
        if prefix not in ("/usr", "/usr/local", "/"):  # of which the system's part is there already
            yield from (f"{prefix}/{part}" for part in OF_A_PREFIX)
    real = os.path.realpath(python.executable)
    if not _is_below(real, [*SYSTEM, python.base_prefix, python.prefix]):
        yield real


def _add(place: str, how: str, mounts: dict[str, tuple[str, str]], links: dict[str, str]) -> None:
    if Path(place).is_symlink() and place != "/etc/resolv.conf":  # which often points to where nothing is mounted
        links[place] = str(Path(place).readlink())
    elif Path(place).exists():
        mounts[place] = (os.path.realpath(place), how)


def _is_below(place: str, folders: Iterable[str]) -> bool:
    return any(place == folder or place.startswith(folder.rstrip("/") + "/") for folder in folders)


def _files_of(packages: Sequence[str], python: Interpreter) -> Iterator[str]:
    """What the distributions of these names, and those that they need, have in the folders of packages."""
    places = list(python.packages)
    known = {_normal(found.metadata["Name"]): found for found in importlib.metadata.distributions(path=places)}
    waiting, seen = [*packages], set[str]()
    while waiting:
        name = _normal(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        found = known.get(name)
        if found is None:
            if name in map(_normal, packages):
                raise ConfigurationError(f"packages: {name} is not installed for {python.executable}")
            continue
        waiting += [_name(requirement) for requirement in found.requires or () if "extra ==" not in requirement]
        tops = {Path(str(file)).parts[0] for file in found.files or () if ".." not in Path(str(file)).parts}
        for top in sorted(tops - {"__pycache__"}):
            place = Path(str(found.locate_file(top)))
            if place.exists():
                yield str(place)


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _name(requirement: str) -> str:
    end = next((at for at, sign in enumerate(requirement) if not (sign.isalnum() or sign in "-_.")), len(requirement))
    return requirement[:end]
