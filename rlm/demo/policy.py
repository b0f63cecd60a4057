"""Two scripted models for the demo: a root model that writes cells, and a sub-model that reads what it is sent.

Both are functions of the messages alone. The root model knows how to go about three questions, as a language model
does, but not the answers: what it writes next depends on what its cells printed. It replays its plan over the
conversation, so that there is no state besides the messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator

from rlm.types import Messages

Plan = Generator[str, str, None]
"""Yields replies; is sent what the cells of each printed."""

FAMILIES = ("Apache", "BSD", "GPL", "ISC", "LGPL", "MIT", "MPL", "PSF")


def root(messages: Messages) -> str:
    """The next reply of the root model."""
    opening, *seen = [message["content"] for message in messages if message["role"] == "user"]
    plan = _plan(opening)
    reply = next(plan)
    for output in seen:
        reply = plan.send(output)
    return reply


def _plan(opening: str) -> Plan:
    task = opening.rpartition("Task: ")[2]
    if "_deprecated" in task:
        yield from _removals(_input(opening))
    elif "licence" in task and "`history`" not in task:
        yield from _licences(_input(opening))
    else:
        yield from _audit()
    while True:
        yield "I do not know how to go on from here."


def _input(opening: str) -> str:
    """The variable that the turn's input is in, as its opening says."""
    found = re.search(r"This turn's input: `(\w+)`", opening)
    return found[1] if found else "context"


def _reply(thought: str, code: str) -> str:
    return f"{thought}\n```repl\n{code.strip()}\n```"


def _submit() -> str:
    return _reply("That is complete.", 'answer["content"] = json.dumps(result)\nanswer["ready"] = True')


def _after(label: str, output: str) -> str:
    """The rest of the line of an output that begins with the label."""
    found = re.search(rf"^{re.escape(label)}(.*)$", output, re.MULTILINE)
    return found[1].strip() if found else ""


def _number(label: str, output: str) -> int:
    """The whole number behind the label; 0 where the output has none, as that of a failed cell."""
    found = re.match(r"-?\d+", _after(label, output))
    return int(found[0]) if found else 0


# -- turn 1: what the library announces to remove --------------------------------------------------------------------


def _removals(context: str) -> Plan:
    seen = yield _reply(
        "First a look at the input.",
        f"""
from collections import Counter
sizes = [len(text) for text in {context}.values()]
print(type({context}).__name__, "of", len(sizes), "files,", sum(sizes),
      "characters")
print("values:", dict(Counter(type(text).__name__
                              for text in {context}.values())))
print("keys:", list({context})[:3], "...")
""",
    )
    if "'bytes'" in _after("values:", seen):
        thought = "Some files are bytes, not text. I decode them, then search them all."
        texts = f"""\
texts = {{path: text if isinstance(text, str) else text.decode("latin-1")
         for path, text in {context}.items()}}"""
    else:
        thought, texts = "All of it is text, so I can search it.", f"texts = {context}"
    seen = yield _reply(
        thought,
        rf"""
import re
{texts}
mentions = [(path, found.start()) for path, text in texts.items()
            for found in re.finditer(r"\b_deprecated\(", text)]
print("mentions:", len(mentions), "in",
      len({{path for path, _ in mentions}}), "files")
for path, at in mentions[:3] + mentions[-1:]:
    print(f"{{path}}: {{texts[path][at - 20:at + 40]!r}}")
""",
    )
    yield from _read_mentions(_number("mentions:", seen))
    yield _reply(
        "Every mention has been read. Now I count, and keep what later questions may need.",
        """
def dotted(path):
    name = path.removesuffix(".py").removesuffix("/__init__")
    return name.replace("/", ".")

library = {dotted(path).partition(".")[0] for path in texts}
removals, whole = {}, set()
for (path, at), said in readings.items():
    if said["release"]:
        top = dotted(path).partition(".")[0]
        removals.setdefault(top, set()).add(said["release"])
        if said["whole"]:
            whole.add(dotted(path))
calls = Counter(said["release"] for said in readings.values()
                if said["release"])
result = {"calls": calls, "modules": sorted(whole)}
print(len(library), "modules;", len(removals), "announce a removal")
print(result)
""",
    )
    yield _submit()


