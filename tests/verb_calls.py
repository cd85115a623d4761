"""Run a verb in this process, without the command line's care for errors."""

from ldae.options import parse
from ldae.verbs.options import GROUPS


def call(verb, arguments):
    """Parse the arguments of a verb, given as its module, and run it; errors are raised."""
    name = verb.__name__.rpartition(".")[2]
    kind = next(group[name] for group in GROUPS.values() if name in group)
    return verb.run(parse(kind, [str(argument) for argument in arguments]))
