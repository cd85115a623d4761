"""Damage to bytes and to nested values, as disks, editors and people do it."""

import random
import struct
from typing import Any


# Values that a field of any type may be given by mistake.
WRONG_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 7, 0.5, -0.5, 1e-30, 1e30, 10**9, 10**30, 2**31, 2**63, -(2**63)),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        " ",
        "null",
        "abc",
        "1e6",
        "1e400",
        "0x10",
        "1_000",
        "١٢",
        "\x00",
    ),
    *("../..", "/", "a" * 300, [], [0], [1, "a"], [[]], {}, {"a": 1}, [float("nan")], [1] * 50, "[", "{a: 1", "- 1"),
)


def damage_bytes(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Change bytes in one of the ways in which files go wrong; returns what was done, and the bytes."""
    size, kinds = len(data), ("flip", "truncate", "zeros", "random", "insert", "remove", "header", "length", "repeat")
    kind, place = chance.choice(kinds), chance.randrange(size)
    changed = bytearray(data)
    if kind == "flip":
        for _ in range(chance.choice((1, 4, 32))):
            changed[chance.randrange(size)] ^= 1 << chance.randrange(8)
    elif kind == "truncate":
        del changed[chance.choice((0, 1, 7, 20, place, size - 1)) :]
    elif kind in ("zeros", "random"):
        length = min(chance.choice((1, 16, 256)), size - place)
        changed[place : place + length] = bytes(length) if kind == "zeros" else chance.randbytes(length)
    elif kind == "insert":
        changed[place:place] = chance.randbytes(chance.choice((1, 9)))
    elif kind == "remove":
        del changed[place : place + chance.choice((1, 9))]
    elif kind == "header":
        for _ in range(3):
            changed[chance.randrange(min(size, 64))] = chance.randrange(256)
    elif kind == "length":  # a number of a header becomes huge
        place = chance.randrange(min(size, 128))
        changed[place : place + 4] = struct.pack(chance.choice("<>") + "I", chance.choice((2**32 - 1, 2**31, 65535)))
    else:
        changed += data
    return f"{kind} at {place}", bytes(changed)


def damage_mapping(content: dict[str, Any], chance: random.Random) -> tuple[str, dict[str, Any], str]:
    """Change one field of a nested mapping; returns what was done, the mapping, and the name of the field."""
    content = {**content}
    name = chance.choice(sorted(content))
    inner = content[name]
    if isinstance(inner, dict) and inner and chance.random() < 0.8:
        what, changed, field = damage_mapping(inner, chance)
        return f"{name}.{what}", content | {name: changed}, field
    kind = chance.choice(("value", "value", "value", "missing", "unknown", "scale", "case"))
    if kind == "missing":
        del content[name]
    elif kind == "unknown":
        name = chance.choice((name + "s", name[:-1] or "x", "learning-rate", "x"))
        content[name] = chance.choice(WRONG_VALUES)
    elif kind == "case":
        content[name.upper()] = content.pop(name)
        return f"{name} in capitals", content, name.upper()
    elif kind == "scale" and isinstance(inner, int | float) and not isinstance(inner, bool):
        content[name] = chance.choice((-inner, inner * 1000, inner + 1, inner / 3, str(inner), [inner]))
    else:
        content[name] = chance.choice(WRONG_VALUES)
    shown = repr(content.get(name))
    return f"{name} {kind} {shown if len(shown) < 60 else shown[:60] + '...'}", content, name
