"""What stands in a sandbox: an interpreter, packages by choice, added paths, and nothing else of the machine."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest

from rlm.environments.sandbox.plan import Interpreter, Plan, interpreter, plan
from rlm.errors import ConfigurationError, SandboxError


@pytest.fixture
def python(tmp_path: Path) -> Interpreter:
    """A Python of its own, with five distributions."""
    base = tmp_path / "opt" / "python"
    packages = base / "lib" / "python3.12" / "site-packages"
    for folder in (base / "bin", base / "share", base / "include", base / "secrets", packages):
        folder.mkdir(parents=True)
    (base / "bin" / "python").touch()
    install(packages, "Web_App", ["flask_like>=2; python_version > '3'", "gone-for-good; sys_platform == 'win32'"])
    install(packages, "flask.like", ["Tiny", "extra-thing ; extra == 'full'"])
    install(packages, "tiny", [], files=["tiny.py"])
    install(packages, "extra-thing", [])
    install(packages, "ring", ["Web-App[full] (>1)", "ring"], files=["ring/a.py", "ring/b.py", "../../../bin/ring"])
    user = tmp_path / "home" / "site-packages"
    return Interpreter(str(base / "bin" / "python"), str(base), str(base), [str(packages)], str(user))


def install(packages: Path, name: str, needs: list[str], files: list[str] | None = None) -> None:
    """A distribution as pip leaves it behind."""
    module = name.lower().replace(".", "_").replace("-", "_")
    files = files or [f"{module}/__init__.py"]
    info = packages / f"{module}-1.0.dist-info"
    info.mkdir()
    requires = "".join(f"Requires-Dist: {need}\n" for need in needs)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in [*files, f"{info.name}/METADATA"]))
    for file in files:
        place = packages / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def shown(made: Plan) -> Mapping[str, str]:
    return {target: how for _, target, how in made.mounts}


def names(made: Plan, python: Interpreter) -> set[str]:
    """What of the folder of packages was chosen, without what pip keeps of it."""
    folder = python.packages[0] + "/"
    found = {target.removeprefix(folder) for target in shown(made) if target.startswith(folder)}
    return {name for name in found if not name.endswith(".dist-info")}


# -- the interpreter ---------------------------------------------------------------------------------------------------


def test_this_python_is_known_without_asking_it() -> None:
    found = interpreter()
    assert (found.executable, found.prefix, found.base_prefix) == (sys.executable, sys.prefix, sys.base_prefix)
    assert sysconfig.get_path("purelib") in found.packages


def test_another_python_says_where_it_keeps_what_it_needs(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    found = interpreter(str(link))
    assert found.base_prefix == sys.base_prefix
    assert all(Path(folder).is_absolute() for folder in found.packages)


@pytest.mark.parametrize("script", [None, "#!/bin/sh\nexit 3\n", "#!/bin/sh\necho no JSON\n"])
def test_what_is_no_python_cannot_be_asked(script: str | None, tmp_path: Path) -> None:
    place = tmp_path / "python"
    if script is not None:
        place.write_text(script)
        place.chmod(0o755)
    with pytest.raises(SandboxError, match=f"{place} cannot be started"):
        interpreter(str(place))


# -- what is always there, and what never is ---------------------------------------------------------------------------


def test_a_pythons_own_folders_are_there_and_what_lies_beside_them_is_not(python: Interpreter) -> None:
    there = shown(plan(python))
    base = Path(python.base_prefix)
    assert {str(base / part) for part in ("bin", "lib", "share", "include")} <= set(there)
    assert not any(place in there for place in map(str, (base, base / "secrets", *base.parents)))
    assert set(there.values()) == {"ro"}


def test_nothing_of_the_machine_but_programs_and_libraries(python: Interpreter) -> None:
    made = plan(python)
    system = {place for place in shown(made) if not place.startswith(python.base_prefix)}
    allowed = ("/usr/", "/lib", "/bin", "/sbin", "/etc/ld.so", "/etc/alternatives", "/etc/localtime")
    assert all(place.startswith(allowed) for place in system)
    assert {"/usr", "/usr/local", "/usr/src", "/etc", "/", "/home", "/root", "/var", "/proc"}.isdisjoint(shown(made))
    assert {source for source, target, how in made.mounts if os.path.realpath(target) != source} == set()


def test_links_stay_links(python: Interpreter) -> None:
    made = plan(python)
    assert set(made.links).isdisjoint(shown(made))
    for place, text in made.links.items():
        assert str(Path(place).readlink()) == text


def test_users_and_hosts_are_invented(python: Interpreter) -> None:
    made = plan(python)
    assert set(made.files) == {"/etc/passwd", "/etc/group", "/etc/hosts", "/etc/nsswitch.conf"}
    assert "root:" not in made.files["/etc/passwd"]


def test_with_the_network_names_are_found_as_on_the_machine(python: Interpreter) -> None:
    made = plan(python, network=True)
    assert set(made.files) == {"/etc/passwd", "/etc/group"}
    assert "/etc/resolv.conf" in shown(made) or not Path("/etc/resolv.conf").exists()
    assert "/etc/hosts" in {*shown(made), *made.links}


def test_an_environment_of_its_own_stands_beside_the_python_it_was_made_of(python: Interpreter, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    packages = venv / "lib" / "python3.12" / "site-packages"
    packages.mkdir(parents=True)
    (venv / "bin").mkdir()
    (venv / "bin" / "python").symlink_to(python.executable)
    (venv / "pyvenv.cfg").touch()
    (venv / "project").mkdir()
    there = shown(plan(Interpreter(str(venv / "bin/python"), str(venv), python.base_prefix, [str(packages)], None)))
    assert {str(venv / part) for part in ("bin", "lib", "pyvenv.cfg")} <= set(there)
    assert str(venv / "project") not in there
    assert f"{python.base_prefix}/lib" in there


def test_a_program_that_lies_elsewhere_is_there_alone(python: Interpreter, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "python"
    elsewhere.parent.mkdir()
    elsewhere.touch()
    (elsewhere.parent / "private").touch()
    there = shown(plan(Interpreter(str(elsewhere), python.prefix, python.base_prefix, python.packages, None)))
    assert str(elsewhere) in there
    assert not any(place.startswith(str(elsewhere.parent)) for place in there if place != str(elsewhere))


# -- packages ----------------------------------------------------------------------------------------------------------


def test_all_packages_are_there_those_of_the_user_too(python: Interpreter, tmp_path: Path) -> None:
    assert plan(python).path == []
    user = tmp_path / "home" / "site-packages"
    user.mkdir(parents=True)
    made = plan(python)
    assert shown(made)[str(user)] == "ro"
    assert made.path == [str(user)]
    assert "empty" not in shown(made).values()


def test_packages_that_lie_outside_of_python_are_there_as_well(python: Interpreter, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folders = [*python.packages, str(outside), str(tmp_path / "nowhere")]
    there = shown(plan(Interpreter(python.executable, python.prefix, python.base_prefix, folders, None)))
    assert there[str(outside)] == "ro"
    assert str(tmp_path / "nowhere") not in there


@pytest.mark.parametrize("none", [False, []])
def test_without_packages_their_folder_is_empty(none: bool | list[str], python: Interpreter, tmp_path: Path) -> None:
    (tmp_path / "home" / "site-packages").mkdir(parents=True)
    made = plan(python, none)
    assert shown(made)[python.packages[0]] == "empty"
    assert names(made, python) == set()
    assert made.path == []
    assert str(tmp_path / "home" / "site-packages") not in shown(made)


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        (["tiny"], {"tiny.py"}),
        (["TINY", "tiny"], {"tiny.py"}),
        (["flask-like"], {"flask_like", "tiny.py"}),
        (["web.app"], {"web_app", "flask_like", "tiny.py"}),
        (["extra_thing"], {"extra_thing"}),
        (["ring"], {"ring", "web_app", "flask_like", "tiny.py"}),
    ],
)
def test_chosen_packages_bring_those_that_they_need(wanted: list[str], there: set[str], python: Interpreter) -> None:
    made = plan(python, wanted)
    assert names(made, python) == there
    assert shown(made)[python.packages[0]] == "empty"
    order = [target for _, target, _ in made.mounts]
    chosen = [place for place in order if place.startswith(python.packages[0] + "/")]
    assert all(order.index(place) > order.index(python.packages[0]) for place in chosen)  # mounted into it
    assert len({place for place in chosen if place.endswith(".dist-info")}) == len(there)


def test_a_package_that_is_not_installed_is_named(python: Interpreter) -> None:
    with pytest.raises(ConfigurationError, match=r"packages: no-such-thing is not installed for .*python"):
        plan(python, ["tiny", "no_such_thing"])


# -- further paths -----------------------------------------------------------------------------------------------------


def test_further_paths_are_there_as_they_are_said_to_be(python: Interpreter, tmp_path: Path) -> None:
    read, write = tmp_path / "read", tmp_path / "write.txt"
    read.mkdir()
    write.touch()
    made = plan(python, extra={str(read): "ro", str(write): "rw"})
    assert (shown(made)[str(read)], shown(made)[str(write)]) == ("ro", "rw")
    assert str(read) in made.readable
    assert made.writable == [str(write)]


def test_a_further_path_that_is_not_there_is_named(python: Interpreter, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"extra_paths: {tmp_path}/nothing is not there"):
        plan(python, extra={f"{tmp_path}/nothing": "ro"})


@pytest.mark.parametrize("order", [("outer", "outer/inner"), ("outer/inner", "outer")])
def test_a_path_within_another_one_is_not_hidden_by_it(
    order: tuple[str, str], python: Interpreter, tmp_path: Path
) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    hows = {"outer": "ro", "outer/inner": "rw"}
    made = plan(python, extra={str(tmp_path / name): hows[name] for name in order})
    mounted = [target for _, target, _ in made.mounts]
    assert mounted.index(str(tmp_path / "outer")) < mounted.index(str(tmp_path / "outer/inner"))


@pytest.mark.parametrize(
    "place", ["/", "//", "/tmp", "/tmp/", "/proc", "/proc/self", "/dev", "/dev/shm", "/etc/../dev"]
)
def test_what_each_sandbox_has_of_its_own_is_not_taken_from_the_machine(place: str, python: Interpreter) -> None:
    with pytest.raises(ConfigurationError, match="of its own"):
        plan(python, extra={place: "rw"})


def test_nothing_is_written_into_a_further_path(python: Interpreter) -> None:
    made = plan(python, extra={"/etc": "rw"})
    assert shown(made)["/etc"] == "rw"
    assert made.files == {}


def test_a_further_path_takes_the_place_of_what_would_stand_there(python: Interpreter) -> None:
    made = plan(python, extra={"/etc/passwd": "ro"})
    assert "/etc/passwd" not in made.files
    assert shown(made)["/etc/passwd"] == "ro"
