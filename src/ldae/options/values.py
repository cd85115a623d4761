"""Values of options: YAML text and plain values to the types of fields, and back."""

import difflib
import math
import types
import typing
from collections.abc import Hashable, Mapping
from typing import Any, Literal

import yaml


# A type's name in help, and in a message on what is wanted.
_WORDS: dict[Any, tuple[str, str]] = {
    int: ("integer", "an integer"),
    float: ("number", "a number"),
    bool: ("true|false", "true or false"),
    str: ("text", "text"),
    dict: ("mapping", "a mapping"),
    list: ("list", "a list"),
    tuple: ("list", "a list of 2 values, such as 1,1"),  # every tuple among options is a pair
    Any: ("value", "a value"),
}


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that stands twice in one mapping."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping whose keys differ."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} is a list or a mapping", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key!r} stands twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def convert(value: Any, hint: Any, name: str) -> Any:
    """Convert a YAML value, or YAML text, to the type of a field; leave what pydantic has to refuse as it is."""
    alternatives = alternatives_of(hint)
    if isinstance(value, str) and str not in alternatives and value not in choices_of(hint):
        try:
            value = plain(yaml.load(value, StrictLoader))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            problem = getattr(error, "problem", None) or ""
            twice = f" ({problem})" if "twice" in problem else ""
            raise ValueError(f"{name}={value!r} is not YAML{twice}; quote it.") from None
    if type(None) in alternatives and (value is None or value == "null"):
        return None
    for option in alternatives:
        kind, parts = typing.get_origin(option) or option, typing.get_args(option)
        if kind is Literal:
            # YAML reads a bare `no`, `true` or `false` as a truth value
            words = {False: ("no", "false"), True: ("true",)}[value] if isinstance(value, bool) else (value,)
            if found := [word for word in words if word in parts]:
                return found[0]
        elif (
            kind in (int, float) and (number := _number(value)) is not None and (kind is float or number.is_integer())
        ):
            return int(value) if kind is int and isinstance(value, int) else kind(number)
        elif kind is tuple and (items := _items(value)) is not None and len(items) == len(parts):
            return tuple(convert(item, part, name) for item, part in zip(items, parts, strict=True))
        elif kind is list and (items := _items(value)) is not None:
            return [convert(item, parts[0], name) if parts else item for item in items]
        elif kind is str and not isinstance(value, dict | list | tuple | bool | None):
            return value if isinstance(value, str) else str(value)
        elif kind is str and value is False:
            return "no"
        elif kind is Any or (kind not in (int, float) and isinstance(kind, type) and isinstance(value, kind)):
            _refuse_non_finite(value, name)
            return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be finite, {wanted(hint)}.")
    raise ValueError(f"{name}={value!r} must be {wanted(hint)}{_near_choice(value, hint)}")


def convert_fields(values: Mapping[str, Any], hints: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Convert values that are read from YAML to their fields' types; messages name `section.field`."""
    return {name: convert(value, hints[name], f"{section}.{name}") for name, value in values.items()}


def yaml_text(value: Any) -> str:
    """Write a plain value as one line of YAML, as the command line takes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str | int | float) for item in value):
        return ",".join(map(str, value)) or "[]"
    return yaml.safe_dump(plain(value), default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def plain(value: Any) -> Any:
    """Turn tuples into lists, as YAML and JSON have them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def kind_words(hint: Any) -> str:
    """Name a field's type in short, such as `integer or null` or `no|bf16`."""
    choices, null = choices_of(hint), ["null"] if type(None) in alternatives_of(hint) else []
    return " or ".join([*(["|".join(choices)] if choices else []), *(_WORDS[k][0] for k in _kinds(hint)), *null])


def wanted(hint: Any, allowed: str = "") -> str:
    """Say in words what a field takes, such as `an integer, 1 or more, or null`."""
    choices, null = choices_of(hint), type(None) in alternatives_of(hint)
    words = [f"one of {', '.join(choices)}"] if choices else []
    words += [_WORDS[kind][1] for kind in _kinds(hint)]
    if allowed:
        return f"{' or '.join(words)}, {allowed}" + (", or null" if null else "")
    return " or ".join([*words, *(["null"] if null else [])])


def alternatives_of(hint: Any) -> tuple[Any, ...]:
    """Return the types that a hint allows, without annotations."""
    if typing.get_origin(hint) is typing.Annotated:
        return alternatives_of(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return tuple(part for alternative in typing.get_args(hint) for part in alternatives_of(alternative))
    return (hint,)


def choices_of(hint: Any) -> list[str]:
    """Return the words that a hint lists."""
    return [c for a in alternatives_of(hint) if typing.get_origin(a) is Literal for c in typing.get_args(a)]


def _kinds(hint: Any) -> list[Any]:
    """Return the types that a hint allows beside words and null; a number may be an integer."""
    kinds = [typing.get_origin(a) or a for a in alternatives_of(hint)]
    return [k for k in dict.fromkeys(kinds) if k in _WORDS and not (k is int and float in kinds)]


def _near_choice(value: Any, hint: Any) -> str:
    close = difflib.get_close_matches(str(value), choices_of(hint), n=1)
    return f"; did you mean {close[0]}?" if close else "."


def _items(value: Any) -> list[Any] | None:
    """Return the items of a list, of text with commas, or of a lone value; `None` for a mapping."""
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[]").split(",") if part.strip()]
    if isinstance(value, list | tuple):
        return list(value)
    return None if isinstance(value, dict) or value is None else [value]


def _refuse_non_finite(value: Any, name: str) -> None:
    """Refuse a number that is not finite, also within lists and mappings."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be finite.")
    for key, item in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        _refuse_non_finite(item, f"{name}.{key}")


def _number(value: Any) -> float | None:
    """Return a finite number that 64 bits hold; `None` for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not (isinstance(value, int) and abs(value) >= 2**63) else None
