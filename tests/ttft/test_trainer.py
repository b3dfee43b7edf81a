"""transformers' Trainer with a multiplicity column."""

import copy

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments, default_data_collator

import hullft_ops
from hullft_ops.ttft import trainer as trainer_module
from hullft_ops.ttft.trainer import ReplayTrainer

ROWS = [([3, 4, 5, 6], 3), ([7, 8, 9, 10], 1), ([9, 3, 7, 5], 2)]
ONCE = [(ids, 1) for ids, _ in ROWS]


def dataset_of(rows, *, counted=True):
    examples = []
    for ids, count in rows:
        # Nothing predicts the first token.
        example = {"input_ids": ids, "labels": [-100, *ids[1:]]}
        if counted:
            example["multiplicity"] = count

        examples.append(example)
    return Dataset.from_list(examples)


def trainer_of(
    model, folder, rows=ROWS, *, kind=ReplayTrainer, optimizer=None, **options
):
    arguments = {
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
    arguments |= options
    return kind(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=dataset_of(rows, counted=kind is ReplayTrainer),
        data_collator=default_data_collator,
        optimizers=(optimizer, None),
    )


def test_another_kind_of_optimizer_is_refused(gpt2, tmp_path):
    trainer = trainer_of(gpt2, tmp_path, optim="sgd")
    with pytest.raises(ValueError, match="must be a ReplayAdam, got SGD"):
        trainer.train()


def parameters_of(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("rows", "window"),
    [
        (ROWS, 1),
        ([([3, 4, 5, 6], 2), ([7, 8, 9, 10], 0), ([9, 3, 7, 5], 2)], 2),
    ],
)
def test_every_gradient_is_reused_by_adamw(llama, tmp_path, rows, window):
    """Rows of multiplicity 0 are left out; a window's gradients have equal ones."""
    model = llama.double()
    base = copy.deepcopy(model.state_dict())
    options = {"weight_decay": 0.0, "gradient_accumulation_steps": window}
    trainer = trainer_of(model, tmp_path, rows, **options)
    trainer._get_train_sampler = lambda dataset: SequentialSampler(dataset)
    trainer.train()
    trained = parameters_of(model)
    model.load_state_dict(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    steps = [(ids, count) for ids, count in rows if count]
    for first in range(0, len(steps), window):
        optimizer.zero_grad()
        ids, counts = zip(*steps[first : first + window], strict=True)
        tokens = torch.tensor(ids)
        model(input_ids=tokens, labels=tokens).loss.backward()

        for _ in range(counts[0]):
            optimizer.step()

    for parameter, value in zip(model.parameters(), trained, strict=True):
        # Relative to a step. transformers computes the loss of a double model in float32.
        assert (parameter - value).abs().max() <= 1e-3 * 1e-4


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ReplayTrainer, Trainer),
        (Trainer, ReplayTrainer),
    ],
)
def test_checkpoints_continue_in_trainer_and_back(gpt2, tmp_path, first, second):
    base = copy.deepcopy(gpt2.state_dict())
    whole = trainer_of(gpt2, tmp_path / "whole", ONCE)
    whole.train()
    expected = parameters_of(gpt2)

    gpt2.load_state_dict(base)
    folder = tmp_path / "run"
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    beginning = trainer_of(gpt2, folder, ONCE, kind=first, **saving)
    beginning.train()

    rest = trainer_of(gpt2, folder, ONCE, kind=second)
    rest.train(resume_from_checkpoint=str(folder / "checkpoint-2"))

    assert rest.state.global_step == 3

    for parameter, value in zip(gpt2.parameters(), expected, strict=True):
        assert (parameter - value).abs().max() <= 1e-3 * 1e-3


def test_evaluation_ignores_the_multiplicity(model, tmp_path):
    trainer = trainer_of(model, tmp_path, per_device_eval_batch_size=3)
    names = []

    def listen(module, args, kwargs):
        names.extend(kwargs)

    # Some models take any argument and ignore it.
    model.register_forward_pre_hook(listen, with_kwargs=True)
    ids = torch.tensor([ids for ids, _ in ROWS])
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss.item()

    loss = trainer.evaluate(dataset_of(ROWS))["eval_loss"]

    assert loss == pytest.approx(expected, rel=1e-5)
    assert "labels" in names
    assert "multiplicity" not in names


@pytest.mark.parametrize(
    ("rows", "options", "counts"),
    [
        (ROWS, {"per_device_train_batch_size": 3}, "1, 2, 3"),
        (ROWS[1:], {"gradient_accumulation_steps": 2}, "1, 2"),
        ([([3, 4], -1)], {}, "-1"),
    ],
)
def test_an_optimizer_step_needs_one_multiplicity(
    gpt2, tmp_path, rows, options, counts
):
    trainer = trainer_of(gpt2, tmp_path, rows, **options)
    message = rf'"multiplicity" must have one value.*got \[{counts}\]'

    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_processes_need_one_multiplicity(gpt2, tmp_path, monkeypatch):
    """What ranks gather stands for the other process."""
    monkeypatch.setattr(trainer_module, "gather_object", lambda counts: [*counts, {2}])
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    trainer = trainer_of(gpt2, tmp_path)

    with pytest.raises(
        ValueError, match=r'"multiplicity" must have one .*got \[1, 2\]'
    ):
        trainer.training_step(gpt2, {"multiplicity": torch.tensor([1])})


def test_the_column_is_needed(gpt2, tmp_path):
    trainer = trainer_of(gpt2, tmp_path)
    trainer.train_dataset = dataset_of(ROWS, counted=False)

    with pytest.raises(ValueError, match='must have a column "multiplicity", got'):
        trainer.train()

    with pytest.raises(TypeError, match='"multiplicity" must hold integers, got torch'):
        trainer.training_step(gpt2, {"multiplicity": torch.tensor([2.0])})


def test_unused_columns_must_stay(gpt2, tmp_path):
    with pytest.raises(ValueError, match="remove_unused_columns must be False, got"):
        trainer_of(gpt2, tmp_path, remove_unused_columns=True)


def test_the_users_optimizer_repeats_steps_and_is_theirs_afterwards(gpt2, tmp_path):
    optimizer = hullft_ops.ReplayAdam(gpt2.parameters(), lr=1e-3)
    trainer = trainer_of(gpt2, tmp_path, optimizer=optimizer)
    trainer.train()
    count = next(iter(optimizer.state.values()))["step"]

    assert count.item() == sum(repeats for _, repeats in ROWS)

    for parameter in gpt2.parameters():
        parameter.grad = torch.ones_like(parameter)

    optimizer.step()

    assert count.item() == 7

    optimizer.step(repeats=4)

    assert count.item() == 11

    trainer_of(gpt2, tmp_path, optimizer=optimizer).train()

    assert count.item() == 17


def test_an_optimizer_that_cannot_repeat_a_step_is_refused(gpt2, tmp_path):
    adam = torch.optim.Adam(gpt2.parameters())
    with pytest.raises(ValueError, match="must be a ReplayAdam, got Adam, which"):
        trainer_of(gpt2, tmp_path, optimizer=adam)
