"""Every error of a selection operator names the operator, the argument and what came."""

from collections.abc import Iterator
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

import hullft_ops
from bad_arguments import (
    GOOD,
    POOL,
    WRONG_CONTENTS,
    WRONG_DTYPES,
    WRONG_FOR_OPERATORS,
    WRONG_IN_PUBLIC,
    WRONG_OBJECTS,
    WRONG_VALUES,
    Bad,
    operator_of,
)
from problems import ON_VALUES, VARIANTS


@pytest.mark.parametrize("bad", WRONG_OBJECTS + WRONG_DTYPES, ids=Bad.pattern)
def test_wrong_types(bad: Bad) -> None:
    with pytest.raises(TypeError, match=bad.pattern()):
        getattr(hullft_ops, bad.operator)(**bad.arguments())


@pytest.mark.parametrize("bad", WRONG_VALUES + WRONG_IN_PUBLIC, ids=Bad.pattern)
def test_wrong_values(bad: Bad) -> None:
    with pytest.raises(ValueError, match=bad.pattern()):
        getattr(hullft_ops, bad.operator)(**bad.arguments())


@pytest.mark.cpu_only(ON_VALUES)
@pytest.mark.parametrize("bad", WRONG_CONTENTS, ids=Bad.pattern)
def test_wrong_contents(bad: Bad) -> None:
    with pytest.raises(ValueError, match=bad.pattern()):
        getattr(hullft_ops, bad.operator)(**bad.arguments())


@pytest.mark.parametrize("bad", WRONG_DTYPES + WRONG_VALUES, ids=Bad.pattern)
def test_operators_called_directly_check_too(bad: Bad) -> None:
    operator, arguments = bad.of_operator()
    with pytest.raises(ValueError, match=f"^{bad.operator}: .*{bad.argument()}"):
        operator(**arguments)


@pytest.mark.parametrize("bad", WRONG_FOR_OPERATORS, ids=Bad.pattern)
def test_what_operators_alone_refuse(bad: Bad) -> None:
    operator, arguments = bad.of_operator()
    with pytest.raises(ValueError, match=bad.pattern()):
        operator(**arguments)


@pytest.mark.cpu_only("no nested tensor is made on a device that is not there")
def test_a_nested_pool() -> None:
    nested = torch.nested.nested_tensor([POOL, POOL[:2]])
    with pytest.raises(TypeError, match="pool must be dense, got a nested tensor"):
        hullft_ops.fw_select(nested, POOL[:, 0], 3)


def integer_arguments() -> Iterator[tuple[str, str]]:
    """Of every operator."""
    for operator in GOOD:
        schema = str(operator_of(operator).default._schema)
        for argument in ("n_select", "max_iter", "swap_passes"):
            if argument in schema:
                yield operator, argument


INTEGERS = list(integer_arguments())


@pytest.mark.parametrize("kind", [np.int64, np.uint8])
@pytest.mark.parametrize(("operator", "argument"), INTEGERS)
def test_integers_of_numpy_are_integers(
    operator: str, argument: str, kind: type[np.integer]
) -> None:
    function = getattr(hullft_ops, operator)
    arguments = GOOD[operator] | {argument: 2}
    with_python = function(**arguments)

    arguments[argument] = kind(2)
    with_numpy = function(**arguments)

    assert all(map(torch.equal, with_numpy, with_python))


@pytest.mark.parametrize("value", [np.bool_(True), np.float64(2.0), np.array(2)])
@pytest.mark.parametrize(("operator", "argument"), INTEGERS)
def test_other_numbers_of_numpy_are_not(
    operator: str, argument: str, value: object
) -> None:
    function = getattr(hullft_ops, operator)
    arguments = GOOD[operator] | {argument: value}
    kind = type(value).__name__

    with pytest.raises(TypeError, match=f"{argument} must be an int, got {kind}$"):
        function(**arguments)


@pytest.mark.parametrize("name", ["fw_select", "fw_select_indexed"])
def test_a_type_checker_knows_the_variants(name: str) -> None:
    hints = get_type_hints(getattr(hullft_ops, name))
    assert list(get_args(hints["variant"])) == VARIANTS
