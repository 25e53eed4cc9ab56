"""The measured levels that come with metarl: the returns of a robust policy and of an oracle on held-out tasks.

    python benchmarks/levels.py --robust outputs/robust_dqn-*-seed* --oracle outputs/oracle_dqn-*-seed*

The runs are of one environment. What they have returned on every task that all of them were tested on (at the end of training,
and with ``metarl test run=... split=... tasks=...``) is averaged over seeds and written to ``metarl_cli/evaluation/levels/``.
"""

from __future__ import annotations

import argparse

from metarl_cli.errors import UserError
from metarl_cli.runs.levels import write_levels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robust", nargs="+", help="run folders of a policy that cannot know the task, one for each seed")
    parser.add_argument("--oracle", nargs="+", help="run folders of a policy that is given the task")
    args = parser.parse_args()
    try:
        print(f"written: {write_levels(args.robust, args.oracle)}")
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
