"""Searches, which move a population to greater fitness; each module is one, named by ``module:`` in ``conf/algo/search``."""
