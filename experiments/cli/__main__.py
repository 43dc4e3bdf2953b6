"""``python -m experiments.cli`` is ``recpeft``."""

from experiments.cli import main

main()
