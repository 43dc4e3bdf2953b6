"""The command line: one file a group of commands."""

from experiments.cli.app import main

__all__ = ["main"]
