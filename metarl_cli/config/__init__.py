"""Schemas, the registry of modules, messages."""
