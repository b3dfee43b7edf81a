"""Nothing in the package can unpickle, run a model's own code, or print text as markup."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hullft_ops

PACKAGE = Path(hullft_ops.__file__).parent
UNPICKLING_MODULES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "marshal", "shelve"}
RUNNING = {"eval", "exec", "compile", "__import__"}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def dotted(node: ast.expr) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([*([node.id] if isinstance(node, ast.Name) else []), *reversed(parts)])


def dangers(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
            yield from (f"import {name}" for name in names & UNPICKLING_MODULES)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
            UNPICKLING_MODULES
        ):
            yield f"import {node.module}"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        keywords = {keyword.arg for keyword in node.keywords}
        if name in RUNNING or name in ("torch.load", "np.load", "numpy.load", "yaml.load"):
            yield name
        if keywords & {"trust_remote_code", "allow_pickle", "weights_only"}:
            yield f"{name}: {keywords}"
        if name.endswith("AutoModelForCausalLM.from_pretrained") and (
            "use_safetensors" not in keywords
        ):
            yield f"{name} without use_safetensors"


def test_nothing_is_unpickled_and_no_code_of_a_models_is_run() -> None:
    found = {path.name: list(dangers(tree)) for path, tree in sources()}
    assert len(found) > 60
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "transformers.AutoModelForCausalLM.from_pretrained(name)",
        "eval(text)",
    ],
)
def test_it_would_be_seen(line: str) -> None:
    assert list(dangers(ast.parse(line)))
