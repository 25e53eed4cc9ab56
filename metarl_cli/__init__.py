"""metarl: the one command for meta-reinforcement-learning experiments."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("metarl-cli")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
