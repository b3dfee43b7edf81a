"""Writing several tokens with one pass of the model: drafts, which it verifies.

After Leviathan et al., *Fast Inference from Transformers via Speculative Decoding*,
arXiv:2211.17192. He et al., *REST*, arXiv:2311.08252, draft from retrieved texts too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from hullft_ops.ttft.models.cache import can_be_cut

# No pass verifies more tokens.
_LONGEST = 15
# How long a pass over n more tokens takes, of one over a token. SmolLM2-135M, float32, behind 2,000
# tokens, on one thread of a Xeon with AMX: 151 ms for one token, 228, 317, 342 and 359 for 2, 4, 8
# and 16. Behind few tokens, in bfloat16 or on a GPU, more tokens cost less.
_SECONDS = [min(1 + 0.5 * size, 2.1 + 0.02 * size) for size in range(_LONGEST + 1)]
# By the length of the n-gram, how often a drafted token stood: 11 texts of SmolLM2-135M on code, C
# and documentation, behind retrieved passages. It counts as so many tokens of the text itself.
_RATES = {0: 0.0, 1: 0.35, 2: 0.4, 4: 0.65, 8: 0.85}
_RATE_OF_LONGER = 0.95
_PRIOR = 8


@dataclass
class Acceptance:
    """How often drafted tokens stand, by the length of the n-gram that they follow."""

    verified: dict[int, int] = field(default_factory=dict)
    accepted: dict[int, int] = field(default_factory=dict)

    def enter(self, length: int, accepted: int, drafted: int) -> None:
        """The first tokens of a draft stood, and one was refused. Those behind it say nothing."""
        verified = min(accepted + 1, drafted)
        self.verified[length] = self.verified.get(length, 0) + verified
        self.accepted[length] = self.accepted.get(length, 0) + accepted

    def best_size(self, length: int) -> int:
        """How many tokens to draft, for the most tokens a second."""
        expected = _PRIOR * _RATES.get(length, _RATE_OF_LONGER)
        accepted = self.accepted.get(length, 0) + expected
        rate = accepted / (self.verified.get(length, 0) + _PRIOR)
        written = accumulate(rate**size for size in range(_LONGEST + 1))
        speeds = [
            tokens / seconds for tokens, seconds in zip(written, _SECONDS, strict=True)
        ]
        return speeds.index(max(speeds))


class DraftedWriting:
    """A decoding loop for ``model.generate(custom_generate=...)``, of one row, greedy or sampled.

    A pass reads the last token with a draft behind it, and predicts what follows each. Processors
    see one position after the other, as if each token had a pass of its own, and the next token is
    chosen by the same rule. While it is the drafted one, the next position counts too. So the text
    is that of one token at a time. Sampled, it has the same distribution: a draft is one text, of
    probability 1, and to accept its tokens with min(1, p / q) is to sample from p.

    Args:
        keyword: what the model's forward calls a cache.
        first: tokens to draft first.
        draft: of the tokens so far, up to so many that may come next, and the length of the n-gram
            that they follow.
        streamer: gets each token.
    """

    def __init__(
        self,
        keyword: str,
        first: Sequence[int],
        draft: Callable[[list[int], int], tuple[list[int], int]],
        streamer: Any = None,
    ) -> None:
        self._keyword = keyword
        self._first = list(first)
        self._draft = draft
        self._streamer = streamer

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **arguments: Any,
    ) -> Tensor:
        """The row with what was written; the arguments are those of transformers' own loops."""
        cache = arguments[self._keyword]
        takes_drafts = can_be_cut(cache)
        ids, draft, length = input_ids, self._first, 0
        acceptance = Acceptance()
        if self._streamer is not None:
            self._streamer.put(ids.cpu())
        while True:
            room = generation_config.max_length - ids.shape[1] - 1
            draft = draft[: max(room, 0)] if takes_drafts else []
            drafted = torch.tensor([draft], dtype=ids.dtype, device=ids.device)
            unread = torch.cat([ids[:, cache.get_seq_length() :], drafted], dim=1)
            options = {self._keyword: cache}
            if "logits_to_keep" in arguments:
                options["logits_to_keep"] = len(draft) + 1
            output = model(input_ids=unread, use_cache=True, **options)
            accepted = 0
            for logits in output.logits[:, -len(draft) - 1 :].unbind(1):
                scores = logits_processor(ids, logits.float())
                token = _chosen(scores, is_sampled=generation_config.do_sample)
                ids = torch.cat([ids, token], dim=1)
                if self._streamer is not None:
                    self._streamer.put(token[0].cpu())
                if stopping_criteria(ids, scores).all():
                    if self._streamer is not None:
                        self._streamer.end()
                    return ids
                if [int(token)] != draft[accepted : accepted + 1]:
                    break
                accepted += 1
            if accepted < len(draft):
                cache.crop(accepted - len(draft))
            acceptance.enter(length, accepted, len(draft))
            draft, length = [], 0
            if takes_drafts:
                draft, length = self._draft(ids[0].tolist(), _LONGEST)
                draft = draft[: acceptance.best_size(length)]


def _chosen(scores: Tensor, *, is_sampled: bool) -> Tensor:
    """The next token of the row, ``[1, 1]``."""
    if is_sampled:
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1)
    return scores.argmax(dim=-1, keepdim=True)
