"""`completion`: a script for the shell, and the answers that it asks for while one types."""

import argparse
from collections.abc import Callable, Iterable, Mapping

from accel_train.commands.arguments import make_parser
from accel_train.commands.data import IMPORTS
from accel_train.commands.explain import read_sections
from accel_train.commands.init import WORKLOADS

BASH = r"""# Completion of accel-train in bash: eval "$(accel-train completion bash)"
_accel_train() {
    local current=${COMP_LINE:0:COMP_POINT} candidate quoted
    COMPREPLY=()
    while IFS= read -r candidate; do
        printf -v quoted %q "$candidate"
        COMPREPLY+=("$quoted")
    done < <("${COMP_WORDS[0]}" completion --answer "$current" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[./=] ]] && compopt -o nospace
    current=${current##*[[:space:]]}
    if [[ $COMP_WORDBREAKS == *=* && $current == *=* ]]; then  # bash completes what follows the sign alone
        COMPREPLY=("${COMPREPLY[@]#"${current%=*}="}")
    fi
}
complete -F _accel_train accel-train
"""
ZSH = r"""#compdef accel-train
# Completion of accel-train in zsh: source <(accel-train completion zsh), after compinit
_accel_train() {
    local -a open closed
    local candidate
    while IFS= read -r candidate; do
        if [[ $candidate == *[./=] ]]; then open+=("$candidate"); else closed+=("$candidate"); fi
    done < <("${words[1]}" completion --answer "${(j: :)words[1,CURRENT]}" 2>/dev/null)
    (( $#open )) && compadd -S '' -- "${open[@]}"
    (( $#closed )) && compadd -- "${closed[@]}"
    (( $#open + $#closed ))
}
compdef _accel_train accel-train
"""
FISH = r"""# Completion of accel-train in fish: accel-train completion fish | source
complete -c accel-train -f -a '(accel-train completion --answer (commandline -cp | string collect) 2>/dev/null)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def completion_of(commands: Mapping[str, Callable[[list[str]], None]]) -> Callable[[list[str]], None]:
    """The command, for a program with these commands."""

    def completion(argv: list[str]) -> None:
        """Prints a script that completes commands, options, files and configuration keys in your shell.

        After CONFIG the keys are those of its task, and the towers are those in the file.

          in ~/.bashrc:                eval "$(accel-train completion bash)"
          in ~/.zshrc after compinit:  source <(accel-train completion zsh)
          fish, once:                  accel-train completion fish > ~/.config/fish/completions/accel-train.fish
        """
        parser = make_parser(completion, "accel-train completion bash")
        asked = parser.add_mutually_exclusive_group()
        asked.add_argument("shell", nargs="?", choices=SCRIPTS, help="shell that the script is for")
        asked.add_argument("--answer", metavar="LINE", help=argparse.SUPPRESS)
        arguments = parser.parse_args(argv)
        if arguments.answer is None:
            if arguments.shell is None:
                parser.error(f"for which shell? One of {', '.join(SCRIPTS)}")
            print(SCRIPTS[arguments.shell], end="")
            return

        from accel_train.tools.completion.candidates import candidates

        named: dict[str, Iterable[str]] = {
            "WORKLOAD": WORKLOADS,
            "CODE": read_sections(),
            "C": ("best", "latest"),
            "NAME": IMPORTS if arguments.answer.split()[1:2] == ["import"] else (),
        }
        for candidate in candidates(arguments.answer, commands, named):
            print(candidate)

    return completion
