"""Mutated files for every reader that takes its file for hostile: `python -m tests.fuzz --help`."""
