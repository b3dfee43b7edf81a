"""Writing several tokens with one pass of the model: drafts, which it verifies.

After Leviathan et al., *Fast Inference from Transformers via Speculative Decoding*,
arXiv:2211.17192. He et al., *REST*, arXiv:2311.08252, draft from retrieved texts too.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from hullft_ops.ttft.models.cache import can_be_cut, copied, grouped_attention
from hullft_ops.ttft.models.hidden import HiddenStates
from hullft_ops.ttft.prefix import Draft

# No pass verifies more tokens.
_LONGEST = 15
# How long a pass takes over a token and a draft of 0, 1, 2, ... tokens, of one over a token alone:
# SmolLM2-135M after 2,000 tokens, on one thread of a Xeon with AMX. With bfloat16, and on GPUs,
# more tokens cost little.
_SECONDS = [1.0, *(1.08 + 0.014 * size for size in range(1, _LONGEST + 1))]
_SECONDS_FLOAT32 = [1.0, 1.14, 1.24]
_SECONDS_FLOAT32 += [min(1.35 + 0.1 * size, 2.2) for size in range(3, _LONGEST + 1)]
# What is known of a kind of drafts before counts as so many verified tokens.
_PRIOR = 16


class Acceptance:
    """How often drafted tokens stand, by the kind of the draft.

    Args:
        seconds: how long a pass takes over a token and a draft of 0, 1, 2, ... tokens, in any unit.
    """

    def __init__(self, seconds: Sequence[float]) -> None:
        self._seconds = seconds
        self._verified: Counter[Hashable] = Counter()
        self._accepted: Counter[Hashable] = Counter()

    def enter(self, kind: Hashable, accepted: int, drafted: int) -> None:
        """The first tokens of a draft stood, and one was refused. Those after it say nothing."""
        self._verified[kind] += min(accepted + 1, drafted)
        self._accepted[kind] += accepted

    def best_size(self, draft: Draft) -> int:
        """How many tokens of a draft to verify, for the most tokens a second."""
        accepted = self._accepted[draft.kind] + _PRIOR * draft.rate
        rate = accepted / (self._verified[draft.kind] + _PRIOR)
        written = accumulate(rate**size for size in range(len(self._seconds)))
        speeds = [
            tokens / seconds
            for tokens, seconds in zip(written, self._seconds, strict=True)
        ]
        return speeds.index(max(speeds))


@dataclass(frozen=True)
class DraftedWriting:
    """A decoding loop for ``model.generate(custom_generate=...)``, of one row, greedy or sampled.

    A pass reads the last token with a draft after it, and predicts what follows each. Processors
    see one position after the other, as if each token had a pass of its own, and the next token is
    chosen by the same rule. While it is the drafted one, the next position counts too. So the text
    is the same as one token at a time. Sampled, it has the same distribution: a draft is one text
    of probability 1, and to accept its tokens with min(1, p / q) is to sample from p.

    Attributes:
        cache_argument: what the model's forward calls a cache.
        held: tokens that the first draft begins with.
        draft: of the tokens so far, up to so many that may come next.
        states: sees the hidden states of the passes.
        streamer: gets each token.
    """

    cache_argument: str
    held: Sequence[int]
    draft: Callable[[Tensor, int], Draft]
    states: HiddenStates
    streamer: Any = None

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **arguments: Any,
    ) -> Tensor:
        """The row with what was written; the arguments are as in transformers' own loops."""
        ids, held = input_ids, [*self.held]
        self._put(ids)
        with grouped_attention(model) as is_grouped:
            verifier = _Verifier(
                model, self.cache_argument, arguments, is_grouped=is_grouped
            )
            acceptance = Acceptance(verifier.seconds)
            while True:
                ahead = torch.cat([ids[0], ids.new_tensor(held)])
                behind = self.draft(ahead, verifier.longest)
                tokens = [*held, *behind.tokens[: acceptance.best_size(behind)]]
                room = generation_config.max_length - ids.shape[1] - 1
                tokens = tokens[: min(room, verifier.longest)]
                accepted = 0
                for logits, drafted in verifier.predictions(ids, tokens, self.states):
                    scores = logits_processor(ids, logits)
                    token = _chosen(scores, is_sampled=generation_config.do_sample)
                    ids = torch.cat([ids, token], dim=1)
                    self._put(token[0])
                    if stopping_criteria(ids, scores).all():
                        if self.streamer is not None:
                            self.streamer.end()
                        return ids
                    if int(token) != drafted:
                        break
                    accepted += 1
                verifier.cut(len(tokens) - accepted)
                if not held:
                    acceptance.enter(behind.kind, accepted, len(tokens))
                held = []

    def _put(self, tokens: Tensor) -> None:
        if self.streamer is not None:
            self.streamer.put(tokens.cpu())


class _Verifier:
    """A model that reads drafts after a cache, at first the cache of a loop's ``arguments``.

    Attributes:
        longest: how many tokens may be drafted.
        seconds: as in `Acceptance`.
    """

    def __init__(
        self,
        model: Any,
        cache_argument: str,
        arguments: dict[str, Any],
        *,
        is_grouped: bool,
    ) -> None:
        self._model = model
        self._cache_argument = cache_argument
        self._cache = copied(arguments[cache_argument])
        self._keeps_logits = "logits_to_keep" in arguments
        self._device = model.device.type
        self.longest = _LONGEST if can_be_cut(self._cache) else 0
        is_cpu, is_cast = self._device == "cpu", torch.is_autocast_enabled(self._device)
        is_wide_cheap = is_cast or not is_cpu or model.dtype != torch.float32
        self.seconds = _SECONDS if is_wide_cheap else _SECONDS_FLOAT32
        # On CPUs, one token is no faster in bfloat16, and its inputs have to be cast.
        self._casts_one = not (is_cpu and is_cast and is_grouped and self.longest)

    def predictions(
        self, ids: Tensor, draft: Sequence[int], states: HiddenStates
    ) -> Iterator[tuple[Tensor, int | None]]:
        """Read what is unread of ``ids`` ``[1, T]``, and a draft. The logits ``[1, vocabulary]``
        after each of the last tokens, and the drafted one; None after the draft. The states end
        there, too."""
        drafted = torch.tensor([draft], dtype=ids.dtype, device=ids.device)
        unread = torch.cat([ids[:, self._cache.get_seq_length() :], drafted], dim=1)
        count = len(draft) + 1
        options: dict[str, Any] = {self._cache_argument: self._cache}
        if self._keeps_logits:
            options["logits_to_keep"] = count
        is_cast = self._casts_one or unread.shape[1] > 1
        with nullcontext() if is_cast else torch.autocast(self._device, enabled=False):
            output = self._model(input_ids=unread, use_cache=True, **options)
        logits, hidden = output.logits[:, -count:].float(), states.pop(count)
        for place, token in enumerate([*draft, None]):
            states.latest = None if hidden is None else hidden[:, : place + 1]
            yield logits[:, place], token

    def cut(self, count: int) -> None:
        """Take the last tokens out of the cache again."""
        if count:
            self._cache.crop(-count)


def _chosen(scores: Tensor, *, is_sampled: bool) -> Tensor:
    """The next token of the row, ``[1, 1]``."""
    if is_sampled:
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1)
    return scores.argmax(dim=-1, keepdim=True)
