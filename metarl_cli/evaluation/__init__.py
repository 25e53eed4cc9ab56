"""Adaptation curves, intervals, references, tables and figures."""
