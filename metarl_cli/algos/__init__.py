"""Algorithms, which learn across tasks; each module is one algorithm, named by ``module:`` in ``conf/algo``."""
