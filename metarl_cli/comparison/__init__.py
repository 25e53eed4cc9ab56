"""Runs beside each other: groups of seeds, tables, figures, a web page."""
