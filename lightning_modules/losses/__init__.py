"""How scores are taught: one file a loss, each with its ``Config`` and ``loss(pairs: ScoredPairs, **options) -> ()``.

The options are the fields of ``Config`` but for ``name``, with the same defaults. A loss is any formulation's: all it
sees are the scores of users' candidates and what is known of each. Some learn the logits of ratings' levels that a
formulation made its scores of, and refuse one that gives none. Users weigh alike, however many positives they
have, and one from whom there is nothing to learn (each loss says when) contributes nothing; where that is every user,
the loss is 0.
"""
