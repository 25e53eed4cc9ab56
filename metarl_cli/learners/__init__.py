"""Learners: learning methods for one task. Each module is one learner, named by ``module:`` in ``conf/learner``."""
