"""A one-node SLURM as an ordinary process tree: no systemd, no cgroup, no entry in ``/etc``; starts in about a second.

Use ``python -m slurm.dev_cluster up`` and ``down``, or ``with cluster(folder) as environment:`` in tests.
It has two partitions, ``main`` and ``high``, which preempts ``main``; its eight CPUs and two GPUs are simulated.
"""

from slurm.dev_cluster._cluster import cluster, down, environment, missing, release, up

__all__ = ["cluster", "down", "environment", "missing", "release", "up"]
