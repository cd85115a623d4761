"""Options are read from YAML files and the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .declare import build, did_you_mean
from .describe import Option, describe
from .values import StrictLoader


T = TypeVar("T")


def parse(kind: type[T], arguments: Sequence[str]) -> T:
    """Read a command line, and the file that its `--config` names, into an object of a class under [`options`].

    Args:
        kind: The class. If it has a class method `sections`, more options by section, such as the fields of a recipe,
            those that are given go to its field `overrides` by name. Else its field `config`, if it has one, names a
            YAML file of options by name; what is on the command line wins.
        arguments: The command line after the verb.

    Raises:
        ValueError: For an option that is unknown, or a value that is missing or refused.
    """
    own = {option.name: option for option in describe(kind)}
    listed = getattr(kind, "sections", None)
    sections: Mapping[str, Sequence[Option]] | None = listed() if listed else None
    others = {option.name: option for fields in (sections or {}).values() for option in fields}
    dotted = {f"{section}.{o.name}": o for section, fields in (sections or {}).items() for o in fields}
    given = parse_arguments(arguments, {**dotted, **others, **own})
    values = {name: value for name, value in given.items() if name in own}
    if sections is not None:
        values["overrides"] = {name: value for name, value in given.items() if name not in own}
    elif values.get("config") is not None:
        values = read_option_file(kind, values["config"]) | values
    return build(kind, values)


def parse_arguments(arguments: Sequence[str], known: Mapping[str, Option]) -> dict[str, Any]:
    """Split a command line into values by name, as text; `-` and `_` in names are the same, and the last of
    several values counts.

    Args:
        arguments: Words such as `runs/digits --images 1000 --streaming=true --noisy`.
        known: Options by name.

    Raises:
        ValueError: For an unknown option, a missing value or a word that belongs to none.
    """
    places = [option for option in known.values() if option.positional]
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if not places:
                example = f"--config {word}" if "config" in known and not found else "--option value"
                raise ValueError(f"unexpected argument {word!r}; write {example}.")
            if places[0].kind == "list":
                found.setdefault(places[0].name, []).append(word)
            else:
                found[places.pop(0).name] = word
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name not in known or known[name].positional:
            names = [n for n, option in known.items() if not option.positional]
            raise ValueError(f"unknown option {word.partition('=')[0]}{did_you_mean(name, names, '--')}")
        if not equals:
            if known[name].is_flag and (not rest or rest[0].lower() not in ("true", "false")):
                value = "true"
            elif not rest:
                raise ValueError(f"--{name} has no value; write --{name} VALUE.")
            else:
                value = rest.pop(0)
        found[name] = value
    return found


def read_option_file(kind: type, path: str) -> dict[str, Any]:
    """Read a YAML file of `option: value` lines for a class under [`options`].

    Raises:
        ValueError: If it cannot be read or holds an unknown option; the message names the file.
    """
    values = read_yaml(path)
    known = [option.name for option in describe(kind) if option.name != "config" and not option.positional]
    for name in values:
        if name not in known:
            raise ValueError(f"{path}: unknown option {name}{did_you_mean(name, known)}")
    return values


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ValueError: If there is no such file, or it is not YAML, not a mapping, or has a key twice; the message names
            the file and the line.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, StrictLoader) or {}
    except FileNotFoundError:
        raise ValueError(f"config={str(path)!r} does not exist; give a YAML file.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); mend the file, or save it as UTF-8.") from error
    except OSError as error:
        raise ValueError(f"config={str(path)!r} cannot be read ({error}); give a YAML file.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2001-02-30
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{path}{place}: {problem}; mend the file.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `name: value` lines, not {content!r}.")
    return content
