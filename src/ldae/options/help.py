"""Help in a terminal, tables in the documentation and JSON schemas for editors, written from options."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from .describe import Option, describe
from .values import plain, yaml_text


WIDTH = 80  # columns of --help
INDENT = 24
VALUES = {"integer": "N", "number": "X", "text": "TEXT", "list": "A,B,.."}


def help_text(usage: str, summary: str, groups: Mapping[str, Sequence[Option]], epilog: str) -> str:
    """Write the help of a command.

    Args:
        usage: The command with its arguments.
        summary: What it does.
        groups: Options by title, in order.
        epilog: Text at the end.
    """
    parts = [
        textwrap.fill(f"usage: {usage}", WIDTH, subsequent_indent="  "),
        textwrap.fill(_plain(" ".join(summary.split())), WIDTH),
        *(f"{title}:\n" + "\n".join(map(_option_lines, group)) for title, group in groups.items()),
        textwrap.fill(epilog, WIDTH),
    ]
    return "\n\n".join(parts)


def option_groups(kind: type) -> dict[str, list[Option]]:
    """Group the options of a class for its help: arguments, its own options, then those of each base class.

    A base class is titled by the first line of its docstring.
    """
    described = {option.name: option for option in describe(kind)}
    owners: dict[str, type] = {}
    for base in reversed(kind.__mro__):
        owners |= dict.fromkeys(inspect.get_annotations(base), base)
    groups: dict[str, list[Option]] = {"arguments": [o for o in described.values() if o.positional], "options": []}
    for base in kind.__mro__:
        title = "options" if base is kind else (base.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        mine = [o for o in described.values() if owners.get(o.name) is base and not o.positional]
        if mine:
            groups.setdefault(title, []).extend(mine)
    return {title: group for title, group in groups.items() if group}


def markdown_table(described: Sequence[Option]) -> str:
    """Write options as a markdown table of field, values, default and meaning."""
    lines = ["| field | values | default | |", "|---|---|---|---|"]
    for option in described:
        values = option.kind.replace("|", r"\|") + (f", {option.allowed}" if option.allowed else "")
        default = "" if option.default is dataclasses.MISSING else f"`{yaml_text(option.default)}`"
        text = option.help.replace("|", r"\|")
        lines.append(f"| `{option.name}` | {values} | {default} | {text} |")
    return "\n".join(lines) + "\n"


def json_schema(described: Sequence[Option]) -> dict[str, Any]:
    """Write options as the JSON schema of a mapping, for editors that complete YAML files."""
    names = {"integer": "integer", "number": "number", "true|false": "boolean", "text": "string", "list": "array"}
    properties = {}
    for option in described:
        kind, null = option.kind.removesuffix(" or null"), option.kind.endswith(" or null")
        about: dict[str, Any] = {"description": option.help}
        if kind in names:
            # YAML 1.1 reads 1e6 as text, and lists may be written as text with commas
            as_text = ["string"] if kind in ("integer", "number", "list") else []
            about["type"] = [names[kind], *as_text, *(["null"] if null else [])]
        elif option.choices:
            # YAML 1.1 reads a bare `no` as false
            about["enum"] = [*option.choices, *([False] if "no" in option.choices else []), *([None] if null else [])]
        if option.default is not dataclasses.MISSING:
            about["default"] = plain(option.default)
        properties[option.name] = about
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _option_lines(option: Option) -> str:
    """Write an option, its help, default and range in two columns."""
    value = "[true|false]" if option.is_flag else VALUES.get(option.kind.removesuffix(" or null"), "VALUE")
    head = f"  {option.name.upper()}" if option.positional else f"  --{option.name} {value}"
    facts = ["required"] if option.default is dataclasses.MISSING and not option.positional else []
    if option.choices:
        facts.append(f"one of {', '.join(option.choices)}")
    if option.allowed:
        facts.append(option.allowed)
    if option.default not in (dataclasses.MISSING, None) and not option.positional:
        facts.append(f"default: {yaml_text(option.default)}")
    text = _plain(option.help) + (f" ({'; '.join(facts)})" if facts else "")
    lines = textwrap.wrap(text, WIDTH - INDENT) or [""]
    if len(head) > INDENT - 2:
        return "\n".join([head, *(" " * INDENT + line for line in lines)])
    return "\n".join([head.ljust(INDENT) + lines[0], *(" " * INDENT + line for line in lines[1:])])


def _plain(text: str) -> str:
    """Take the marks of docstrings out of a text, and write values as the command line takes them."""
    values = {"None": "null", "True": "true", "False": "false"}
    return re.sub(r'\[?`("?)([^`]*?)\1`\]?', lambda marked: values.get(marked[2], marked[2]), text)
