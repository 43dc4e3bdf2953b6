"""Rankers that read no text: the baselines that every text model should beat. One file a ranker.

The file's name is the ranker's name. Each file holds

    class Config(RankerConfig): ...
    def fit(data: TrainData, config: Config, options: TrainingOptions) -> Ranker: ...
    def load(config: Config, tensors: Mapping[str, Tensor], details: dict[str, float]) -> Ranker: ...

``data`` (:class:`~rankers._data.TrainData`) is the train part: users, items, ratings and times, and on demand the
sparse matrix of what users like. ``options`` (:class:`~rankers._base.TrainingOptions`) holds seed, device, threads,
a folder for checkpoints and ``validate``, the monitored validation metric of a candidate: hyper-parameters are
chosen, and training ends, by it and by nothing else. The returned :class:`~rankers._base.Ranker` scores users by
their histories, says in ``details`` what was chosen, and gives its ``tensors``, which are saved with the run as
safetensors; ``load`` makes the same ranker of them.

A ranker that draws sets ``Config.STOCHASTIC`` and is run once for each seed. A module here must import without torch or
scipy, so that a ``Config`` is read at once: import them inside functions, and types under ``TYPE_CHECKING``.
"""
