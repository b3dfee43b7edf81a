"""Opening reads no adapter; whatever the experts do not belong to is refused, naming both sides."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hullft_ops.ttft import Datastore, MemoryStore
from hullft_ops.ttft.experts import Experts, build_experts


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Filled by the first test that needs it: the model and the texts are those of each test."""
    return {"folder": tmp_path_factory.mktemp("built") / "experts"}


@pytest.fixture
def folder(
    built: dict[str, Path],
    gpt2: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    few: MemoryStore,
    tmp_path: Path,
) -> Path:
    """A copy that a test may damage."""
    if not built["folder"].exists():
        build_experts(
            gpt2, tokenizer, few, built["folder"], clusters=2, rank=2, passages=1
        )
    return shutil.copytree(built["folder"], tmp_path / "experts")


def change_manifest(folder: Path, **values: object) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_open_reads_no_adapter(folder: Path, few: MemoryStore) -> None:
    adapter = folder / "0001" / "adapter_model.safetensors"
    adapter.write_bytes(b"x" * adapter.stat().st_size)
    experts = Experts.open(folder)
    assert len(experts) == 2
    assert experts.centroids.shape == (2, few.dim)
    assert experts.centroids.dtype == torch.float32
    assert int(experts.sizes.sum()) == len(few)
    total = (experts.centroids * experts.sizes[:, None]).sum(dim=0)
    torch.testing.assert_close(total, few.embeddings.sum(dim=0))
    with pytest.raises(
        ValueError, match=r"0001/adapter_model\.safetensors is damaged: its SHA-256"
    ):
        experts.update(1)
    assert experts.update(0) is experts.update(0)
    adapter.unlink()
    with pytest.raises(ValueError, match=r"0001/adapter_model\.safetensors is missing"):
        experts.update(1)
    with pytest.raises(ValueError, match="expert must be in 0..1, got 2"):
        experts.update(2)


def test_experts_are_those_of_a_model_and_a_datastore(
    folder: Path,
    gpt2: PreTrainedModel,
    few: MemoryStore,
    store: Datastore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experts = Experts.open(folder)
    experts.check(gpt2, few, n_experts=2)

    def refused(
        said: str, model: Any = gpt2, given: Any = few, n_experts: int = 1
    ) -> None:
        with pytest.raises(ValueError, match=f"Experts.check: {said}"):
            experts.check(model, given, n_experts)

    refused("n_experts is 3, .* holds 2 experts", n_experts=3)
    refused("n_experts must be in 1\\.\\..*, got 0", n_experts=0)
    refused(
        "store has 60 texts with digest .*, the experts .* 14 texts and digest",
        given=store,
    )
    other = MemoryStore(few.texts, few.embeddings, "other")
    refused(
        "store has embeddings of other of dim 24, .* are of hashing of dim 24",
        given=other,
    )
    with monkeypatch.context() as patch:
        patch.setattr(gpt2, "is_quantized", True, raising=False)
        refused(
            "model must have weights in floating point, as experts are, got GPT2LMHeadModel"
        )
    (folder / "0001" / "adapter_config.json").unlink()
    refused(r".*0001/adapter_config\.json is missing")
    with torch.no_grad():
        gpt2.transformer.h[0].attn.c_attn.weight[0, 0] += 1
    refused(
        "model is GPT2LMHeadModel with weights .*, the experts in .* are of a model without"
    )
    lora = LoraConfig(r=1, target_modules="all-linear", fan_in_fan_out=True)
    refused(
        "model must be a plain one, .* with PEFT adapters",
        model=get_peft_model(gpt2, lora),
    )
    refused("model must be a plain one", model=gpt2)


def test_folders_that_are_no_experts_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Experts\.open: no experts at"):
        Experts.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no experts: it has no manifest\.json"):
        Experts.open(tmp_path)
    change_manifest(folder, finished=False)
    with pytest.raises(
        ValueError, match="holds 2 of 2 experts: build them with the same settings"
    ):
        Experts.open(folder)
    change_manifest(folder, finished=True, kind="other")
    with pytest.raises(ValueError, match="kind must be lora or full, got 'other'"):
        Experts.open(folder)
    change_manifest(folder, kind="lora", clusters=0)
    with pytest.raises(ValueError, match="clusters must be a positive integer, got 0"):
        Experts.open(folder)
    change_manifest(folder, clusters=2, files=[])
    with pytest.raises(ValueError, match="files must be an object of SHA-256 sums"):
        Experts.open(folder)
    change_manifest(folder, more=1)
    with pytest.raises(
        ValueError, match=r"must have the fields .*, differs in \['more'\]"
    ):
        Experts.open(folder)
    change_manifest(folder, format_version=2)
    with pytest.raises(
        ValueError, match="format version 2 of experts, this package reads version 1"
    ):
        Experts.open(folder)
    change_manifest(folder, format="hullft_ops.datastore")
    with pytest.raises(ValueError, match="lacks format 'hullft_ops.experts'"):
        Experts.open(folder)


def test_damaged_centroids_are_refused(folder: Path) -> None:
    file = folder / "centroids.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"Experts\.open: .*centroids\.safetensors is damaged"
    ):
        Experts.open(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"centroids\.safetensors is missing"):
        Experts.open(folder)
