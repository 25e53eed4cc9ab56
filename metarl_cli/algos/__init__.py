"""Algorithms: what is learned across tasks; each module is one algorithm, named by ``module:`` in ``conf/algo``."""
