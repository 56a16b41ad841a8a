"""The page of all commands, made from the commands themselves: ``python -m featcache.cli.reference``.

A test compares the page that lies beside this file with `reference_page`, so it cannot grow stale unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer.main

from featcache.cli.verbs import app

PAGE = Path(__file__).with_name("README.md")
REMAKE = "python -m featcache.cli.reference"
TOP = f"""# Every command

Made by `{REMAKE}` from the commands themselves; `featcache COMMAND --help` says the same.
"""


def reference_page() -> str:
    """Return the page as Markdown: each command with its arguments, options, defaults and help lines."""
    group: Any = typer.main.get_command(app)  # of the same shape in every version of typer, whatever its class
    lines = [TOP, *_table("option", group.params)]
    for name, command in group.commands.items():
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option"]
        usage = " ".join([f"featcache {name}", *map(_usage, arguments), "[OPTIONS]"])
        meaning = command.help.partition("\f")[0].strip()  # what follows a form feed is for readers of the code
        lines += [f"## featcache {name}", "", meaning, "", f"    {usage}", ""]
        lines += [*_table("argument", arguments), *_table("option", options)]
    return "\n".join(lines)


def _usage(argument: Any) -> str:
    shown = str(argument.metavar)
    return shown if argument.required or shown.startswith("[") else f"[{shown}]"


def _table(title: str, parameters: Iterable[Any]) -> Iterator[str]:
    rows = [(_spelled(one), _default(one), one.help or "") for one in parameters]
    if rows:
        yield f"| {title} | default | meaning |"
        yield "|---|---|---|"
        for row in rows:
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        yield ""


def _spelled(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    value = f" {parameter.metavar}" if parameter.metavar else ""
    return ", ".join(f"`{spelling}{value}`" for spelling in (*parameter.opts, *parameter.secondary_opts))


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.default is None or parameter.default is False:
        return ""
    value = parameter.default
    return f"`{value.value if isinstance(value, Enum) else value}`"


def main() -> None:
    """Write the page beside this file."""
    PAGE.write_text(reference_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
