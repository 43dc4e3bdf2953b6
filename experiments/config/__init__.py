"""Contents of an experiment file: one run, a grid of runs, or a search."""
