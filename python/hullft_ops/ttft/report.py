"""The report of an adaptation: what it did and where its time went."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hullft_ops.ttft.adapted_model import AdaptedModel, SavedAdapter
    from hullft_ops.ttft.retrieval.support import Support
    from hullft_ops.ttft.training.steps import StageClock

_STAGES = ("save", "merge", "forward", "backward", "step")


@dataclass
class AdaptationReport:
    """What one adaptation did, in plain numbers.

    Seconds are wall-clock. On CUDA those of ``save``, ``merge``, ``forward``, ``backward``,
    ``step`` and ``prefill`` come from events in the GPU's stream. Copies of the report have only
    the numbers, and cannot save the adaptation.

    Attributes:
        method, n_select, refresh, order: the finetuner's arguments, the method by its name. If
            ``refresh`` was a function, a list of its results, one per text.
        support_size: number of different texts.
        indices, weights, counts, residual, gap, context_indices, expert_indices, expert_weights: as
            in `Support`.
        prefix_ids: the tokens of the texts before the prompt, to pass to `bits_per_byte`.
        seconds_embed, seconds_search, seconds_select: to embed the prompt, to find its neighbours
            and to select among them and the experts. All are the prompt's share of its batch.
        seconds_save: to save the parameters before.
        seconds_merge: to read the experts' files and add the experts to the parameters.
        seconds_finetune: to tokenize the support and train. The next four are parts of it.
        seconds_tokenize: to read the chosen texts and tokenize those that are not cached.
        seconds_forward: for the losses, and for all of a pass that is the replay of a CUDA graph.
        seconds_backward: for the gradients.
        seconds_step: to clip gradients, take the optimizer steps and keep gradients for later.
        seconds_prefill: to read the texts in the context once, after training.
        seconds_restore: to restore the model. None until the with block ends, and on CUDA, where
            the work is only handed to the GPU.
        forward_backward_passes: how many gradients were computed; 0 if ``from_cache``.
        optimizer_steps, steps_taken: how many Adam steps were taken, in all and on each text.
        steps_left_out: how many steps did not fit into a budget in seconds.
        losses: mean loss per token, in nats, of each pass in order.
        full_logits_passes: passes that stored the logits of a whole text, which takes more memory.
            All passes do if the head is more than a linear layer, or has hooks.
        from_cache: whether the trained parameters come from the cache. The steps and losses are
            then those of the training that the entry keeps.
    """

    method: str
    n_select: int
    refresh: int | list[int]
    support_size: int
    indices: list[int]
    weights: list[float]
    counts: list[int]
    residual: float
    gap: float
    seconds_embed: float
    seconds_search: float
    seconds_select: float
    seconds_finetune: float
    forward_backward_passes: int
    optimizer_steps: int
    losses: list[float]
    order: str = "grouped"
    seconds_tokenize: float = 0.0
    seconds_forward: float = 0.0
    seconds_backward: float = 0.0
    seconds_step: float = 0.0
    seconds_save: float = 0.0
    seconds_restore: float | None = None
    full_logits_passes: int = 0
    steps_taken: list[int] = field(default_factory=list)
    steps_left_out: int = 0
    context_indices: list[int] = field(default_factory=list)
    prefix_ids: list[int] = field(default_factory=list)
    seconds_prefill: float = 0.0
    expert_indices: list[int] = field(default_factory=list)
    expert_weights: list[float] = field(default_factory=list)
    seconds_merge: float = 0.0
    from_cache: bool = False

    @classmethod
    def of(
        cls,
        support: "Support",
        clock: "StageClock",
        losses: list[float],
        taken: list[int],
        refreshes: list[int],
        *,
        refresh: int | Callable[[int], int],
        seconds: float,
        share: int = 1,
        from_cache: bool = False,
        **others: Any,
    ) -> "AdaptationReport":
        """The report on a training of ``seconds``; ``share`` prompts share the clock's time."""
        names = {field.name for field in fields(cls)}
        others |= {
            name: value for name, value in vars(support).items() if name in names
        }
        stages = support.seconds | {
            stage: clock.seconds(stage) / share for stage in _STAGES
        }
        others |= {f"seconds_{stage}": spent for stage, spent in stages.items()}
        return cls(
            seconds_finetune=seconds + support.seconds["tokenize"],
            support_size=len(support.indices),
            prefix_ids=list(chain.from_iterable(support.context_ids)),
            refresh=refreshes if callable(refresh) else refresh,
            losses=losses,
            forward_backward_passes=0 if from_cache else len(losses),
            from_cache=from_cache,
            optimizer_steps=sum(taken),
            steps_taken=taken,
            steps_left_out=sum(support.counts) - sum(taken),
            **others,
        )

    def __post_init__(self) -> None:
        # Not a field: the report stays plain data.
        self._adapted: AdaptedModel | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_adapted": None}

    def hold(self, adapted: "AdaptedModel | None") -> None:
        """Take the adapted model while there is one, None afterwards. The with block does it."""
        self._adapted = adapted

    def save_adapter(
        self,
        path: str | Path,
        *,
        rank: int | None = None,
        base_model: str | None = None,
        text: str | None = None,
        overwrite: bool = False,
    ) -> "SavedAdapter":
        """Write the adaptation as a folder that ``PeftModel.from_pretrained`` loads.

        PEFT adapters that were trained are written as they are. After full finetuning, the folder
        gets a LoRA: for each linear layer the one of rank ``rank`` that comes closest to the change
        of its weight, by singular value decomposition. Texts in the context are not part of it.

        Args:
            path: the folder, which appears whole.
            rank: rank of the LoRA after full finetuning; None for trained adapters.
            base_model: the base model's name for the configuration, as vLLM serves it; None for the
                name that the model was loaded by.
            text: score it without the adaptation, with it and with the adapter. Takes memory for
                another copy of the trained parameters.
            overwrite: replace the files that an earlier call wrote there. Other files stay.

        Raises:
            RuntimeError: the with block has ended, or nothing was trained or merged.
            TypeError, ValueError: rank is wrong; there is not one active adapter, or other
                parameters were trained; no parameter fits into a LoRA; or the text has no score.
            FileExistsError: the folder exists, and may not be overwritten.
        """
        adapted = self._alive("save_adapter")
        return adapted.save_adapter(Path(path), rank, base_model, text, overwrite)

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the adapted model and its tokenizer as a folder for ``from_pretrained``.

        Arguments and errors as in `save_adapter`; ValueError if the model's adapters are trained.
        """
        self._alive("save_pretrained").save_pretrained(Path(path), overwrite)

    def _alive(self, function: str) -> "AdaptedModel":
        if self._adapted is None:
            why = "the model is restored, call it in the with block, on the report from there"
            if not (self.n_select or self.expert_indices):
                why = "nothing was trained or merged, n_select is 0"
            raise RuntimeError(f"{function}: {why}")
        return self._adapted

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary for `json.dumps`."""
        return asdict(self)
