"""Families of tasks; each module is one family, named by ``module:`` in ``conf/env``."""
