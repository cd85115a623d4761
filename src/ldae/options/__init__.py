"""Options: declared once as a dataclass, read from YAML files and the command line, explained by `--help`.

An option is a field of a class under [`options`]: its type, its default and, by `pydantic.Field`, its range are the
declaration, the `Args:` section of the class's docstring is its help. Values are YAML text wherever they come from, so
`images: 1e6` in a file and `--images 1e6` on the command line are the same. This module imports neither torch nor
transformers: reading options and printing help take a fraction of a second.
"""

from .declare import build, did_you_mean, options
from .describe import Option, Positional, describe, describe_source, documented_arguments
from .read import parse, read_yaml
from .values import convert_fields, plain, yaml_text


__all__ = [
    "Option",
    "Positional",
    "build",
    "convert_fields",
    "describe",
    "describe_source",
    "did_you_mean",
    "documented_arguments",
    "options",
    "parse",
    "plain",
    "read_yaml",
    "yaml_text",
]
