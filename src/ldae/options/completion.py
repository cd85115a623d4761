"""Completion of a command's verbs, options and values in bash and zsh, written from options."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .describe import Option


HELP_WIDTH = 72  # columns of an option's help in zsh


@dataclass(frozen=True)
class Command:
    """Options and values that are completed after a verb.

    Args:
        summary: What the verb does.
        options: Its options; a name that appears twice counts once.
        words: Values by option, for those whose values are not declared, such as names of recipes.
    """

    summary: str
    options: Sequence[Option]
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def named(self) -> list[Option]:
        """The options that are given by name."""
        return list({option.name: option for option in self.options if not option.positional}.values())

    def values(self, option: Option) -> list[str]:
        """Return the words that an option takes; empty if it takes any."""
        return list(self.words.get(option.name, option.choices or (["true", "false"] if option.is_flag else [])))

    @property
    def first_words(self) -> list[str]:
        """The words that the first argument without a name takes; empty if it takes any, such as a file."""
        return next((self.values(option) for option in self.options if option.positional), [])


def bash_completion(program: str, commands: Mapping[str, Command]) -> str:
    """Write a script that completes a program in bash.

    Args:
        program: Name of the program.
        commands: What is completed, by verb.
    """
    options, values = [], []
    for verb, command in commands.items():
        named = " ".join([*(f"--{option.name}" for option in command.named), "--help"])
        options.append(f'    {verb}) options="{named}" first="{" ".join(command.first_words)}" ;;')
        for option in command.named:
            if words := command.values(option):
                values.append(f'    {verb}:--{option.name}) words="{" ".join(words)}" ;;')
    return rf"""# Completion of {program} in bash: eval "$({program} completion bash)"
_{program}() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} options= first= words=
  local verb=${{COMP_WORDS[1]//-/_}}
  if [[ $before == = ]]; then before=${{COMP_WORDS[COMP_CWORD-2]}}; fi
  if [[ $current == = ]]; then current=; fi
  COMPREPLY=()
  if [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(commands)} --help --version" -- "$current"))
    return
  fi
  case $verb in
{chr(10).join(options)}
  esac
  if [[ $before == --* ]]; then before=${{before#--}} && before=--${{before//-/_}}; fi
  case $verb:$before in
{chr(10).join(values)}
  esac
  if [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$current"))
    return
  fi
  if [ "$COMP_CWORD" = 2 ]; then words=$first; fi
  compopt -o filenames 2> /dev/null
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  if [[ -z $words || $before == --config ]]; then
    local IFS=$'\n'
    COMPREPLY+=($(compgen -f -- "$current"))
  fi
}}
complete -F _{program} {program}
"""


def zsh_completion(program: str, commands: Mapping[str, Command]) -> str:
    """Write a script that completes a program in zsh, with what each verb and option means.

    Args:
        program: Name of the program.
        commands: What is completed, by verb.
    """
    verbs = [f"    {_quote(f'{verb}:{_escape(command.summary)}')}" for verb, command in commands.items()]
    cases = []
    for verb, command in commands.items():
        lines = [_zsh_option(command, option) for option in command.named] + ["'--help[list all options]'"]
        first = f"'1:argument:({' '.join(command.first_words)})'" if command.first_words else "'*:file:_files'"
        cases.append(f"    {verb}) _arguments \\\n      {f' {chr(92)}{chr(10)}      '.join([*lines, first])} ;;")
    return f"""#compdef {program}
# Completion of {program} in zsh: eval "$({program} completion zsh)", after compinit
_{program}() {{
  local -a verbs
  verbs=(
{chr(10).join(verbs)}
  )
  if (( CURRENT == 2 )); then
    _describe command verbs
    return
  fi
  shift words
  (( CURRENT-- ))
  case ${{words[1]//-/_}} in
{chr(10).join(cases)}
  esac
}}
if [ "$funcstack[1]" = "_{program}" ]; then _{program} "$@"; else compdef _{program} {program}; fi
"""


def _zsh_option(command: Command, option: Option) -> str:
    words = command.values(option)
    values = f"({' '.join(words)})" if words else "_files" if option.kind.startswith("text") else " "
    if option.name == "config":
        names = f'"names\\:recipe\\:({" ".join(words)})" "files\\:file\\:_files"'
        values = "{_alternative " + names + "}" if words else "_files"
    colons = "::" if option.is_flag else ":"  # a flag may stand without a value
    return _quote(f"--{option.name}=[{_escape(_short(option.help))}]{colons}{option.name}:{values}")


def _short(text: str) -> str:
    """Return the first sentence, or as much of it as fits."""
    sentence = re.split(r"(?<=[.;]) ", text)[0].rstrip(".;")
    return sentence if len(sentence) <= HELP_WIDTH else sentence[: HELP_WIDTH - 3].rsplit(" ", 1)[0] + " ..."


def _escape(text: str) -> str:
    return re.sub(r"([\[\]:\\])", r"\\\1", text)


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
