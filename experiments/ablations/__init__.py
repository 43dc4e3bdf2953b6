"""Scripts that answer one question each, as a study over a base file: ``python -m experiments.ablations.rank_sweep``.

All take ``--base FILE`` (the quickstart unless given), ``--set key=value`` over that, ``--out``, ``--workers`` and
``--help``. Each prints and writes the study's report, then the few columns that answer its question, one row per run.
Differences smaller than their interval in the report do not count; ``--set 'seeds=[0, 1, 2]'`` shows how much a seed
changes a number.
"""
