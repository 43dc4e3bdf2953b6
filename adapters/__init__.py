"""Methods that adapt the backbone: one file per method.

Each plug-in holds its ``Config`` (readable without torch) and ``attach``; the rest is optional::

    class Config(AdapterConfig): ...
    def attach(backbone, config, total_steps, tokenizer) -> nn.Module: ...  # a PeftModel where there is an adapter
    def check(backbone, config) -> None: ...                # refuse a backbone it cannot work on
    def load(backbone, config, folder) -> nn.Module: ...    # default: PeftModel.from_pretrained
    def describe(model, config) -> dict: ...                # for the record: resolved targets, phases
    def after_step(model, config, step) -> None: ...        # called after each optimiser step
    def penalty(model, config) -> Tensor: ...               # () added to the loss
    def observe(model, config) -> dict: ...                 # for the trace, at each validation
    def may_be_best(model, config, step) -> bool: ...       # whether the epoch that ended there may be the result
    def finish(model, config) -> None: ...                  # called after training: bring the model into its saved form
    def param_groups(model, config, learning_rate) -> list[dict]: ...      # the optimiser's parameter groups
    def state_dict(model, config) -> dict: ...              # state that resume needs besides the weights
    def load_state_dict(model, config, state) -> None: ...
    VECTORS = ("…",)                                        # name parts of (n, 1) parameters that are vectors
    PEFT_IMPORT = "from … import …"                         # statement that registers the method with PEFT

``check`` raises ``RecpeftError``; it gets a backbone without weights (on the meta device), before anything is
loaded, and ``attach`` checks the same. ``tokenizer`` is the backbone's, for methods that start from a text, or None.
``Adapter(config)`` is a plug-in with its config and defaults for missing hooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recpeft import lazy

if TYPE_CHECKING:
    from adapters._adapter import Adapter

__all__ = ["Adapter"]

__getattr__ = lazy.exports(__name__, {"Adapter": "adapters._adapter:Adapter"})
