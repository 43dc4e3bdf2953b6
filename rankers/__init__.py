"""What learns no text: the baselines that every text model should beat. One file a ranker.

The file's name is the ranker's name. Each file holds

    class Config(RankerConfig): ...
    def fit(train: Tensor, config: Config, validate: Validate) -> Ranker: ...

``train`` is the (U, I) float32 matrix of training interactions, 1 or 0. ``validate`` gives the monitored
validation metric of a candidate, higher is better: hyper-parameters are chosen by it and by nothing else.
The returned :class:`~rankers._base.Ranker` scores histories and says in ``details`` what was chosen.

A module here must import without torch or scipy, so that a ``Config`` is read at once: import them inside
functions, and types under ``TYPE_CHECKING``.
"""
