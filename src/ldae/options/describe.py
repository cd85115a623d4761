"""Descriptions of options: type, default, range and help."""

import ast
import dataclasses
import re
import textwrap
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from .values import alternatives_of, kind_words


class Positional:
    """Mark a field as an argument without a name: `checkpoint: Annotated[str, Positional]`."""


@dataclass(frozen=True)
class Option:
    """One option as help, documentation and the reader see it.

    Args:
        name: Name of the field.
        kind: Its type in words, such as `integer` or `no|bf16`.
        default: Its default; `MISSING` where it must be given.
        help: What it does.
        allowed: Its range in words, such as `1 or more`; empty where every value of the type will do.
        is_flag: True if the option may be given without a value, which means true.
        positional: True if it is given without its name.
        hint: Its type; `None` is any.
    """

    name: str
    kind: str
    default: Any
    help: str
    allowed: str = ""
    is_flag: bool = False
    positional: bool = False
    hint: Any = None


def describe(kind: type) -> list[Option]:
    """List the options of a class under [`options`], in the order of its fields."""
    helps: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        helps |= documented_arguments(base.__doc__ or "")
    hints = typing.get_type_hints(kind, include_extras=True)
    found = []
    for field in dataclasses.fields(kind):
        if not field.init or field.name == "overrides":
            continue
        hint, default = hints[field.name], default_of(field)
        found.append(
            Option(
                name=field.name,
                kind=kind_words(hint),
                default=default,
                help=helps.get(field.name, ""),
                allowed=range_words(field),
                is_flag=bool in alternatives_of(hint),
                hint=hint,
                positional=any(extra is Positional for extra in typing.get_args(hint)[1:]),
            )
        )
    return found


def describe_source(path: str | Path, class_name: str) -> list[Option]:
    """List the declared fields of a class by reading its source, for classes whose import takes seconds.

    Args:
        path: Python file.
        class_name: Class in it, with annotated fields and an `Args:` section in its docstring.
    """
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    helps = documented_arguments(ast.get_docstring(found) or "")
    return [
        Option(
            name=line.target.id,
            kind=_source_words(ast.unparse(line.annotation)),
            default=_source_default(line.value),
            help=helps.get(line.target.id, ""),
            is_flag="bool" in ast.unparse(line.annotation),
            hint=eval(ast.unparse(line.annotation), {"Any": Any}),
        )
        for line in found.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.target.id[0] != "_"
    ]


def documented_arguments(docstring: str) -> dict[str, str]:
    """Read the `Args:` section of a docstring.

    Example:
    ```python
    >>> from ldae.options import documented_arguments
    >>> documented_arguments('''Do it.
    ...
    ...     Args:
    ...         a, b (`int`): First
    ...             line.
    ...     ''')
    {'a': 'First line.', 'b': 'First line.'}

    ```
    """
    section = re.search(r"^( *)Args:\n(.*?)(?=^\1\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
    if section is None:
        return {}
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", textwrap.dedent(section[2]).strip()):
        named = re.match(r"((?:\w+, )*\w+)(?: \([^:]*\))?: (.*)", entry, re.DOTALL)
        if named:
            text = " ".join(named[2].split())
            found |= dict.fromkeys(named[1].split(", "), text)
    return found


def default_of(field: Any) -> Any:
    """Return a field's default, `MISSING` where it has none."""
    default, factory = field.default, field.default_factory
    if isinstance(default, pydantic.fields.FieldInfo):
        default, factory = default.default, default.default_factory or dataclasses.MISSING
        default = dataclasses.MISSING if default is pydantic.fields.PydanticUndefined else default
    return factory() if factory is not dataclasses.MISSING else default


def _bounds(field: Any) -> dict[str, Any]:
    """Return the bounds `ge`, `gt`, `le`, `lt` of a field."""
    info = field.default
    metadata = info.metadata if isinstance(info, pydantic.fields.FieldInfo) else []
    return {name: getattr(m, name) for m in metadata for name in ("ge", "gt", "le", "lt") if hasattr(m, name)}


def range_words(field: Any) -> str:
    """Say which numbers a field takes."""
    bounds = _bounds(field)
    low = f"{bounds['ge']:g}" if "ge" in bounds else f"above {bounds['gt']:g}" if "gt" in bounds else None
    high = f"{bounds['le']:g}" if "le" in bounds else f"below {bounds['lt']:g}" if "lt" in bounds else None
    if low is not None and high is not None:
        return (
            f"from {low} to {high}"
            if "ge" in bounds
            else f"{low} and at most {high}"
            if "le" in bounds
            else f"{low} and {high}"
        )
    if low is not None:
        return low if "gt" in bounds else f"{low} or more"
    return "" if high is None else high if "lt" in bounds else f"at most {high}"


def _source_words(annotation: str) -> str:
    names = {"int": "integer", "float": "number", "bool": "true|false", "str": "text", "None": "null"}
    parts = [part.strip() for part in re.sub(r"\[.*\]", "", annotation).split("|")]
    words = [names.get(part, {"dict": "mapping", "tuple": "list"}.get(part, part)) for part in parts]
    words = [word for word in words if word != "integer"] if "number" in words else words
    return " or ".join(words)


def _source_default(node: ast.expr | None) -> Any:
    if node is None:
        return dataclasses.MISSING
    try:
        return ast.literal_eval(node)
    except ValueError:  # a number written as an expression, such as 2**0.5
        return round(eval(compile(ast.Expression(node), "", "eval"), {"__builtins__": {}}), 4)
