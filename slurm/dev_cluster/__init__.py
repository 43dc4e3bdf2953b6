"""A one-node SLURM as an ordinary process tree: no systemd, no cgroup, no entry in ``/etc``; up in about a second.

``python -m slurm.dev_cluster up`` and ``down``, or ``with cluster(folder) as environment:`` in tests.
Two partitions, ``main`` and ``high``, which preempts ``main``; eight CPUs and two GPUs, none of them real.
"""

from slurm.dev_cluster._cluster import cluster, down, environment, missing, release, up

__all__ = ["cluster", "down", "environment", "missing", "release", "up"]
