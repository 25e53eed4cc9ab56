"""Parts of a genome; each module is one, named by ``module:`` in ``conf/algo/genome``."""
