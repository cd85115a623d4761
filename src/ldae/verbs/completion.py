"""`ldae completion bash|zsh`: the completion of this command for a shell."""

from ldae.options import describe
from ldae.options.completion import Command, bash_completion, zsh_completion
from ldae.training.recipe import recipe_files
from ldae.verbs import VERBS
from ldae.verbs.options.start import CompletionOptions


RECIPES = {"pretrain": "config", "train_tokenizer": "config", "recipes": "name"}  # options that take a recipe's name


def run(options: CompletionOptions) -> int:
    """Run the verb; the exit status is 0."""
    write = bash_completion if options.shell == "bash" else zsh_completion
    print(write("ldae", {verb: _command(verb) for verb in VERBS}), end="")
    return 0


def _command(verb: str) -> Command:
    kind = VERBS[verb].options
    fields = kind.sections().values() if hasattr(kind, "sections") else []
    options = [*describe(kind), *(option for section in fields for option in section)]
    names = list(recipe_files())
    return Command(VERBS[verb].summary, options, {RECIPES[verb]: names} if verb in RECIPES else {})
