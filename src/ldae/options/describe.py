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

from .values import alternatives_of, choices_of, kind_words


# How a range is written, by the bounds that are declared.
RANGES = {
    (): "",
    ("ge",): "{ge} or more",
    ("gt",): "above {gt}",
    ("ge", "le"): "from {ge} to {le}",
    ("ge", "lt"): "from {ge} to below {lt}",
    ("gt", "le"): "above {gt} and at most {le}",
    ("gt", "lt"): "above {gt} and below {lt}",
}


class Positional:
    """Mark a field as an argument without a name: `checkpoint: Annotated[str, Positional]`."""


@dataclass(frozen=True)
class Option:
    """One option as help, documentation and the reader see it.

    Args:
        name: Name of the field.
        hint: Its type.
        default: Its default; `MISSING` where it must be given.
        help: What it does.
        allowed: Its range in words, such as `1 or more`; empty where every value of the type will do.
    """

    name: str
    hint: Any
    default: Any
    help: str
    allowed: str = ""

    @property
    def kind(self) -> str:
        """Type in words, such as `integer` or `no|bf16`."""
        return kind_words(self.hint)

    @property
    def choices(self) -> list[str]:
        """Words that it takes; empty if it takes others too."""
        return choices_of(self.hint)

    @property
    def is_flag(self) -> bool:
        """True if the option may be given without a value, which means true."""
        return bool in alternatives_of(self.hint)

    @property
    def positional(self) -> bool:
        """True if the option is given without its name."""
        return Positional in typing.get_args(self.hint)[1:]


def describe(kind: type) -> list[Option]:
    """List the options of a class under [`options`], in the order of its fields."""
    helps: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        helps |= documented_arguments(base.__doc__ or "")
    hints = typing.get_type_hints(kind, include_extras=True)
    return [
        Option(field.name, hints[field.name], default_of(field), helps.get(field.name, ""), range_words(field))
        for field in dataclasses.fields(kind)
        if field.name != "overrides"
    ]


def describe_source(path: str | Path, class_name: str) -> list[Option]:
    """List the declared fields of a class by reading its source, for classes whose import takes seconds.

    Args:
        path: Python file; its dictionary `CHOICES`, if it has one, lists the words that a field takes.
        class_name: Class in it, with annotated fields and an `Args:` section in its docstring.
    """
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    fields = _annotated(found.body)
    helps = documented_arguments(ast.get_docstring(found) or "")
    hints = {name: eval(ast.unparse(line.annotation), {"Any": Any}) for name, line in fields.items()}
    if (choices := _annotated(tree.body).get("CHOICES")) is not None and choices.value is not None:
        hints |= {name: typing.Literal[words] for name, words in ast.literal_eval(choices.value).items()}
    return [
        Option(name, hints[name], _source_default(line.value), helps.get(name, "")) for name, line in fields.items()
    ]


def _annotated(body: list[ast.stmt]) -> dict[str, ast.AnnAssign]:
    """Return the annotated assignments to public names."""
    lines = [line for line in body if isinstance(line, ast.AnnAssign)]
    return {line.target.id: line for line in lines if isinstance(line.target, ast.Name) and line.target.id[0] != "_"}


def _source_default(node: ast.expr | None) -> Any:
    if node is None:
        return dataclasses.MISSING
    try:
        return ast.literal_eval(node)
    except ValueError:  # a number written as an expression, such as 2**0.5
        return round(eval(compile(ast.Expression(node), "", "eval"), {"__builtins__": {}}), 4)


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
            found |= dict.fromkeys(named[1].split(", "), " ".join(named[2].split()))
    return found


def default_of(field: Any) -> Any:
    """Return a field's default, `MISSING` where it has none."""
    default, factory = field.default, field.default_factory
    if isinstance(default, pydantic.fields.FieldInfo):
        default, factory = default.default, default.default_factory or dataclasses.MISSING
        default = dataclasses.MISSING if default is pydantic.fields.PydanticUndefined else default
    return factory() if factory is not dataclasses.MISSING else default


def range_words(field: Any) -> str:
    """Say which numbers a field takes."""
    metadata = field.default.metadata if isinstance(field.default, pydantic.fields.FieldInfo) else []
    bounds = {name: getattr(m, name) for m in metadata for name in ("ge", "gt", "le", "lt") if hasattr(m, name)}
    words = {name: str(bound) if isinstance(bound, int) else f"{bound:g}" for name, bound in bounds.items()}
    return RANGES[tuple(sorted(bounds))].format(**words)
