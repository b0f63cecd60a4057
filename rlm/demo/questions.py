"""What the demo asks, the form of the answers, and how an answer is compared with the truth.

The questions are worded so that any model can answer them: names, units and definitions are in the text. The form is
validated by the engine, so that a comparison is one of values.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

MAX_DIFFERENCES = 5
MAX_SHOWN = 60  # characters of a value in a difference


@dataclass(frozen=True)
class Removals:
    """calls: from release ("3.15") to number of calls. modules: those that go as a whole ("email.utils")."""

    calls: dict[str, int]
    modules: list[str]


@dataclass(frozen=True)
class Audit:
    """affected: from module to number of distributions. modules_by_licence: from licence to number of modules."""

    first_question: str
    affected: dict[str, int]
    modules_by_licence: dict[str, int]


@dataclass(frozen=True, slots=True)
class Question:
    """One turn: what is asked, the type of the answer, where the truth comes from, and which variables are kept."""

    name: str
    text: str
    output_type: Any
    truth_from: str
    keeps: Sequence[str] = ()


REMOVALS = Question(
    "removals",
    "What will be removed from Python's standard library, and when? The input maps each of its files to the file's "
    "text. A call of `_deprecated(…, remove=(3, N))`, a function of the module warnings, announces that something "
    "goes in Python 3.N. Find all mentions of it by code, and have sub-models read each with the lines around it: is "
    "it such a call (one whose `remove` is a variable is not), for which release, and does the whole module go (the "
    "call stands at module level and its first argument is `__name__`) or a part of it? Answer with `calls`, the "
    'number of calls for each release (like "3.15"), and `modules`, those that go as a whole (`email.utils` for '
    "`email/utils.py`). Keep two variables for later: `removals`, a dict from the top-level modules that announce a "
    "removal (`email` for `email/utils.py`) to the set of releases, and `library`, the set of all top-level modules "
    "of the input.",
    Removals,
    "what Python's parser finds in the same files",
    ("removals", "library"),
)

LICENCES = Question(
    "licences",
    "Under which licence does each distribution in this input stand? Its keys are `<distribution>/<file>`, its values "
    "the texts of Python sources and, for each distribution, of one licence file (the one that is no `.py` file). "
    "Have sub-models read the licence texts. Call them Apache, BSD, GPL, ISC, LGPL, MIT, MPL or PSF, whatever the "
    "version. Answer with a dict from each licence that occurs to the list of its distributions. Keep two variables "
    "for later: `licences`, a dict from distribution to licence, and `imports`, a dict from distribution to the set "
    "of top-level modules that its files import absolutely, anywhere in their code (use ast, and skip files that do "
    "not parse).",
    dict[str, list[str]],
    "what the distributions declare in their metadata",
    ("licences", "imports"),
)

AUDIT = Question(
    "audit",
    "There is no new input: answer from the variables that you kept, and from `history`. First, what was my very "
    "first question in this conversation, word for word and all of it? Second, how many distributions import each of "
    "the modules in `removals` (see `imports`)? Leave out those that none imports. Third, for each licence (see "
    "`licences`): how many different modules of `library` do its distributions import, taken together?",
    Audit,
    "what Python's compiler finds, the metadata, and the question as it was put",
)

CONVERSATION = (REMOVALS, LICENCES, AUDIT)


# -- checking ------------------------------------------------------------------------------------------------------


def plain(answer: Any) -> Any:
    """An answer as JSON has it."""
    return asdict(answer) if is_dataclass(answer) and not isinstance(answer, type) else answer


def differences(answer: Any, truth: Any) -> Sequence[str]:
    """Where an answer is not the truth, in words; nothing where it is.

    The order of lists does not count, nor do spaces and line breaks in texts.
    """
    found = list(_differ("", plain(answer), truth))
    left = len(found) - MAX_DIFFERENCES
    return [*found[:MAX_DIFFERENCES], f"and {left} more"] if left > 0 else found


def _differ(place: str, answer: Any, truth: Any) -> Iterable[str]:
    if isinstance(truth, Mapping) and isinstance(answer, Mapping):
        for key in sorted({*truth, *answer}):
            yield from _differ(f"{place}.{key}" if place else str(key), answer.get(key), truth.get(key))
    elif isinstance(truth, list) and isinstance(answer, list):
        yield from (f"{place} lacks {_shown(one)}" for one in truth if one not in answer)
        yield from (f"{place} has {_shown(one)}, wrongly" for one in answer if one not in truth)
    elif isinstance(truth, str) and isinstance(answer, str):
        if truth.split() != answer.split():
            yield f"{place} is {_shown(answer)}, not {_shown(truth)}"
    elif answer != truth:
        yield f"{place} is {_shown(answer)}, not {_shown(truth)}"


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def unused(cells: Iterable[str], variables: Collection[str]) -> Sequence[str]:
    """Those of the variables that no cell reads. A name that begins one (`history` for `history_0`) stands for it."""
    read = set()
    for code in cells:
        try:
            tree = ast.parse(code)
        except SyntaxError:
            continue  # it did not run either
        read |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return [name for name in variables if not any(one == name or one.startswith(f"{name}_") for one in read)]
