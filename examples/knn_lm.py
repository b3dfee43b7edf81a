"""A kNN language model as a technique of one's own.

    python examples/knn_lm.py

Khandelwal et al., *Generalization through Memorization*, arXiv:1911.00172: what followed in the
nearest hidden states of a datastore is mixed into the model's predictions. Here the datastore of
states is made for each prompt, of the tokens of its nearest passages.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hullft_ops import ttft

TEXTS = [f"def area_{n}(side):\n    return {n} * side * side\n" for n in range(40)]
PROMPT, ANSWER = "def area_99(side):\n    return", " 99 * side * side\n"


@dataclass(frozen=True)
class NearestStates:
    """Mixes in what followed the states that are nearest to the prediction's."""

    states: Tensor  # [n, d]
    following: Tensor  # [n], the token that followed each
    count: int
    weight: float

    def mixed(
        self, question: ttft.Question, written: Tensor, prediction: ttft.Prediction
    ) -> Tensor:
        logits, hidden = prediction.logits, prediction.hidden
        if hidden is None:
            return logits
        distances = (self.states - hidden.float()).square().sum(dim=1)
        nearest = distances.topk(min(self.count, len(distances)), largest=False)
        # In units of the mean, so that one temperature serves all models.
        shares = (-10 * nearest.values / distances.mean()).softmax(dim=0)
        said = torch.zeros_like(logits).index_add(
            0, self.following[nearest.indices], shares.to(logits)
        )
        mixture = (1 - self.weight) * logits.softmax(dim=0) + self.weight * said
        return mixture.log().masked_fill(logits.isneginf(), -torch.inf)

    def draft(self, *_: Any) -> ttft.Draft:
        return ttft.Draft()

    def while_writing(self) -> "NearestStates":
        return self


class KnnLm(ttft.Technique):
    """The hidden states of the nearest passages say what comes next."""

    trains = False

    def __init__(
        self, passages: int = 20, count: int = 16, weight: float = 0.3
    ) -> None:
        self.n_neighbours = passages
        self.count, self.weight = count, weight
        self.settings = {"knn_lm": weight}

    def prepare(
        self, neighbours: ttft.Neighbours, language_model: Any
    ) -> ttft.Prepared:
        states, following = [], []
        with language_model.reading():
            for position in neighbours.positions[: self.n_neighbours]:
                text = neighbours.store.texts[position]
                ids = language_model.passage_ids(text, with_special=True)[
                    : language_model.window
                ]
                tokens = torch.tensor([ids], device=language_model.model.device)
                output = language_model.model(tokens, output_hidden_states=True)
                states.append(output.hidden_states[-1][0, :-1].float())
                following.append(tokens[0, 1:])
        mixture = NearestStates(
            torch.cat(states), torch.cat(following), self.count, self.weight
        )
        return ttft.Prepared(mixture=mixture)


def main() -> dict[str, float]:
    embedder = ttft.load_embedder()
    store = ttft.MemoryStore(TEXTS, embedder.encode(TEXTS), embedder.name)
    off = {"train_on_prompt": 0, "context": 0}
    model = ttft.load_model(None)
    bits = {}
    for name, ngrams, techniques in (
        ("nothing", 0.0, ()),
        ("n-grams", 1.0, ()),
        ("kNN-LM", 0.0, (KnnLm(),)),
        ("both", 1.0, (*ttft.TECHNIQUES, KnnLm())),
    ):
        options = {"ngrams": ngrams, "techniques": techniques} | off
        finetuner = ttft.TestTimeFinetuner(*model, store, embedder, **options)
        with finetuner.adapted(PROMPT) as adaptation:
            bits[name] = adaptation.score(ANSWER).value
        print(f"{name}: {bits[name]:.3f} bits per byte of the answer")
    return bits


if __name__ == "__main__":
    main()
