"""Trackers that mirror runs, one file each; ``my_package.MyLogger`` names a Lightning logger or one of your own.

Each file holds ``Config(TrackerConfig)``, ``check(config)``, which raises ``RecpeftError`` if the tracker cannot work,
and ``start(config, run) -> Tracker``. The record is canonical and a tracker a copy: its error ends it, never the run.
"""
