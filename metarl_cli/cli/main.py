"""``metarl``: one word chooses the command, the rest is the command's.

Nothing slow is imported before it is needed: ``metarl --help`` loads no Hydra, and a configuration is shown without torch.
"""

from __future__ import annotations

import io
import re
import signal
import sys

from metarl_cli import __version__
from metarl_cli.cli.commands import commands
from metarl_cli.cli.terminal import closing_pipes, print_error, stoppable, waiting
from metarl_cli.errors import UserError

UNDECODED = re.compile("[\udc80-\udcff]")  # how Python holds bytes that are no UTF-8
HELP = """\
metarl {version}: meta-reinforcement learning from one command.

usage: metarl COMMAND [key=value ...] [flags]

commands
{commands}

examples
  metarl train                                             MAML-DQN with a learned loss, on CartPoles
  metarl train algo=dqn env=navigation_2d seed=1           another algorithm, another family
  metarl train -m algo=maml_dqn,dqn 'seed=range(5)'        a sweep; run it again and finished runs are skipped
  metarl test run=outputs/RUN split=ood                    test a run again, on tasks beyond the training ranges
  metarl adapt run=outputs/RUN task.gravity=20             adapt to one task
  metarl export outputs/RUN/adapted/NAME                   its policy as ONNX and torch.export, for others to serve
  metarl report outputs format=html                        a comparison of all runs, with intervals over seeds
  tensorboard --logdir outputs                             curves of all runs

where to look next
  metarl envs NAME             describe a family; without NAME, one line for each (metarl algos does the same)
  metarl COMMAND --help        all options of a command: what to choose from, every value, examples
  metarl COMMAND --cfg job     print the configuration with your overrides, and stop
  metarl COMMAND --hydra-help  Hydra's own flags and groups
  eval "$(metarl --shell-completion install=bash)"         completion of commands, options and values (also fish, zsh)
  metarl --version
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0 done, 2 bad input, 130 interrupted, 1 a fault of the program."""
    words = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the terminal cannot show
    try:
        if wrong := [word for word in words if not word.isascii() and UNDECODED.search(word)]:
            raise UserError(*(f"{word}: is no UTF-8" for word in wrong))
        with stoppable():
            return _run(words)
    except UserError as error:
        return print_error(error)
    except KeyboardInterrupt:
        if arguments is None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the process ends: another one needs no traceback
        print("metarl: interrupted", file=sys.stderr)
        return 130


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, commands()))
        lines = [f"  {command.name:<{width}} {command.line}" for command in commands().values()]
        print(HELP.format(version=__version__, commands="\n".join(lines)), end="")
        return 0
    if "--version" in words:
        print(f"metarl {__version__}")
        return 0
    if words[0] in ("-sc", "--shell-completion"):
        from metarl_cli.cli.completion import complete

        return complete(words)
    name, *rest = words
    if name not in commands():
        from metarl_cli.config.messages import known_options

        hint = "; the command comes first" if set(words) & set(commands()) else known_options(name, commands())
        raise UserError(f"{name}: no such command{hint} (see metarl --help)")
    if commands()[name].has_config:
        with waiting("loading Hydra ..."):
            from metarl_cli.cli.hydra import run
        return run(commands()[name], rest)
    with closing_pipes():
        return int(commands()[name].load().run(rest) or 0)
