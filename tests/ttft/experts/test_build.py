"""Experts are what PEFT reads; a build goes on after any kill, and leaves the model alone."""

import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from forked import forked, status_of
from hullft_ops.ttft import Datastore, MemoryStore, TestTimeFinetuner, _files
from hullft_ops.ttft.errors import NonFiniteLossError
from hullft_ops.ttft.experts import Experts
from hullft_ops.ttft.experts import build as build_module
from hullft_ops.ttft.store.writer import locked
from hullft_ops.ttft.training.trainer import SupportTrainer

Build = Callable[..., Experts]
TOKENS = torch.tensor([[5, 9, 70, 81, 92, 33, 14, 200]])


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def merge(model: PreTrainedModel, experts: Experts, expert: int) -> None:
    with torch.no_grad():
        for name, change in experts.update(expert).items():
            full = (
                change
                if isinstance(change, torch.Tensor)
                else change.scale * change.b @ change.a
            )
            model.get_parameter(name).add_(full)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def count_trainings(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The positions of the texts of each training from now on."""
    trained: list[list[int]] = []
    train = SupportTrainer.train

    def noted(self: Any, texts: Any, indices: Sequence[int], *more: Any) -> Any:
        trained.append(list(indices))
        return train(self, texts, indices, *more)

    monkeypatch.setattr(SupportTrainer, "train", noted)
    return trained


def kill_at(what: str, nth: int) -> None:
    """Have this process killed at the nth write that reaches the disk, or training."""
    owners = [SupportTrainer] if what == "train" else [_files, build_module]
    calls = [0]
    before = getattr(owners[0], what)

    def counted(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments)

    for owner in owners:
        setattr(owner, what, counted)


def test_killed_builds_end_with_the_same_bits(
    build: Build, gpt2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def killed(what: str, nth: int) -> None:
        kill_at(what, nth)
        build(gpt2, "killed")

    # In turn: the first manifest half written; centroids that no manifest names; an expert in
    # training; one that the manifest names before it is there; one there; the next half written.
    kills = [
        ("sync", 1),
        ("sync", 4),
        ("train", 1),
        ("sync", 6),
        ("sync", 7),
        ("sync", 1),
    ]
    for what, nth in kills:
        child = forked(lambda what=what, nth=nth: killed(what, nth))
        assert status_of(child) == -signal.SIGKILL
    trained = count_trainings(monkeypatch)
    build(gpt2, "killed")
    assert len(trained) == 2
    build(gpt2, "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "whole")) == 2 + 2 * 3


def test_a_deleted_expert_is_built_again(
    build: Build, gpt2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build(gpt2, full=True)
    (tmp_path / "experts" / "notes.txt").write_text("mine")
    whole = contents(tmp_path)
    damaged = tmp_path / "experts" / "0001" / "difference.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    trained = count_trainings(monkeypatch)
    with pytest.raises(ValueError, match="is damaged: .*0001 to have it built again"):
        build(gpt2, full=True)
    shutil.rmtree(damaged.parent)
    build(gpt2, full=True)
    assert contents(tmp_path) == whole
    assert len(trained) == 1


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_computes_what_a_merged_expert_does(
    build: Build, model: PreTrainedModel, bits: Any, tmp_path: Path
) -> None:
    before, base = bits(model), logits_of(model)
    flags = [p.requires_grad for p in model.parameters()]
    experts = build(model)
    assert not before.changed()
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    merge(model, experts, 1)
    merged = logits_of(model)
    with torch.no_grad():
        for name, change in experts.update(1).items():
            model.get_parameter(name).sub_(change.scale * change.b @ change.a)
    peft = PeftModel.from_pretrained(model, tmp_path / "experts" / "0001").eval()
    torch.testing.assert_close(logits_of(peft), merged, atol=1e-5, rtol=0)
    assert (merged - base).abs().max() > 1e-2
    config = json.loads(
        (tmp_path / "experts" / "0001" / "adapter_config.json").read_text()
    )
    assert config["modules_to_save"] is None
    assert config["target_modules"] == sorted(config["target_modules"])


def test_the_adapter_names_its_base_model(
    build: Build, gpt2: PreTrainedModel, tmp_path: Path
) -> None:
    gpt2.save_pretrained(tmp_path / "base")
    named = type(gpt2).from_pretrained(tmp_path / "base")
    experts = build(named)
    config = json.loads((experts.path / "0000" / "adapter_config.json").read_text())
    assert (
        config["base_model_name_or_path"]
        == experts.manifest.model
        == str(tmp_path / "base")
    )


@pytest.mark.parametrize("full", [False, True])
def test_an_expert_knows_its_texts(
    build: Build,
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    few: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
    *,
    full: bool,
) -> None:
    trained = count_trainings(monkeypatch)
    experts = build(llama, full=full, passages=3)
    assert [len(indices) for indices in trained] == [
        min(3, n) for n in experts.sizes.tolist()
    ]
    text = few.texts[trained[2][0]]
    tokens = torch.tensor(
        [tokenizer(text, truncation=True, max_length=32)["input_ids"]]
    )
    before = llama(tokens, labels=tokens).loss
    merge(llama, experts, 2)
    assert llama(tokens, labels=tokens).loss < before


def test_the_seed_decides_and_a_finished_build_shows_its_progress(
    build: Build, gpt2: PreTrainedModel
) -> None:
    shown = io.StringIO()
    one, other = (
        build(gpt2, f"seed{n}", seed=n, clusters=1, console=Console(file=shown))
        for n in (0, 1)
    )
    assert "training experts" in shown.getvalue()
    assert "4 of 4" in shown.getvalue()
    pairs = zip(one.update(0).values(), other.update(0).values(), strict=True)
    assert not any(torch.equal(a.a, b.a) for a, b in pairs)


@pytest.mark.filterwarnings(
    "ignore:build_experts. this processor multiplies bfloat16 in software"
)
def test_experts_trained_in_bfloat16_stay_in_float32(
    build: Build, gpt2: PreTrainedModel, tmp_path: Path
) -> None:
    single, half = (
        build(gpt2, f"{dtype}", dtype=dtype, clusters=1) for dtype in (None, "bfloat16")
    )
    assert (single.manifest.dtype, half.manifest.dtype) == (None, "bfloat16")
    pairs = zip(single.update(0).values(), half.update(0).values(), strict=True)
    for exact, near in pairs:
        assert near.b.dtype == torch.float32
        assert not torch.equal(near.b, exact.b)
        # Adam's steps are of one size, and bfloat16 loses the sign of few gradients.
        assert (near.b - exact.b).norm() < 0.3 * exact.b.norm()


def test_texts_too_short_to_train_on_are_left_out(
    build: Build, gpt2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = count_trainings(monkeypatch)
    store = MemoryStore(["a", "the cat sat"], torch.eye(2), "eye")
    experts = build(gpt2, store=store, clusters=2)
    assert sorted(trained) == [[], [1]]
    changes = experts.update(trained.index([]))
    assert not any((change.b @ change.a).any() for change in changes.values())


@pytest.mark.filterwarnings(
    "ignore:build_experts. this processor multiplies bfloat16 in software"
)
def test_other_settings_are_refused(
    build: Build, gpt2: PreTrainedModel, llama: PreTrainedModel, tmp_path: Path
) -> None:
    build(gpt2)
    before = contents(tmp_path)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"rank": 3}, "was built with rank 2, asked for rank 3"),
        (
            {"seed": 1, "lr": 1e-3},
            "was built with seed 0, lr 0.01, asked for seed 1, lr 0.001",
        ),
        ({"clusters": 2}, "was built with clusters 3, asked for clusters 2"),
        (
            {"full": True},
            "was built with kind 'lora', rank 2, asked for kind 'full', rank 0",
        ),
        ({"passages": None}, "was built with passages 4, asked for passages None"),
        (
            {"dtype": "bfloat16"},
            "was built with dtype None, asked for dtype 'bfloat16'",
        ),
    ]
    for options, said in refused:
        with pytest.raises(ValueError, match=said):
            build(gpt2, **options)
    with pytest.raises(
        ValueError, match="was built with fingerprint .*, asked for fingerprint"
    ):
        build(llama)
    assert contents(tmp_path) == before
    with (
        locked(tmp_path / "experts"),
        pytest.raises(ValueError, match="another process is writing the experts"),
    ):
        build(gpt2)


def test_what_is_no_expert_is_refused_and_stays(
    build: Build, gpt2: PreTrainedModel, tmp_path: Path
) -> None:
    folder = tmp_path / "experts"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.txt, which is no expert"):
        build(gpt2)
    assert contents(folder) == {"notes.txt": b"mine"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a folder"):
        build(gpt2, "file")
    (folder / "notes.txt").rename(folder / "manifest.json")
    with pytest.raises(ValueError, match="build_experts: .*is not JSON"):
        build(gpt2)


def test_an_exception_keeps_the_experts_before(
    build: Build,
    gpt2: PreTrainedModel,
    bits: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    before = bits(gpt2)
    with monkeypatch.context() as patch:
        trained = count_trainings(patch)
        train = SupportTrainer.train

        def interrupted(*arguments: Any) -> Any:
            found = train(*arguments)
            if len(trained) == 2:
                raise KeyboardInterrupt
            return found

        patch.setattr(SupportTrainer, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(gpt2)
    assert not before.changed()
    assert set(contents(tmp_path / "experts")) == {
        "0000/adapter_config.json",
        "0000/adapter_model.safetensors",
        "centroids.safetensors",
        "manifest.json",
    }
    with pytest.raises(
        ValueError, match="holds 1 of 3 experts: build them with the same settings"
    ):
        Experts.open(tmp_path / "experts")
    (tmp_path / "experts" / "0000" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"adapter_config\.json is damaged"):
        build(gpt2)


def test_a_loss_that_is_not_finite_names_the_cluster(
    build: Build, gpt2: PreTrainedModel
) -> None:
    with pytest.raises(
        NonFiniteLossError, match="build_experts: cluster 0: .*lower lr"
    ):
        build(gpt2, lr=1e30)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clusters": 15}, "clusters is 15, the store has 14 texts"),
        ({"clusters": 0}, "clusters must be in 1.."),
        ({"rank": 0}, "rank must be in 1.."),
        ({"passages": 0}, "passages must be in 1.."),
        ({"seed": -1}, "seed must be in 0.."),
        ({"lr": 0.0}, "lr must be above 0 and finite, got 0.0"),
        ({"lr": float("nan")}, "lr must be above 0 and finite, got nan"),
        ({"dtype": "float16"}, "dtype must be bfloat16 or None, got float16"),
        ({"max_length": 33}, "max_length is 33, the model's context is 32"),
    ],
)
def test_arguments_out_of_range_are_refused(
    build: Build,
    gpt2: PreTrainedModel,
    options: dict[str, Any],
    said: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=f"build_experts: {said}"):
        build(gpt2, **options)
    assert not (tmp_path / "experts").exists()


def test_models_and_stores_that_do_not_fit_are_refused(
    build: Build,
    make: Callable[..., TestTimeFinetuner],
    gpt2: PreTrainedModel,
    llama: PreTrainedModel,
    store: Datastore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        make(gpt2, n_select=1).adapted("the cat"),
        pytest.raises(RuntimeError, match="is adapted to another prompt already"),
    ):
        build(gpt2)
    part = Datastore(
        store.manifest, store.rows, store.embeddings, None, torch.arange(5)
    )
    with pytest.raises(ValueError, match="5 to search and 60 embeddings"):
        build(gpt2, store=part)
    with monkeypatch.context() as patch:
        patch.setattr(gpt2, "is_quantized", True, raising=False)
        with pytest.raises(
            ValueError, match="build_experts: model must have weights in floating"
        ):
            build(gpt2)
    lora = LoraConfig(r=1, target_modules="all-linear", fan_in_fan_out=True)
    with pytest.raises(ValueError, match="build_experts: model must be a plain one"):
        build(get_peft_model(gpt2, lora))
    llama.model.layers[0].mlp.up_proj = Conv1D(24, 16)
    with pytest.raises(
        ValueError, match="layers of one kind beside its head, got Linear and Conv"
    ):
        build(llama)
