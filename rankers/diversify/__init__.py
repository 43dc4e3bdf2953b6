"""Stages that reorder each user's list for more than relevance: one file a method.

The file's name is the method's name. Each file holds

    class Config(DiversifyConfig): ...
    def reorder(item: Tensor, score: Tensor, user: Tensor, k: int, config: Config, given: Given) -> Tensor: ...

    item   (U, N) int64, best first, -1 is padding at the end
    score  (U, N) float32 of the same order, descending; ignored on padding
    user   (U,) int64
    returns (U, min(k, N)) int64: items of the same user's list, each once, -1 at the end where it is shorter

The first ``config.depth`` items of a list are reordered; those behind keep their places. Relevance is the score
scaled to [0, 1] within the user's reordered items, so that ``strength`` means the same for every scorer. What
comes out equally good keeps its order, hence ``strength`` 0 returns ``item[:, :k]``. Each user's result depends
neither on the batch nor on ``k``, which only cuts it. ValueError: ``k`` is below 1, a listed score is not finite,
scores do not descend, or padding stands before an item.

All tensors are on one device, and work is in blocks of (U, N, C) or (U, N, D) float64: the caller chooses U.
A module here must import without torch, so that a ``Config`` is read at once.
"""
