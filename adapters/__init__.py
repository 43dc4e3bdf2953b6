"""How the backbone is adapted: one file a method.

Each plug-in holds its ``Config`` (readable without torch) and ``attach``; the rest is optional::

    class Config(AdapterConfig): ...
    def attach(backbone, config, total_steps, tokenizer) -> nn.Module: ...  # a PeftModel where there is an adapter
    def check(backbone, config) -> None: ...                # refuse a backbone it cannot work on
    def load(backbone, config, folder) -> nn.Module: ...    # what was saved; PeftModel.from_pretrained unless given
    def describe(model, config) -> dict: ...                # what the record says of it: resolved targets, phases
    def after_step(model, config, step) -> None: ...        # once after each optimiser step
    def penalty(model, config) -> Tensor: ...               # () added to the loss
    def observe(model, config) -> dict: ...                 # what the trace says of it at each validation
    def may_be_best(model, config, step) -> bool: ...       # whether the epoch that ended there may be the result
    def finish(model, config) -> None: ...                  # once training is over: give it the form that is saved
    def param_groups(model, config, learning_rate) -> list[dict]: ...      # what the optimiser gets
    def state_dict(model, config) -> dict: ...              # what resume needs beyond the weights
    def load_state_dict(model, config, state) -> None: ...
    VECTORS = ("…",)                                        # parts of names of parameters (n, 1) that are no matrices
    PEFT_IMPORT = "from … import …"                         # what makes PEFT know a method that it has not

``check`` raises ``RecpeftError`` and sees a backbone without weights (on the meta device), before anything is
loaded; ``attach`` checks the same. ``tokenizer`` is the backbone's, for methods that start from a text, or None.
``Adapter(config)`` is a plug-in with its config and the defaults of what it leaves out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recpeft import lazy

if TYPE_CHECKING:
    from adapters._adapter import Adapter

__all__ = ["Adapter"]

__getattr__ = lazy.exports(__name__, {"Adapter": "adapters._adapter:Adapter"})
