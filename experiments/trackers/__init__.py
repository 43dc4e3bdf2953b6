"""Where runs are mirrored, one file a tracker; ``my_package.MyLogger`` is any of Lightning's loggers, or one of yours.

Each file holds ``Config(TrackerConfig)``, ``check(config)``, which raises ``RecpeftError`` where it cannot be, and
``start(config, run) -> Tracker``. A record is canonical and a tracker its copy: what one raises ends it, never a run.
"""
