"""Options are read from YAML files and the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .declare import build, did_you_mean
from .describe import Option, describe
from .values import StrictLoader, plain


T = TypeVar("T")
TRUTHS = ("true", "false", "yes", "no", "on", "off", "null")  # words that a flag takes as its value, as YAML does


def parse(kind: type[T], arguments: Sequence[str]) -> T:
    """Read a command line, and the file that its `--config` names, into an object of a class under [`options`].

    Args:
        kind: The class. If it has a class method `sections`, more options by section, such as the fields of a recipe,
            those that are given go to its field `overrides` by name. Else its field `config`, if it has one, names a
            YAML file of options by name; what is on the command line wins.
        arguments: The command line after the verb.

    Raises:
        ValueError: For an option that is unknown or given twice, or a value that is missing or refused.
    """
    own = {option.name: option for option in describe(kind)}
    sections: Mapping[str, Sequence[Option]] = getattr(kind, "sections", dict)()
    others = {option.name: option for fields in sections.values() for option in fields}
    dotted = {f"{section}.{option.name}": option for section, fields in sections.items() for option in fields}
    given = _split(arguments, {**dotted, **others, **own})
    values = {name: value for name, value in given.items() if name in own}
    if sections:
        values["overrides"] = {name: value for name, value in given.items() if name not in own}
    elif "config" in values:
        values = _read_option_file(values["config"], own) | values
    return build(kind, values)


def _split(arguments: Sequence[str], known: Mapping[str, Option]) -> dict[str, Any]:
    """Split a command line into values by name, as text; `-` and `_` in names are the same."""
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
            if known[name].is_flag and (not rest or rest[0].lower() not in TRUTHS):
                value = "true"
            elif not rest or rest[0].startswith("--"):  # a value that begins so is written --name=VALUE
                raise ValueError(f"--{name} has no value; write --{name} VALUE.")
            else:
                value = rest.pop(0)
        for other, before in found.items():  # images and training.images are one option
            if known[other].name == known[name].name:
                raise ValueError(f"--{name} is given twice, as {before} and as {value}; give it once.")
        found[name] = value
    return found


def _read_option_file(path: str, own: Mapping[str, Option]) -> dict[str, Any]:
    """Read a YAML file of `option: value` lines."""
    values = read_yaml(path)
    known = [option.name for option in own.values() if option.name != "config" and not option.positional]
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
            content = plain(yaml.load(file, StrictLoader))  # an alias of what contains it would have no end
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
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `name: value` lines, not {content!r}.")
    return content
