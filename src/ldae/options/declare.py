"""Options are declared as the fields of a dataclass."""

import dataclasses
import difflib
import inspect
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import pydantic

from .describe import describe, range_words
from .values import convert, wanted


T = TypeVar("T")
LISTED = 20  # known names that a message lists


def _options(cls: type[T]) -> type[T]:
    """Make a class a dataclass whose fields are read as options.

    Values are converted as YAML is (`"1e6"` for an integer, a list for a tuple, `"0,1"` for a list of numbers) and
    then checked by pydantic.

    Raises:
        ValueError: When an object is made with a value of the wrong type or out of range. The message is one line that
            names the field, the value and what is allowed.

    Example:
    ```python
    >>> from pydantic import Field
    >>> from ldae.options import options
    >>> @options
    ... class Budget:
    ...     images: int = Field(1000, ge=1)
    >>> Budget(images="1e6").images
    1000000
    >>> Budget(images=0)
    Traceback (most recent call last):
    ValueError: images=0 must be an integer, 1 or more.

    ```
    """
    made: Any = pydantic.dataclasses.dataclass(cls, config=pydantic.ConfigDict(arbitrary_types_allowed=True))
    validate, signature = made.__init__, inspect.signature(made)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs).arguments
        hints = typing.get_type_hints(made)
        values = {name: convert(value, hints[name], name) for name, value in given.items()}
        try:
            validate(self, **values)
        except pydantic.ValidationError as error:
            raise ValueError(_explain(made, error)) from None

    made.__init__ = __init__
    made.__signature__ = signature
    return made


if TYPE_CHECKING:
    from dataclasses import dataclass as options  # what a type checker has to know of it
else:
    options = _options
    options.__name__ = "options"


def build(kind: type[T], values: Mapping[str, Any], section: str = "", what: str = "option") -> T:
    """Make an object of a class under [`options`] from values by name.

    Args:
        kind: The class.
        values: Values by name, as YAML gives them or as text.
        section: Section of a file that the values are from; messages call the field `section.field`.
        what: What the fields are called in messages.

    Raises:
        ValueError: For an unknown name, a missing one, or a value that is refused.
    """
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    prefix = f"{section}." if section else ""
    for name in values:
        if name not in known:
            raise ValueError(f"unknown {what} {prefix}{name}{did_you_mean(name, known)}")
    for option in describe(kind):
        if option.name not in values and option.default is dataclasses.MISSING:
            remedy = f"give {option.name.upper()} after the command" if option.positional else f"give --{option.name}"
            raise ValueError(f"{prefix}{option.name} is missing; {remedy}.")
    try:
        return kind(**values)
    except ValueError as error:
        text = str(error)
        named = any(text.startswith(f"{name}=") for name in known)
        raise ValueError(f"{prefix}{text}" if named else text) from None


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """End a message about an unknown name with the nearest known one, or with all of them."""
    known = list(dict.fromkeys(str(other) for other in known))
    lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), lower, n=1)
    if close:
        return f"; did you mean {prefix}{lower[close[0]]}?"
    if not known:
        return "; it takes none, leave it out."
    if len(known) > LISTED:
        return "; --help lists all of them."
    return f"; known are {', '.join(prefix + other for other in sorted(known))}."


def _explain(kind: Any, error: pydantic.ValidationError) -> str:
    """Say in one line which field is wrong, its value, and what it may be."""
    first = error.errors()[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    name = str(first["loc"][0])
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    return f"{name}={first['input']!r} must be {wanted(typing.get_type_hints(kind)[name], range_words(field))}."
