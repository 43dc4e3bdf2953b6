"""How interactions become train, validation and test: one file a kind.

Each file holds ``class Config(SplitConfig)`` and

    def parts(rows: pl.DataFrame, dataset: RecDataset, config: Config) -> pl.Series: ...

which gives each row one of ``TRAIN``, ``VALIDATION``, ``TEST``, ``HISTORY`` (known of the user and shown in prompts,
never learnt from) and ``LEFT_OUT``. ``rows`` are the interactions by user, time and a seeded hash, with that hash as
``tie`` (uint64). ``datamodules/_splits.py`` does the rest for all kinds.
"""
