"""Run a verb in this process, without the command line's care for errors."""

from ldae.options import parse
from ldae.verbs import VERBS


def call(verb, arguments):
    """Parse the arguments of a verb, given as its module, and run it; errors are raised."""
    found = VERBS[verb.__name__.rpartition(".")[2]]
    return found.run(parse(found.options, [str(argument) for argument in arguments]))
