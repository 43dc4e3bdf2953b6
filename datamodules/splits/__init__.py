"""Kinds of splits of interactions into train, validation and test: one file per kind.

Each file holds ``class Config(SplitConfig)`` and

    def parts(rows: pl.DataFrame, dataset: RecDataset, config: Config) -> pl.Series: ...

which assigns each row ``TRAIN``, ``VALIDATION``, ``TEST``, ``HISTORY`` (shown in the user's prompts, never learnt) or
``LEFT_OUT``. ``rows`` are the interactions by user, time and a seeded hash, with that hash as ``tie`` (uint64).
``datamodules/_splits.py`` does the rest for all kinds.
"""
