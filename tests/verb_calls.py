"""Run a verb in this process, without the command line's care for errors."""

from ldae.options import parse
from ldae.verbs import VERBS


def call(verb, arguments):
    """Parse the arguments of a verb, given as its module, and run it; errors are raised."""
    name = verb.__name__.rpartition(".")[2]
    return verb.run(parse(VERBS[name].options, [str(argument) for argument in arguments]))
