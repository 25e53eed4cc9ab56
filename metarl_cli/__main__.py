"""``python -m metarl_cli`` is ``metarl``."""

import sys

from metarl_cli.cli.main import main

if __name__ == "__main__":
    sys.argv[0] = "metarl"
    sys.exit(main())