def _read_mentions(count: int) -> Plan:
    """Have the sub-model read every mention; with more lines where those sent were too few."""
    seen = yield _reply(
        "Whether a mention is such a call has to be read. I try the question on one of them.",
        '''
import json

QUESTION = """Line {row} of {path}, of Python's standard library,
mentions _deprecated( . A call of it with remove=(3, N) announces that
something will be removed in Python 3.N. Reply with JSON only:
{{"release": "3.N", "whole": true}} for such a call. "whole" is true if it
is at module level (not indented) and its first argument is __name__.
{{"release": null, "whole": false}} for a definition, a comment, a text, or
a call whose remove is a variable.
{{"release": "more", "whole": false}} if the lines end before the call.

{lines}"""

def question(path, at, after):
    lines = texts[path].split("\\n")
    row = texts[path].count("\\n", 0, at)
    shown = range(max(0, row - 6), min(len(lines), row + after + 1))
    shown = "\\n".join(f"{n + 1}: {lines[n]}" for n in shown)
    return QUESTION.format(path=path, row=row + 1, lines=shown)

readings = {}
for path, at in mentions[:1]:
    print("sub-model:", llm_query(question(path, at, after=2)))
''',
    )
    said = _after("sub-model:", seen)
    parse = "json.loads(reply)"
    if said and not said.startswith("{"):
        parse = 'json.loads(reply[reply.index("{"):reply.rindex("}") + 1])'
    seen = yield _reply(
        f"That works. Now all {count} in one batch." if count else "There are none, so there is nothing to read.",
        f"""
def read(mentions, after):
    replies = llm_query_batched([question(*one, after)
                                 for one in mentions])
    for one, reply in zip(mentions, replies):
        readings[one] = {parse}
    return [one for one in mentions
            if readings[one]["release"] == "more"]

cut_off = read(mentions, after=2)
print("read:", len(readings))
print("cut off:", len(cut_off))
""",
    )
    after = 10
    while (cut_off := _number("cut off:", seen)) > 0 and after < 1000:
        seen = yield _reply(
            f"{cut_off} of the calls go on below the lines that I sent. Once more, with {after} lines.",
            f"""
cut_off = read(cut_off, after={after})
print("cut off:", len(cut_off))
""",
        )
        after *= 5


# -- turn 2: licences, and what is imported --------------------------------------------------------------------------


def _licences(context: str) -> Plan:
    seen = yield _reply(
        "A second input. I look at its keys.",
        f"""
names = sorted({{key.partition("/")[0] for key in {context}}})
papers = [key for key in {context} if not key.endswith(".py")]
print(type({context}).__name__, "of", len({context}), "files from",
      len(names), "distributions")
print("distributions:", *names[:6], "...")
print("licence files:", *papers[:3], "...")
""",
    )
    paper = _after("licence files:", seen).split(" ")[0].partition("/")[2] or "LICENSE"
    seen = yield _reply(
        f"Each distribution has a file {paper}.",
        f"""
terms = {{name: {context}[f"{{name}}/{paper}"] for name in names}}
print(len(terms), "texts of", sum(map(len, terms.values())), "characters")
""",
    )
    if missing := re.findall(r"^KeyError: (.*)$", seen, re.MULTILINE):
        seen = yield _reply(
            f"There is no {missing[-1]}: the files have several names. I take those that are no Python source.",
            f"""
terms = {{key.partition("/")[0]: {context}[key] for key in papers}}
print("names:", Counter(key.partition("/")[2] for key in papers))
print(len(terms), "texts of", sum(map(len, terms.values())), "characters")
""",
        )
    seen = yield _reply(
        "A licence is text to be read, so each goes to the sub-model; its beginning is enough for most.",
        f'''
FAMILIES = {" ".join(FAMILIES)!r}.split()
QUESTION = """Which licence is this? Reply with one word,
{", ".join(FAMILIES)}, or Other if it is none.

"""

def ask(names, characters):
    replies = llm_query_batched([QUESTION + terms[name][:characters]
                                 for name in names])
    for name, reply in zip(names, replies):
        licences[name] = reply.strip().strip(".")
    return [name for name in names if licences[name] not in FAMILIES]

licences = {{}}
unsure = ask(names, characters=1500)
print(dict(Counter(licences.values())))
print("unsure:", *unsure)
''',
    )
    if unsure := _after("unsure:", seen).split():
        seen = yield _reply(
            f"The beginning was not enough for {len(unsure)}. The sub-model gets more of these.",
            """
unsure = ask(unsure, characters=20_000)
print(dict(Counter(licences.values())))
print("unsure:", *unsure)
""",
        )
    yield _reply(
        "What they import can be computed: the syntax tree knows.",
        f"""
import ast, warnings
warnings.simplefilter("ignore")  # old escapes in other people's strings

imports = {{name: set() for name in names}}
unparsed = 0
for key, text in {context}.items():
    if not key.endswith(".py"):
        continue
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
        unparsed += 1
        continue
    used = imports[key.partition("/")[0]]
    for node in nodes:
        if isinstance(node, ast.Import):
            used.update(one.name.partition(".")[0] for one in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            used.add(node.module.partition(".")[0])
print(unparsed, "files do not parse; imported by most:")
users = Counter(one for used in imports.values() for one in used)
print(users.most_common(5))
""",
    )
    yield _reply(
        "Grouped by licence:",
        """
result = {}
for name in names:
    result.setdefault(licences[name], []).append(name)
print({licence: len(group) for licence, group in result.items()})
""",
    )
    yield _submit()


