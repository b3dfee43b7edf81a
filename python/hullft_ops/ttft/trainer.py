"""transformers' Trainer for examples with a multiplicity."""

from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.optim import Optimizer
from transformers import Trainer

from hullft_ops.replay import ReplayAdam, ReplayAdamW

COLUMN = "multiplicity"


class ReplayTrainer(Trainer):
    """A `Trainer` that takes several optimizer steps with each example's gradient.

    The dataset's column "multiplicity" says how many Adam steps to take with the gradient of each
    example, in one `ReplayAdam` sweep. It must be one number for all rows between two sweeps: those
    of a batch, or of ``gradient_accumulation_steps`` batches, in all processes. Rows of a
    `datasets.Dataset` with 0 are left out. To refresh an example's gradient in between, put the
    example into several rows. Evaluation ignores the column. The learning-rate schedule,
    ``max_steps`` and logging count sweeps, not Adam steps.

    The arguments are those of `Trainer`. The optimizer is the `ReplayAdam` in ``optimizers``, or
    one with the parameter groups and options of Trainer's AdamW, so either continues from the
    other's checkpoints.

    Raises:
        ValueError: ``remove_unused_columns`` is not False, or the optimizer is not a `ReplayAdam`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.remove_unused_columns:
            raise ValueError(
                "ReplayTrainer: remove_unused_columns must be False, got True"
            )
        dataset: Any = self.train_dataset
        if COLUMN in (getattr(dataset, "column_names", None) or ()):
            self.train_dataset = dataset.filter(bool, input_columns=COLUMN)
        self._counts: set[int] = set()  # of the batches since the last sweep
        self._next_step: dict[str, int] = {}
        if self.optimizer is not None:
            self._repeat_steps(self.optimizer)
        elif "adamw_torch" in self.args.optim and not self.optimizer_cls_and_kwargs:
            options = {
                "lr": self.args.learning_rate,
                "betas": (self.args.adam_beta1, self.args.adam_beta2),
                "eps": self.args.adam_epsilon,
            }
            self.optimizer_cls_and_kwargs = ReplayAdamW, options

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Trainer's own, with steps that are repeated as often as the last batch says."""
        self._counts.clear()  # an earlier training may have ended between two sweeps
        is_new = self.optimizer is None
        optimizer: Optimizer = super().create_optimizer(*args, **kwargs)
        if is_new:
            self._repeat_steps(optimizer)
        return optimizer

    def _repeat_steps(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, ReplayAdam):
            raise ValueError(
                "ReplayTrainer: the optimizer must be a ReplayAdam, got "
                f"{type(optimizer).__name__}, which cannot repeat a step"
            )
        # The optimizer outlives the trainer, so the hook must not hold a reference to it.
        next_step = self._next_step

        def add_repeats(
            _: Any, args: Any, kwargs: dict[str, Any]
        ) -> tuple[Any, dict[str, Any]]:
            options = next_step | kwargs
            next_step.clear()
            return args, options

        # Trainer and accelerate call step() without our arguments.
        optimizer.register_step_pre_hook(add_repeats)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """One forward-backward pass; its multiplicity is for the step after it."""
        if COLUMN not in inputs:
            raise ValueError(
                f'ReplayTrainer: a batch must have a column "{COLUMN}", got {list(inputs)}: the '
                "dataset lacks it, or the data collator drops it"
            )
        column = torch.as_tensor(inputs.pop(COLUMN), device="cpu")
        if column.is_floating_point():
            raise TypeError(
                f'ReplayTrainer: column "{COLUMN}" must hold integers, got {column.dtype}'
            )
        self._counts |= set(column.flatten().tolist())
        if self.accelerator.num_processes > 1:
            self._counts = set().union(*gather_object([self._counts]))
        if len(self._counts) != 1 or min(self._counts) < 1:
            raise ValueError(
                f'ReplayTrainer: column "{COLUMN}" must have one value, at least 1, for all '
                f"examples of an optimizer step, got {sorted(self._counts)}"
            )
        [self._next_step["repeats"]] = self._counts
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        if self.accelerator.sync_gradients:
            self._counts.clear()
        return loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Trainer's own, without the multiplicity, which models do not take."""
        inputs.pop(COLUMN, None)
        return super().prediction_step(model, inputs, *args, **kwargs)
