"""transformers' Trainer with a multiplicity column."""

import gc
import weakref

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import TrainingArguments, default_data_collator

import hullft_ops
from hullft_ops.ttft.hf_trainer import ReplayTrainer

ROWS = [([3, 4, 5, 6], 3), ([7, 8, 9, 10], 1), ([9, 3, 7, 5], 2)]


def arguments(folder, **options):
    settings = {
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "max_grad_norm": 0.0,
        "weight_decay": 0.1,
        "remove_unused_columns": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(output_dir=str(folder), **(settings | options))


def dataset_of(rows):
    # Nothing predicts the first token, but transformers 4 counts its label where it has one.
    return Dataset.from_list(
        [
            {"input_ids": ids, "labels": [-100, *ids[1:]], "multiplicity": count}
            for ids, count in rows
        ]
    )


def trainer_of(model, folder, rows=ROWS, **options):
    own = {
        name: options.pop(name)
        for name in list(options)
        if name.startswith("optimizer")
    }
    return ReplayTrainer(
        model=model,
        args=arguments(folder, **options),
        train_dataset=dataset_of(rows),
        data_collator=default_data_collator,
        **own,
    )


def test_it_equals_adamw_with_every_gradient_reused(llama, tmp_path):
    model = llama.double()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = trainer_of(model, tmp_path)
    # In the order of the rows.
    trainer._get_train_sampler = lambda *args: torch.utils.data.SequentialSampler(ROWS)
    trainer.train()
    found = [parameter.detach().clone() for parameter in model.parameters()]
    model.load_state_dict(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for ids, count in ROWS:
        optimizer.zero_grad()
        tokens = torch.tensor([ids])
        model(input_ids=tokens, labels=tokens).loss.backward()
        for _ in range(count):
            optimizer.step()
    for parameter, value in zip(model.parameters(), found, strict=True):
        # Relative to a step. transformers computes the loss of a double model in float32.
        assert (parameter - value).abs().max() <= 1e-3 * 1e-4


@pytest.mark.parametrize("rows", [ROWS, [(ids, 1) for ids, _ in ROWS]])
def test_evaluation_leaves_the_multiplicity_out(model, tmp_path, rows):
    trainer, given = (
        trainer_of(model.double(), tmp_path, per_device_eval_batch_size=3),
        [],
    )
    # Some models take any argument and ignore it, others fail.
    model.register_forward_pre_hook(
        lambda module, args, kwargs: given.extend(kwargs), with_kwargs=True
    )
    ids = torch.tensor([ids for ids, _ in rows])
    with torch.no_grad():
        wanted = model(input_ids=ids, labels=ids).loss.item()
    found = trainer.evaluate(dataset_of(rows))["eval_loss"]
    # transformers computes the loss of a double model in float32.
    assert found == pytest.approx(wanted, rel=1e-6)
    assert "labels" in given
    assert "multiplicity" not in given


@pytest.mark.parametrize(
    ("rows", "batch", "counts"),
    [
        (ROWS, 3, r"got \[\d, \d, \d\]"),
        ([([3, 4], 0)], 1, r"got \[0\]"),
    ],
)
def test_a_batch_without_one_multiplicity_is_refused(
    gpt2, tmp_path, rows, batch, counts
):
    trainer = trainer_of(gpt2, tmp_path, rows, per_device_train_batch_size=batch)
    with pytest.raises(ValueError, match=f"one multiplicity, at least 1, .*{counts}"):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gradient_accumulation_steps": 2},
            "gradient_accumulation_steps must be 1, got 2",
        ),
        (
            {"remove_unused_columns": True},
            "remove_unused_columns must be False, got True",
        ),
    ],
)
def test_arguments_that_do_not_go_with_it_are_refused(gpt2, tmp_path, options, message):
    with pytest.raises(ValueError, match=f"ReplayTrainer: {message}"):
        trainer_of(gpt2, tmp_path, **options)


def test_an_optimizer_that_is_given_repeats_its_steps_too(gpt2, tmp_path):
    optimizer = hullft_ops.ReplayAdam(gpt2.parameters(), lr=1e-3)
    trainer_of(gpt2, tmp_path, optimizers=(optimizer, None)).train()
    steps = {float(state["step"]) for state in optimizer.state.values()}
    assert steps == {sum(count for _, count in ROWS)}


def test_an_optimizer_that_was_given_is_its_owners_again(gpt2, tmp_path):
    optimizer = hullft_ops.ReplayAdam(gpt2.parameters(), lr=1e-3)
    trainer = trainer_of(gpt2, tmp_path, ROWS[:1], optimizers=(optimizer, None))
    trainer.train()
    known = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert known() is None
    count = next(iter(optimizer.state.values()))["step"]
    done = count.item()
    for parameter in gpt2.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert count.item() == done + 1
    optimizer.step(repeats=4)
    assert count.item() == done + 5
    optimizer.param_groups[0]["repeats"] = 2
    optimizer.step()
    assert count.item() == done + 7


def test_repeats_go_through_accelerate():
    parameter = torch.ones(3, requires_grad=True)
    optimizer = hullft_ops.ReplayAdam([parameter])
    prepared = Accelerator(cpu=True).prepare(optimizer)
    assert prepared is not optimizer
    for repeats in (3, 1, 2):
        parameter.grad = torch.ones(3)
        for group in prepared.param_groups:
            group["repeats"] = repeats
        prepared.step()
    assert optimizer.state[parameter]["step"].item() == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizers": torch.optim.Adam}, "must have a ReplayAdam or None, got Adam"),
        ({"optimizer_cls_and_kwargs": (torch.optim.Adam, {})}, "must be None"),
    ],
)
def test_an_optimizer_that_cannot_repeat_a_step_is_refused(
    gpt2, tmp_path, options, message
):
    if "optimizers" in options:
        options = {"optimizers": (options["optimizers"](gpt2.parameters()), None)}
    with pytest.raises(ValueError, match=f"ReplayTrainer: .*{message}"):
        trainer_of(gpt2, tmp_path, **options)
