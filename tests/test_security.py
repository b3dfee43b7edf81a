"""Nothing in the package can unpickle, run a model's own code, or print text as markup."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import hullft_ops

PACKAGE = Path(hullft_ops.__file__).parent
ROOT = Path(__file__).parent.parent
UNPICKLING_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
}
RUNNING = {"eval", "exec", "compile", "__import__"}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def dotted(node: ast.expr) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(
        [*([node.id] if isinstance(node, ast.Name) else []), *reversed(parts)]
    )


def may_run_code(call: ast.Call, name: str) -> bool:
    """Whether a model's own code is not refused: where that is left open, a terminal is asked."""
    said = {k.arg: ast.unparse(k.value) for k in call.keywords}.get("trust_remote_code")
    loads = (
        name.endswith(".from_pretrained")
        or name.split(".")[-1] == "SentenceTransformer"
    )
    return said != "False" if loads else said is not None


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
        if name in RUNNING or name in (
            "torch.load",
            "np.load",
            "numpy.load",
            "yaml.load",
        ):
            yield name
        if keywords & {"allow_pickle", "weights_only"}:
            yield f"{name}: {keywords}"
        if may_run_code(node, name):
            yield f"{name} may run a model's code"
        if name.endswith("AutoModelForCausalLM.from_pretrained") and (
            "use_safetensors" not in keywords
        ):
            yield f"{name} without use_safetensors"


def test_nothing_is_unpickled_and_no_code_of_a_models_is_run() -> None:
    found = {path.name: list(dangers(tree)) for path, tree in sources()}
    assert len(found) > 60
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "tools"])
def test_what_is_shown_to_users_runs_no_code_of_a_models_either(folder: str) -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / folder).glob("*.py")]
    calls = [
        node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)
    ]
    loading = [call for call in calls if dotted(call.func).endswith(".from_pretrained")]
    assert loading
    assert not [
        ast.unparse(call) for call in calls if may_run_code(call, dotted(call.func))
    ]


def test_embedders_are_loaded_by_a_version_that_runs_no_code_of_a_folder() -> None:
    """sentence-transformers before 6.0 does, whatever it is told."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = map(Requirement, project["optional-dependencies"]["ttft"])
    [embedders] = [r for r in requirements if r.name == "sentence-transformers"]
    assert not embedders.specifier.contains("5.999")


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoTokenizer.from_pretrained(name)",
        "SentenceTransformer(name, device=device)",
        "transformers.AutoModelForCausalLM.from_pretrained(name)",
        "eval(text)",
    ],
)
def test_it_would_be_seen(line: str) -> None:
    assert list(dangers(ast.parse(line)))


def test_the_tests_that_the_security_policy_names_are_there() -> None:
    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    table = policy.partition("## Which test shows it")[2]
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", table)
    assert len(named) > 20
    for path, test in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert f"def {test or 'test_'}" in source, (path, test)
