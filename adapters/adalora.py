"""AdaLoRA: low-rank updates in SVD form, whose ranks a shrinking budget spreads over the layers (Zhang et al. 2023).

Each update is P diag(E) Q and starts with rank ``init_rank``. After an initial phase the singular values E of least
importance are set to zero until ``target_rank`` per matrix remain on average; the final phase trains with these ranks.
A direction's importance is |weight * gradient|, smoothed, times its uncertainty. Implemented by PEFT, which lowers the
ranks only if it is called after each step, and regularises only if the model computes its own loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from adapters._base import LinearTargetsConfig
from recpeft.config import Dimension
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from torch import Tensor, nn


_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""Attributes of PEFT's rank allocator with each weight's sensitivity, its average and its uncertainty."""

VECTORS = ("lora_E",)
"""Singular values, which PEFT stores as (rank, 1); weight decay is for matrices only."""


class Config(LinearTargetsConfig):
    can_merge: ClassVar[bool] = True

    method: str = "adalora"
    init_rank: Dimension = 12
    """Rank of every update until the reduction begins; 12 is PEFT's default."""
    target_rank: Dimension = 8
    """Average rank of an update when the reduction ends; 8 is PEFT's default."""
    alpha: PositiveFloat = 32
    """Scale of the update: alpha / init_rank, even after ranks have fallen; 32 in most of the authors' scripts for
    GLUE, there with an init_rank of 2 or 3."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input; 0 is PEFT's default."""
    initial_phase: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps before the reduction; 0.09 to 0.18 in the authors' scripts for GLUE."""
    final_phase: float = Field(default=0.5, ge=0, lt=1)
    """Share of the steps after the reduction; 0.44 to 0.58 in the authors' scripts for GLUE. Only epochs that end in
    this phase can be the run's best, since the model is over budget before."""
    allocation_interval: PositiveInt = 1
    """Number of steps between two reductions: 1 in the authors' scripts for short runs, 100 for long ones. In between,
    singular values that were set to zero continue to be trained."""
    beta1: float = Field(default=0.85, gt=0, lt=1)
    """Smoothing factor of the sensitivity |weight * gradient|; 0.85 is the paper's value."""
    beta2: float = Field(default=0.85, gt=0, lt=1)
    """Smoothing factor of the uncertainty; 0.85 is the paper's value."""
    orthogonal_weight: NonNegativeFloat = 0.5
    """Weight of the penalty that keeps P and Q orthogonal; 0.5 is PEFT's default, the paper has 0.1, 0.3 and 0.5."""

    @model_validator(mode="after")
    def _ranks_fall(self) -> Config:
        if self.target_rank >= self.init_rank:
            raise ValueError(
                f"target_rank is {self.target_rank} but init_rank is {self.init_rank}, so that nothing is pruned; "
                "raise init_rank, or use adapter.method: lora for one fixed rank"
            )
        return self

    @model_validator(mode="after")
    def _phases_leave_a_reduction(self) -> Config:
        if self.initial_phase + self.final_phase >= 1:
            raise ValueError(
                f"initial_phase {self.initial_phase} and final_phase {self.final_phase} fill the training; lower one, "
                "so that steps are left between them to lower the ranks in"
            )
        return self

    def refusal(self, *, width: str, max_steps: int, gradient_checkpointing: str) -> str | None:
        phases = _phases(self, max_steps)
        # PEFT decides with the importance measured before the reduction's last step, so one must be measured.
        if phases["reduction"] < 1 or max_steps - phases["final"] < 2:
            return (
                f"adapter.initial_phase {self.initial_phase} and adapter.final_phase {self.final_phase} of "
                f"training.max_steps {max_steps} leave no step between them to lower the ranks in; "
                "raise max_steps or lower the phases"
            )
        return None


def _phases(config: Config, total_steps: int) -> dict[str, int]:
    """Return the number of steps in each of the three phases."""
    initial, final = round(config.initial_phase * total_steps), round(config.final_phase * total_steps)
    return {"initial": initial, "reduction": total_steps - initial - final, "final": final}


def check(backbone: nn.Module, config: Config) -> None:
    """Raise ``RecpeftError`` if ``target_modules`` or ``last_layers`` match nothing."""
    from adapters._targets import resolve

    resolve(backbone, config.target_modules, config.last_layers)


def attach(backbone: nn.Module, config: Config, total_steps: int, tokenizer: Any = None) -> nn.Module:
    """Return a ``PeftModel`` around ``backbone``; at the start it computes what the backbone computes.

    Raises:
        RecpeftError: ``target_modules`` match nothing, or ``total_steps`` are too few for the phases.
    """
    from peft import AdaLoraConfig, get_peft_model

    from adapters._targets import resolve

    refusal = config.refusal(width="none", max_steps=total_steps, gradient_checkpointing="none")
    if refusal is not None:
        raise RecpeftError(f"{refusal}.")
    phases = _phases(config, total_steps)
    return get_peft_model(
        backbone,
        AdaLoraConfig(
            init_r=config.init_rank,
            target_r=config.target_rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=resolve(backbone, config.target_modules, config.last_layers),
            tinit=phases["initial"],
            tfinal=phases["final"],
            total_step=total_steps,
            deltaT=config.allocation_interval,
            beta1=config.beta1,
            beta2=config.beta2,
            orth_reg_weight=config.orthogonal_weight,
        ),
    )


