"""Evaluation on held-out tasks: adaptation curves, intervals, references, tables and figures."""
