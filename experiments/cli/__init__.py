"""The command line: one file per group of commands."""

from experiments.cli.app import main

__all__ = ["main"]
