"""What an experiment file may say: one run, a grid of runs, a search."""
