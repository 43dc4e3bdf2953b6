"""Losses, one file each, with a ``Config`` and ``loss(pairs: ScoredPairs, **options) -> ()``.

The options are the fields of ``Config`` except ``name``, with the same defaults. A loss works with any formulation: it
sees only the scores of users' candidates and the labels of each pair. Some losses use the logits of rating levels
behind the scores, and refuse a formulation without them. All users have equal weight, however many positives they
have. A user without a training signal (each loss defines when) contributes nothing; if this holds for every user, the
loss is 0.
"""
