"""Running on a SLURM cluster: sbatch text, manifest, submission, status, and a development cluster for the tests."""

from slurm._cluster import QueueState, cancel, most_tasks, queue, submit
from slurm._manifest import Cell, Manifest, cell_of, find_manifests, new_folder, now, read_manifest, write_manifest
from slurm._script import INTERRUPTED, Options, array_text, cell_command, read_options, sbatch_text
from slurm._status import STATES, Row, counts, rows, to_resubmit

__all__ = [
    "INTERRUPTED",
    "STATES",
    "Cell",
    "Manifest",
    "Options",
    "QueueState",
    "Row",
    "array_text",
    "cancel",
    "cell_command",
    "cell_of",
    "counts",
    "find_manifests",
    "most_tasks",
    "new_folder",
    "now",
    "queue",
    "read_manifest",
    "read_options",
    "rows",
    "sbatch_text",
    "submit",
    "to_resubmit",
    "write_manifest",
]