# -- turn 3: from variables and history alone ------------------------------------------------------------------------


def _audit() -> Plan:
    seen = yield _reply(
        "Nothing new to read. What do I still have?",
        """
print(SHOW_VARS())
print("history:", len(history), "messages:", *[one["role"] for one in history[:4]], "...")
print("the first one:", history[0]["content"][:60].splitlines()[0], "...")
print("task at:", history[0]["content"].find("Task: "))
""",
    )
    missing = [name for name in ("removals", "library", "licences", "imports") if f"{name}:" not in seen]
    if missing:
        yield f"I cannot answer: {', '.join(missing)} of the earlier turns is not there."
        return
    task = '.partition("Task: ")[2]' if _number("task at:", seen) >= 0 else ""
    yield _reply(
        "Everything is still there: the findings of both turns, and the messages of the first.",
        f"""
first_question = history[0]["content"]{task}
affected = Counter(module for used in imports.values()
                   for module in used if module in removals)
used_by = {{}}
for name, licence in licences.items():
    used_by.setdefault(licence, set()).update(imports[name] & library)
result = {{
    "first_question": first_question,
    "affected": affected,
    "modules_by_licence": {{one: len(used_by[one]) for one in used_by}},
}}
print(first_question[:70], "...")
print(dict(affected), result["modules_by_licence"])
""",
    )
    yield _submit()


# -- the sub-model ---------------------------------------------------------------------------------------------------


def sub(messages: Messages) -> str:
    """The sub-model's reply: it reads the prompt and nothing else."""
    prompt = messages[-1]["content"]
    asked, _, text = prompt.partition("\n\n")
    if "_deprecated(" in asked:
        return json.dumps(_read_call(int(re.findall(r"Line (\d+)", asked)[0]), text))
    if "licence" in asked:
        return _read_licence(text)
    return "I do not understand the question."


def _read_call(row: int, text: str) -> dict[str, object]:
    """What the call in a line of a numbered excerpt announces."""
    numbered = [line.partition(": ") for line in text.split("\n")]
    rest = "\n".join(line for number, _, line in numbered if int(number) >= row)
    before, _, behind = rest.partition("_deprecated(")
    if before.lstrip().startswith(("def ", "#")):
        return {"release": None, "whole": False}
    arguments = _until_closed(behind)
    if arguments is None:
        return {"release": "more", "whole": False}
    remove = re.search(r"\bremove\s*=\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)", arguments)
    if remove is None:
        return {"release": None, "whole": False}
    whole = not rest[:1].isspace() and re.match(r"\s*__name__\s*,", arguments) is not None
    return {"release": f"{remove[1]}.{remove[2]}", "whole": whole}


def _until_closed(text: str) -> str | None:
    """The text up to the bracket that closes one opened before it, brackets in strings aside; None without it."""
    depth = 1
    for piece in re.finditer(r"'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|[()]", text):
        depth += {"(": 1, ")": -1}.get(piece[0], 0)
        if depth == 0:
            return text[: piece.start()]
    return None


# A phrase of each licence that no other one has; the one that comes first in a text is the licence of the whole.
PHRASES = {
    "Apache": r"Apache License",
    "BSD": r"Redistribution and use in source and binary forms",
    "GPL": r"GNU GENERAL PUBLIC LICENSE",
    "ISC": r"Permission to use, copy, modify,? and/?(?:or)? ?distribute this software",
    "LGPL": r"GNU LESSER GENERAL PUBLIC LICENSE",
    "MIT": r"Permission is hereby granted, free of charge",
    "MPL": r"Mozilla Public License",
    "PSF": r"PYTHON SOFTWARE FOUNDATION LICENSE",
}


def _read_licence(text: str) -> str:
    flat = " ".join(text.split())
    found = {licence: re.search(phrase, flat, re.IGNORECASE) for licence, phrase in PHRASES.items()}
    places = [(match.start(), licence) for licence, match in found.items() if match]
    return min(places)[1] if places else "Other"
