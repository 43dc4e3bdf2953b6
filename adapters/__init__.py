"""How the backbone is adapted: one file a method.

Each plug-in holds its ``Config`` (readable without torch) and ``attach``; the rest is optional::

    class Config(AdapterConfig): ...
    def attach(backbone, config, total_steps) -> nn.Module: ...      # a PeftModel where there is an adapter
    def after_step(model, step) -> None: ...                         # once after each optimiser step
    def penalty(model) -> Tensor: ...                                # () added to the loss
    def param_groups(model, learning_rate) -> list[dict]: ...        # what the optimiser gets
    def state_dict(model) -> dict: ...                               # what resume needs beyond the weights
    def load_state_dict(model, state) -> None: ...
"""
