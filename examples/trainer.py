"""A transformers' Trainer that takes several steps with each gradient.

    python examples/trainer.py

A column of the dataset says how many, as a selection decides. The model is hullft_ops's toy.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

import hullft_ops
from hullft_ops.ttft import (
    Datastore,
    TestTimeFinetuner,
    load_embedder,
    load_model,
    score_text,
)

TEXTS = [f"def area_{n}(side):\n    return {n} * side * side\n" for n in range(40)]
PROMPT = "def area_99(side):\n    return 99"
REFRESH = 2


class ReplayTrainer(Trainer):
    """A Trainer whose rows have a column "multiplicity": the steps with their gradient."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        args = self.args
        rows = args.train_batch_size * args.gradient_accumulation_steps
        if rows > 1:
            raise ValueError(
                "ReplayTrainer: batch size and gradient_accumulation_steps must be 1, got "
                f"{rows} rows a step: a mean of gradients has one number of steps"
            )
        if args.remove_unused_columns:
            raise ValueError(
                "ReplayTrainer: remove_unused_columns must be False, or the multiplicities "
                "are dropped"
            )

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        multiplicity = inputs.pop("multiplicity").item()
        # Trainer calls step() without arguments.
        for group in self.optimizer.param_groups:
            group["repeats"] = multiplicity
        return super().training_step(model, inputs, *args, **kwargs)


def main() -> dict[str, float]:
    torch.manual_seed(0)
    model, tokenizer = load_model(None)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    embedder = load_embedder()
    before = score_text(model, tokenizer, PROMPT).value
    with tempfile.TemporaryDirectory() as folder:
        store = Datastore.build(TEXTS, embedder, Path(folder) / "store")
        finetuner = TestTimeFinetuner(model, tokenizer, store, embedder, n_select=20)
        support = finetuner.select(PROMPT)
        rows = [
            {"input_ids": ids, "multiplicity": min(REFRESH, count - done)}
            for ids, count in zip(support.input_ids, support.counts, strict=True)
            for done in range(0, count, REFRESH)
        ]
        trainer = ReplayTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                lr_scheduler_type="constant",
                num_train_epochs=1,
                per_device_train_batch_size=1,
                remove_unused_columns=False,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=Dataset.from_list(rows),
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            optimizers=(hullft_ops.ReplayAdam(model.parameters(), lr=2e-4), None),
        )
        trainer.train()
    after = score_text(model, tokenizer, PROMPT).value
    steps = int(next(iter(trainer.optimizer.state.values()))["step"])
    print(f"{steps} steps with {len(rows)} gradients")
    print(f"bits per byte: {before:.3f} before, {after:.3f} after")
    return {"before": before, "after": after, "steps": steps, "rows": len(rows)}


if __name__ == "__main__":
    main()
