"""Train the tiny language model that ships with hullft_ops, or score one.

python tools/train_tiny_lm.py --out DIR --work DIR --minutes 60
python tools/train_tiny_lm.py --score-only DIR
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny_lm_corpus import Document, cached_corpus, load_corpus
from tiny_lm_export import CONTEXT, END_OF_TEXT_ID, export, new_model, train_tokenizer
from tiny_lm_score import score

BATCH = 8
PEAK_LR = 2e-3
FINAL_LR = 2e-5
WARMUP_FRACTION = 0.02
SAVE_SECONDS = 600
FIRST_SAVE_SECONDS = 270


@dataclass
class Progress:
    step: int = 0
    seconds: float = 0.0


def learning_rate(fraction: float) -> float:
    """Keyed on the share of the time spent, so that a busy machine still anneals."""
    if fraction < WARMUP_FRACTION:
        return PEAK_LR * (fraction + 1e-3) / (WARMUP_FRACTION + 1e-3)
    angle = math.pi * min(1.0, (fraction - WARMUP_FRACTION) / (1 - WARMUP_FRACTION))
    return FINAL_LR + (PEAK_LR - FINAL_LR) * 0.5 * (1 + math.cos(angle))


def load_tokenizer(work: Path, documents: Sequence[Document]) -> Tokenizer:
    """A resumed run must read its checkpoint with the tokenizer that made it."""
    path = work / "tokenizer.json"
    if not path.exists():
        train_tokenizer([document.text for document in documents]).save(str(path))
    return Tokenizer.from_file(str(path))


def pack(tokenizer: Tokenizer, documents: Sequence[Document], seed: int) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(len(documents))
    ids: list[int] = []
    for index in order:
        ids += [END_OF_TEXT_ID, *tokenizer.encode(documents[index].text).ids]
    return np.array(ids, dtype=np.int64)


class Batches:
    """A function of the step alone, so a resumed run sees the batches it would have seen."""

    def __init__(self, stream: np.ndarray, seed: int) -> None:
        self.stream = stream
        self.seed = seed
        self.per_epoch = (len(stream) // CONTEXT - 1) // BATCH
        self.epoch = -1

    def _start_epoch(self, epoch: int) -> None:
        generator = np.random.default_rng((self.seed, epoch))
        # A new offset each epoch moves the block borders, and so the context of each token.
        offset = generator.integers(CONTEXT)
        blocks = generator.permutation(self.per_epoch * BATCH)
        self.starts = (offset + CONTEXT * blocks).reshape(self.per_epoch, BATCH)
        self.epoch = epoch

    def __getitem__(self, step: int) -> torch.Tensor:
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self._start_epoch(epoch)
        rows = self.starts[position][:, None] + np.arange(CONTEXT)
        return torch.from_numpy(self.stream[rows])


def make_optimizer(model: torch.nn.Module) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)


def train_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: torch.Tensor,
    lr: float,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lr
    # Measured at twice the speed of float32 on a CPU with bfloat16 instructions.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten()
    )
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def save_checkpoint(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    temporary = path.with_suffix(".tmp")
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": vars(progress),
    }
    torch.save(state, temporary)
    temporary.replace(path)


def train(out: Path, work: Path, minutes: float, seed: int) -> None:
    torch.manual_seed(seed)
    work.mkdir(parents=True, exist_ok=True)
    corpus = cached_corpus(work / "corpus.json")
    documents = [document for document in corpus if not document.held_out]
    tokenizer = load_tokenizer(work, documents)
    batches = Batches(pack(tokenizer, documents, seed), seed)
    print(f"{len(documents)} documents, {len(batches.stream)} tokens", flush=True)

    model = new_model()
    optimizer = make_optimizer(model)
    progress = Progress()
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(**state["progress"])

    began = time.monotonic() - progress.seconds
    next_save = progress.seconds + FIRST_SAVE_SECONDS
    while progress.seconds < 60 * minutes:
        lr = learning_rate(progress.seconds / (60 * minutes))
        loss = train_step(model, optimizer, batches[progress.step], lr)
        progress.step += 1
        progress.seconds = time.monotonic() - began
        if progress.step % 50 == 0:
            print(
                f"step {progress.step} {progress.seconds / 60:.1f} min "
                f"{progress.step * BATCH * CONTEXT} tokens loss {loss:.3f} lr {lr:.2e}",
                flush=True,
            )
        if progress.seconds >= next_save:
            save_checkpoint(checkpoint, model, optimizer, progress)
            export(model, tokenizer, out)
            next_save = progress.seconds + SAVE_SECONDS
    save_checkpoint(checkpoint, model, optimizer, progress)
    export(model, tokenizer, out)
    print_scores(out, corpus)


def print_scores(folder: Path, corpus: Sequence[Document]) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for domain in ("python", "man"):
        texts = [d.text for d in corpus if d.domain == domain and d.held_out]
        trained = [d.text for d in corpus if d.domain == domain and not d.held_out]
        result = score(model, tokenizer, texts)
        print(
            f"{domain}: trained on {len(trained)} files, {sum(map(len, trained))} characters; "
            f"held out {len(texts)} files, {result.scored_bytes} bytes scored, "
            f"{result.bits_per_byte:.3f} bits per byte",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, help="folder that gets the model")
    target.add_argument("--score-only", type=Path, help="folder of a trained model")
    parser.add_argument(
        "--work", type=Path, default=Path("tiny_lm_work"), help="checkpoint"
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.score_only:
        print_scores(arguments.score_only, load_corpus())
    else:
        train(arguments.out, arguments.work, arguments.minutes, arguments.seed)


if __name__ == "__main__":
    main()
