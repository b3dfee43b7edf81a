"""transformers' Trainer on examples with multiplicities.

    python examples/trainer.py

Selection decides how many steps each text gets. A row of the dataset gives one gradient and the
number of steps to take with it. The model is hullft_ops's toy.
"""

import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    TrainingArguments,
)

from hullft_ops.ttft import (
    Datastore,
    ReplayTrainer,
    TestTimeFinetuner,
    load_embedder,
    score_text,
    tiny_lm_path,
)

TEXTS = [f"def area_{n}(side):\n    return {n} * side * side\n" for n in range(40)]
PROMPT = "def area_99(side):\n    return 99"
REFRESH = 2


def main() -> dict[str, float]:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm_path(), trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        tiny_lm_path(), trust_remote_code=False
    )
    embedder = load_embedder()
    before = score_text(model, tokenizer, PROMPT).value
    with tempfile.TemporaryDirectory() as folder:
        store = Datastore.build(TEXTS, embedder, Path(folder) / "store")
        support = TestTimeFinetuner(
            model, tokenizer, store, embedder, n_select=20
        ).select(PROMPT)
        rows = [
            {"input_ids": ids, "multiplicity": min(REFRESH, count - done)}
            for ids, count in zip(support.input_ids, support.counts, strict=True)
            for done in range(0, count, REFRESH)
        ]
        trainer = ReplayTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                learning_rate=2e-4,
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
        )
        trainer.train()
    after = score_text(model, tokenizer, PROMPT).value
    steps = int(next(iter(trainer.optimizer.state.values()))["step"])
    print(f"{steps} steps with {len(rows)} gradients")
    print(f"bits per byte: {before:.3f} before, {after:.3f} after")
    return {"before": before, "after": after, "steps": steps, "rows": len(rows)}


if __name__ == "__main__":
    main()
