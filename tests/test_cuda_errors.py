"""CUDA refuses bad input in the words of the CPU. No GPU is needed: checks come before any launch.

Every test marked ``refusal`` runs again, with all its cases: through the public functions on fake
CUDA tensors, and through the host side of the CUDA operators, which looks at CPU tensors as at any.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import hullft_ops
from hullft_ops import _C
from on_device import NAMESPACE, Operator, elsewhere, with_cuda_checks

Function = Callable[..., None]
MODULES = [
    importlib.import_module(path.stem)
    for path in sorted(Path(__file__).parent.glob("test_*.py"))
    if re.search("select|fw_|integerize|adam|accumulate", path.stem)
]


def functions() -> dict[str, Function]:
    return {
        f"{module.__name__}::{name}": function
        for module in MODULES
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name.startswith("test_") and function.__module__ == module.__name__
    }


def marks(function: Function, name: str) -> list[pytest.Mark]:
    return [mark for mark in getattr(function, "pytestmark", []) if mark.name == name]


def cases(*layers: str) -> list[Any]:
    return list(_cases(*layers))


def _cases(*layers: str) -> Iterator[Any]:
    """Each case of each refusal, with the arguments that its own parametrization gives."""
    for name, function in functions().items():
        if not any(mark.args[0] in layers for mark in marks(function, "refusal")):
            continue
        parametrized = marks(function, "parametrize")
        if not parametrized:
            yield pytest.param(function, {}, id=name)
        for mark in parametrized:
            names = (
                [mark.args[0]] if isinstance(mark.args[0], str) else list(mark.args[0])
            )
            for i, values in enumerate(mark.args[1]):
                arguments = dict(
                    zip(names, [values] if len(names) == 1 else values, strict=True)
                )
                label = values if isinstance(values, str) else i
                yield pytest.param(function, arguments, id=f"{name}[{label}]")


def test_no_refusal_is_forgotten() -> None:
    """A test that wants an error of an operator is a refusal, or says why CUDA gives none."""
    for name, function in functions().items():
        if "pytest.raises" in inspect.getsource(function) and "replay_adam" not in name:
            assert marks(function, "refusal") or marks(function, "cpu_only"), name


def fake_cuda(value: object) -> object:
    """A tensor of that kind on CUDA; within a FakeTensorMode."""
    if not isinstance(value, torch.Tensor) or value.is_meta:
        return value
    if value.layout != torch.strided:
        return torch.empty(
            value.shape, dtype=value.dtype, layout=value.layout, device="cuda"
        )
    return torch.empty_strided(
        value.shape, value.stride(), dtype=value.dtype, device="cuda"
    )


def on_fake_cuda(function: Callable[..., object]) -> Callable[..., object]:
    def call(*args: object, **kwargs: object) -> object:
        with FakeTensorMode():
            moved = tree_map(fake_cuda, (args, kwargs))
            try:
                return function(*moved[0], **moved[1])
            except (TypeError, ValueError) as error:
                raise type(error)(str(error).replace("cuda:0", "cpu")) from error

    return call


@pytest.mark.parametrize(("function", "arguments"), cases("public"))
def test_public_functions_refuse_fake_cuda_tensors(
    function: Function, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message may name the device, and must otherwise be the same."""
    module = inspect.getmodule(function)
    for name in ("fw_select", "fw_select_indexed", "integerize", "knn_select", "sift_select",
                 "sift_select_indexed", "fw_lmo"):  # fmt: skip
        wrapped = on_fake_cuda(getattr(hullft_ops, name))
        monkeypatch.setattr(hullft_ops, name, wrapped)
        if hasattr(module, name):
            monkeypatch.setattr(module, name, wrapped)
    function(**arguments)


def _without_addresses(message: str) -> str:
    """Of several overlaps the one at the lowest address is named."""
    return re.sub(r"\[\d\]", "[i]", message) if "overlaps" in message else message


Errors = list[tuple[type[Exception], str]]


class Recorder(TorchDispatchMode):
    """Keeps what the operators raise."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: Errors = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        try:
            return func(*args, **(kwargs or {}))
        except Exception as error:
            if func.namespace == NAMESPACE:
                self.errors.append((type(error), _without_addresses(str(error))))
            raise


def errors_of(function: Function, arguments: dict[str, Any]) -> Errors:
    with Recorder() as recorder:
        function(**arguments)
    return recorder.errors


def _with_cuda_checks(operator: Operator, arguments: dict[str, Any]) -> object:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(operator._schema.name, "CUDA")
    return with_cuda_checks(operator, arguments)


@pytest.mark.skipif(
    not _C.build_info()["cuda"], reason="this build has no CUDA operators"
)
@pytest.mark.parametrize(("function", "arguments"), cases("public", "operator"))
def test_cuda_operators_refuse_what_those_of_the_cpu_refuse(
    function: Function, arguments: dict[str, Any]
) -> None:
    """The same type and the same text."""
    expected = errors_of(function, arguments)
    with elsewhere(_with_cuda_checks):
        assert errors_of(function, arguments) == expected


@pytest.mark.skipif(
    not _C.build_info()["cuda"], reason="this build has no CUDA operators"
)
@pytest.mark.parametrize(
    "select", [hullft_ops.fw_select, hullft_ops.knn_select, hullft_ops.sift_select]
)
def test_more_candidates_than_a_block_counts(select: Callable[..., object]) -> None:
    pool, query = torch.zeros(1, 2).expand(2**30 + 1, 2), torch.zeros(1, 2)
    with (
        elsewhere(_with_cuda_checks),
        pytest.raises(ValueError, match=r"1073741824 candidates, got 1073741825"),
    ):
        select(pool, query, 1)


ONES = torch.ones(1, 1, dtype=torch.float64)
ENDLESS, MANY = ONES.expand(2**30, 1), ONES.expand(2**31 - 1, 1)
BEYOND_64_BITS: dict[str, Callable[[], object]] = {
    "fw_lmo": lambda: hullft_ops.fw_lmo(ENDLESS, MANY, MANY),
    "knn_select": lambda: hullft_ops.knn_select(ENDLESS, MANY, 1),
    "fw_select": lambda: hullft_ops.fw_select(ENDLESS, MANY, 2**31 - 1),
    "sift_select": lambda: hullft_ops.sift_select(ENDLESS, ONES, 2**31 - 1),
    "integerize": lambda: hullft_ops.integerize(
        ENDLESS, MANY, MANY[:, :1].expand(-1, 2**30), 1
    ),
}


@pytest.mark.skipif(
    not _C.build_info()["cuda"], reason="this build has no CUDA operators"
)
@pytest.mark.parametrize("operator", BEYOND_64_BITS)
def test_workspaces_that_64_bits_do_not_count(operator: str) -> None:
    wanted = f"^{operator}: on CUDA it would need [0-9]+ GiB of workspace$"
    with elsewhere(_with_cuda_checks), pytest.raises(ValueError, match=wanted):
        BEYOND_64_BITS[operator]()


def test_cases_of_every_operator() -> None:
    text = "".join(
        inspect.getsource(param.values[0]) for param in cases("public", "operator")
    )
    assert len(cases("public", "operator")) > 100
    assert len(cases("public")) > 50
    assert "adam_replay_" in text
    assert "grad_accumulate_" in text
