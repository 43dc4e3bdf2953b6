"""How scores are taught: one file a loss, each with its ``Config`` and ``loss(scores, batch parts) -> ()``."""
