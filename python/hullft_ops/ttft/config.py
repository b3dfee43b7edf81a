"""The options of test-time finetuning. Each default, check and description stands here alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from hullft_ops._checks import Variant, check_integer, check_number
from hullft_ops.ttft.methods import METHODS, SelectionMethod
from hullft_ops.ttft.precision import Precision

Order = Literal["balanced", "grouped"]

# Selection and training hold memory for each step.
MAX_STEPS = 100_000


@dataclass(frozen=True, kw_only=True)
class TTFTConfig:
    """How `TestTimeFinetuner` adapts a model to a prompt.

    A subclass may add fields; the command line and evaluation's grids take them too.

    Raises:
        TypeError, ValueError: a value has the wrong type or is out of range.
    """

    method: str | SelectionMethod = "hullft"
    """How to select passages: hullft, sift, knn, random, or in Python a `SelectionMethod`."""

    n_select: int = 50
    """Optimizer steps for each prompt; 0 for none."""

    refresh: int | Callable[[int], int] = 2
    """Optimizer steps with each gradient, or in Python a function from a passage's steps to that
    number. A passage with c steps takes ceil(c / refresh) forward-backward passes."""

    order: Order = "balanced"
    """balanced for passes in turns, so that at any time each passage has about its share of the
    steps, or grouped for all passes on a passage in a row, as in the paper."""

    passes: int | None = None
    """Forward-backward passes at most; None for as many as the steps need."""

    pool_size: int = 200
    """How many of the nearest passages to select from."""

    context: int = 0
    """How many of the nearest passages stand before the prompt, nearest last."""

    context_following: int = 0
    """How many passages stand behind each of these that follow it in its document."""

    train_following: int = 0
    """How many passages are trained on with each selected one that follow it in its document, as
    one text. `max_length` cuts that."""

    lr: float = 5e-5
    """Adam's learning rate."""

    max_length: int | None = None
    """Tokens to cut passages to; None for the model's context."""

    dtype: Precision | None = None
    """bfloat16 to train under autocast; None for the model's own dtype."""

    max_grad_norm: float | None = None
    """Norm to clip each gradient to; None for no clipping."""

    variant: Variant = "vanilla"
    """Frank-Wolfe variant of hullft."""

    noise: float = 0.01
    """Observation noise of sift."""

    seed: int = 0
    """Seed of random."""

    adapter: str | None = None
    """Folder of a LoRA as PEFT saves it, added to the weights before the first step."""

    graphs: bool = False
    """On CUDA, pad passages and capture a pass for each length as a CUDA graph. No GPU has run
    this yet."""

    def __post_init__(self) -> None:
        check_integer("TTFTConfig", "n_select", self.n_select, 0, MAX_STEPS)
        if not callable(self.refresh):
            check_integer("TTFTConfig", "refresh", self.refresh, 1)
        if self.passes is not None:
            check_integer("TTFTConfig", "passes", self.passes, 1)
        check_integer("TTFTConfig", "pool_size", self.pool_size, 1)
        check_integer("TTFTConfig", "context", self.context, 0)
        check_integer("TTFTConfig", "context_following", self.context_following, 0)
        check_integer("TTFTConfig", "train_following", self.train_following, 0)
        check_integer("TTFTConfig", "seed", self.seed, 0)
        if self.max_length is not None:
            check_integer("TTFTConfig", "max_length", self.max_length, 2)
        _check_positive("lr", self.lr)
        _check_positive("noise", self.noise)
        if self.max_grad_norm is not None:
            _check_positive("max_grad_norm", self.max_grad_norm)
        if not callable(self.method):
            _check_choice("method", self.method, METHODS)
        _check_choice("variant", self.variant, get_args(Variant))
        _check_choice("order", self.order, get_args(Order))
        _check_choice("dtype", self.dtype, (None, *get_args(Precision)))


def default_lr(model: str | None) -> float:
    """The learning rate for a model if none is given; ``model`` is None for the shipped toy."""
    # The paper's rate suits models of GPT-2's size.
    return 2e-4 if model is None else TTFTConfig.lr


def _check_positive(name: str, value: object) -> None:
    number = check_number("TTFTConfig", name, value)
    if not number > 0:  # NaN too
        raise ValueError(f"TTFTConfig: {name} must be above 0, got {value}")


def _check_choice(name: str, value: object, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        options = ", ".join(map(str, choices))
        raise ValueError(f"TTFTConfig: {name} must be one of {options}, got {value!r}")
