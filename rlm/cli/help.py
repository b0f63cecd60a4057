"""Help texts in one plain form, whatever version of Typer and width of terminal: options stand in groups.

The groups are the `rich_help_panel` of the options, in one order everywhere; what arguments mean is said in the text
above them, as versions differ in what they keep of it. `docs/cli.md` shows these texts as they are.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

LAST = ("Sessions", "Output", "Options")


def _usage(command: Any) -> str:
    arguments = [param.metavar for param in command.params if param.param_type_name == "argument"]
    return " ".join(["[OPTIONS]", *arguments, *(["COMMAND"] if isinstance(command, TyperGroup) else [])])


def _write(command: Any, ctx: Any, formatter: Any) -> None:
    formatter.write_usage(ctx.command_path, _usage(command))
    for paragraph in (command.help or "").split("\n\n"):
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(paragraph)
    if isinstance(command, TyperGroup):
        found = {name: command.get_command(ctx, name) for name in command.list_commands(ctx)}
        rows = [(name, (one.help or "").partition("\n\n")[0].replace("\n", " ")) for name, one in found.items() if one]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
    groups: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        if param.param_type_name == "option":
            names = ", ".join(sorted(param.opts, key=len))
            shown = names if getattr(param, "is_flag", False) or not param.metavar else f"{names} {param.metavar}"
            group = getattr(param, "rich_help_panel", None) or "Options"
            groups.setdefault(group, []).append((shown, param.help or ""))
    for group in sorted(groups, key=_place):
        with formatter.section(group):
            formatter.write_dl(groups[group])


def _place(group: str) -> int:
    return LAST.index(group) if group in LAST else -1


class Command(TyperCommand):
    """A command with our help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _write(self, ctx, formatter)


class Group(TyperGroup):
    """A group of commands with our help, in the order in which they were added."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _write(self, ctx, formatter)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)
