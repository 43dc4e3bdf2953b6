"""Rankers that read no text: the baselines that every text model should beat. Each has its own file.

The file's name is the ranker's name. Each file holds

    class Config(RankerConfig): ...
    def fit(data: TrainData, config: Config, options: TrainingOptions) -> Ranker: ...
    def load(config: Config, tensors: Mapping[str, Tensor], details: dict[str, float]) -> Ranker: ...

``data`` (:class:`~rankers._data.TrainData`) is the train part: users, items, ratings and times, and on demand the
sparse matrix of liked items. ``options`` (:class:`~rankers._base.TrainingOptions`) holds seed, device, threads,
a folder for checkpoints and ``validate``, the monitored validation metric of a candidate; it alone chooses
hyper-parameters and ends training. The returned :class:`~rankers._base.Ranker` scores users by their histories,
records the chosen values in ``details``, and returns its ``tensors``, which are saved with the run as safetensors;
``load`` rebuilds the same ranker from them.

A ranker with random draws sets ``Config.STOCHASTIC`` and is run once for each seed. A module here must import without
torch or scipy, so that a ``Config`` loads fast: import them inside functions, and types under ``TYPE_CHECKING``.
"""
