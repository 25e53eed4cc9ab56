"""Environment families; each module is one family, named by ``module:`` in ``conf/env``."""
