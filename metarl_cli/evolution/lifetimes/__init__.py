"""Lifetimes: how an individual learns its task; each module is one, named by ``module:`` in ``conf/algo/lifetime``."""
