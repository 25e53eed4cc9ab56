"""Searches: how a population moves to greater fitness; each module is one, named by ``module:`` in ``conf/search``."""