def describe(model: nn.Module, config: Config) -> dict[str, Any]:
    """Return the full names of the adapted layers, the phases in steps, and the sum of all ranks at the end."""
    from adapters._targets import adapted_names

    return {
        "target_modules": adapted_names(model),
        "phases": _phases(config, _peft_config(model).total_step),
        "budget": _tuner(model).rankallocator.target_bgt,
    }


def after_step(model: nn.Module, config: Config, step: int) -> None:
    """Measure importance and set to zero the singular values that exceed the budget at step ``step``.

    Raises:
        RuntimeError: there are no gradients, from which importance is measured.
    """
    if step < _last_reduction(model):
        _prepare_gradients(model)
    _tuner(model).update_and_allocate(step)


def penalty(model: nn.Module, config: Config) -> Tensor | None:
    """Return ``orthogonal_weight`` times the mean over all P and Q of ||P^T P - I||_F, (); None if the weight is 0."""
    import torch

    if not config.orthogonal_weight:
        return None
    distances = []
    for layer in _layers(model).values():
        down, up = layer.lora_A["default"], layer.lora_B["default"]  # (r, in), (out, r)
        with torch.autocast(down.device.type, enabled=False):  # half precision leaves P^T P - I only three digits
            for directions in (down, up.T):
                gram = directions @ directions.T
                distances.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
    return config.orthogonal_weight * torch.stack(distances).mean()


def observe(model: nn.Module, config: Config) -> dict[str, Any]:
    """Return the current rank of each update, and their sum."""
    # Before the first reduction a zero singular value is one that has not been trained yet.
    whole = _peft_config(model).rank_pattern is None
    ranks = {
        name: config.init_rank if whole else int(layer.lora_E["default"].count_nonzero())
        for name, layer in _layers(model).items()
    }
    return {"ranks": ranks, "total_rank": sum(ranks.values())}


def may_be_best(model: nn.Module, config: Config, step: int) -> bool:
    """Return whether the ranks are within the budget that the run reports."""
    return step >= _last_reduction(model)


def finish(model: nn.Module, config: Config) -> None:
    """Drop the directions that were set to zero, as PEFT does when it saves: sums of fewer terms round differently."""
    pattern = _peft_config(model).rank_pattern
    if pattern is not None:
        _tuner(model).resize_modules_by_rank_pattern(pattern, "default")
        model.train(model.training)  # PEFT inserts new dropout layers, which start in training mode


def state_dict(model: nn.Module, config: Config) -> dict[str, Any]:
    """Return the smoothed importance of each weight, and which singular values are kept."""
    allocator = _tuner(model).rankallocator
    return {
        **{name: dict(getattr(allocator, name)) for name in _AVERAGES},
        "rank_pattern": _peft_config(model).rank_pattern,
    }


def load_state_dict(model: nn.Module, config: Config, state: dict[str, Any]) -> None:
    """Restore the state that ``state_dict`` returned."""
    for name in _AVERAGES:
        setattr(_tuner(model).rankallocator, name, dict(state[name]))
    _peft_config(model).rank_pattern = state["rank_pattern"]


def _prepare_gradients(model: nn.Module) -> None:
    """Make gradients finite and non-None for PEFT's importance measure, and move its averages to their device."""
    import torch

    tuner = _tuner(model)
    parameters = {name: p for name, p in tuner.model.named_parameters() if p.requires_grad}
    if all(parameter.grad is None for parameter in parameters.values()):
        raise RuntimeError("AdaLoRA measures importance by gradients and there are none; call it before they are reset")
    averages = [getattr(tuner.rankallocator, name) for name in _AVERAGES]
    for name, parameter in parameters.items():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        # float16's gradient scaler skips steps that overflow; one such step would turn the averages into NaN.
        parameter.grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        for average in averages:
            if name in average:  # a checkpoint's are on the CPU
                average[name] = average[name].to(parameter.device)


def _last_reduction(model: nn.Module) -> int:
    """Return the step after which the ranks are fixed."""
    config = _peft_config(model)
    return int(config.total_step - config.tfinal)


def _layers(model: nn.Module) -> dict[str, Any]:
    """Return PEFT's adapted layers by full name within the backbone."""
    from peft.tuners.adalora import AdaLoraLayer

    return {name: module for name, module in _tuner(model).model.named_modules() if isinstance(module, AdaLoraLayer)}


def _tuner(model: Any) -> Any:
    return model.base_model


def _peft_config(model: Any) -> Any:
    return model.peft_config["default"]
