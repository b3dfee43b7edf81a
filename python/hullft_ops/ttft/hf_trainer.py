"""transformers' Trainer for examples with a multiplicity."""

from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

if TYPE_CHECKING:
    from torch import nn

from hullft_ops.replay import ReplayAdam
from hullft_ops.ttft.training.checks import trainable_parameters

COLUMN = "multiplicity"


class ReplayTrainer(Trainer):
    """A `Trainer` that takes several optimizer steps with each example's gradient.

    The dataset's column "multiplicity" says how many Adam steps to take with the gradient of each
    example, in one `ReplayAdam` sweep; it must be one number for a batch. To refresh an example's
    gradient in between, put the example into several rows. Evaluation ignores the column. The
    learning-rate schedule, ``max_steps`` and logging count sweeps, not Adam steps.

    The arguments are those of `Trainer`. The optimizer is the one in ``optimizers``, or a
    `ReplayAdam` on all parameters that require a gradient, with the rate, betas, epsilon and
    decoupled weight decay of the arguments.

    Raises:
        ValueError: ``gradient_accumulation_steps`` is not 1, ``remove_unused_columns`` is not
            False, or the optimizer is not a `ReplayAdam`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        required = {"gradient_accumulation_steps": 1, "remove_unused_columns": False}
        for name, needed in required.items():
            if (given := getattr(self.args, name)) != needed:
                raise ValueError(f"ReplayTrainer: {name} must be {needed}, got {given}")
        self._next_step: dict[str, int] = {}
        if getattr(self, "optimizer_cls_and_kwargs", None) is not None:
            raise ValueError(
                "ReplayTrainer: optimizer_cls_and_kwargs must be None: a ReplayAdam is used"
            )
        if self.optimizer is not None:
            self._repeat_steps(self.optimizer)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """A `ReplayAdam` that repeats each step as often as the last batch says."""
        if self.optimizer is None:
            model: nn.Module = self.model  # type: ignore[assignment]  # Trainer refuses None
            self.optimizer = ReplayAdam(
                trainable_parameters(model),
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,
                decoupled_weight_decay=True,
            )
            self._repeat_steps(self.optimizer)
        return self.optimizer

    def _repeat_steps(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, ReplayAdam):
            raise ValueError(
                "ReplayTrainer: optimizers must have a ReplayAdam or None, got "
                f"{type(optimizer).__name__}, which cannot repeat a step"
            )
        # It outlives the trainer, so the hook must not hold a reference to it.
        next_step = self._next_step

        def add_repeats(
            _: Any, args: Any, kwargs: dict[str, Any]
        ) -> tuple[Any, dict[str, Any]]:
            return args, {"repeats": next_step.pop("repeats", None), **kwargs}

        # Trainer and accelerate call step() without our arguments.
        optimizer.register_step_pre_hook(add_repeats)

    def training_step(
        self, model: "nn.Module", inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """One forward-backward pass. The batch's multiplicity, or a ValueError, is for its step."""
        counts = (
            torch.as_tensor(inputs.pop(COLUMN, []), device="cpu").flatten().tolist()
        )
        if not counts or len(set(counts)) > 1 or counts[0] < 1:
            raise ValueError(
                f"ReplayTrainer: a batch must have one {COLUMN}, at least 1, for all of its "
                f"examples, got {counts}"
            )
        self._next_step["repeats"] = counts[0]
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

    def prediction_step(
        self, model: "nn.Module", inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Trainer's own step, without the batch's multiplicity, which models do not know."""
        known = {name: value for name, value in inputs.items() if name != COLUMN}
        return super().prediction_step(model, known, *args, **kwargs)
