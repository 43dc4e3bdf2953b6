"""Methods that reorder each user's list for more than relevance: one file per method.

The file's name is the method's name. Each file holds

    class Config(DiversifyConfig): ...
    def reorder(item: Tensor, score: Tensor, user: Tensor, k: int, config: Config, given: Given) -> Tensor: ...

    item   (U, N) int64, best first, -1 is padding at the end
    score  (U, N) float32 of the same order, descending; ignored on padding
    user   (U,) int64
    returns (U, min(k, N)) int64: items of the same user's list, each once, -1 at the end where it is shorter

The first ``config.depth`` items of a list are reordered; later items keep their places. Relevance is the score
scaled to [0, 1] within the user's reordered items, so that ``strength`` means the same for every scorer. Ties keep
the original order, so ``strength`` 0 returns ``item[:, :k]``. A user's result does not depend on the batch, and ``k``
only truncates it. Methods raise ValueError if ``k`` is below 1, a listed score is not finite, scores do not descend,
or padding precedes an item.

All tensors are on one device. Intermediate tensors are (U, N, C) or (U, N, D) float64: the caller chooses U.
A module here must import without torch, so that a ``Config`` loads fast.
"""
