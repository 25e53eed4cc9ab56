"""Learners: how one task is learned; each module is one learner, named by ``module:`` in ``conf/learner``."""
