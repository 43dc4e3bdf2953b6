"""One question a script, each a study over a base file: ``python -m experiments.ablations.rank_sweep --help``.

All take ``--base FILE`` (the quickstart unless given), ``--set key=value`` over that, ``--out`` and ``--workers``. Each
prints and writes the study's report, then the few columns that answer its question, a row a run. A difference smaller
than the interval beside it in the report is none; ``--set 'seeds=[0, 1, 2]'`` says how far a seed moves a number.
"""
