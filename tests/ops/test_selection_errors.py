"""Every error of a selection operator names the operator, the argument and what came."""

import numpy as np
import pytest
import torch

import hullft_ops
from bad_arguments import (
    FORMS,
    POOL,
    WRONG_CONTENTS,
    WRONG_DTYPES,
    WRONG_FOR_OPERATORS,
    WRONG_IN_PUBLIC,
    WRONG_OBJECTS,
    WRONG_VALUES,
    Bad,
    Form,
)
from problems import ON_VALUES


@pytest.mark.parametrize("bad", WRONG_OBJECTS + WRONG_DTYPES, ids=Bad.pattern)
def test_wrong_types(bad: Bad) -> None:
    with pytest.raises(TypeError, match=bad.pattern()):
        getattr(hullft_ops, bad.operator)(**bad.arguments)


@pytest.mark.parametrize("bad", WRONG_VALUES + WRONG_IN_PUBLIC, ids=Bad.pattern)
def test_wrong_values(bad: Bad) -> None:
    with pytest.raises(ValueError, match=bad.pattern()):
        getattr(hullft_ops, bad.operator)(**bad.arguments)


@pytest.mark.cpu_only(ON_VALUES)
@pytest.mark.parametrize("bad", WRONG_CONTENTS, ids=Bad.pattern)
def test_wrong_contents(bad: Bad) -> None:
    with pytest.raises(ValueError, match=bad.pattern()):
        getattr(hullft_ops, bad.operator)(**bad.arguments)


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
def test_a_pool_that_is_not_dense() -> None:
    nested = torch.nested.nested_tensor([POOL, POOL[:2]])
    for pool, kind in ((nested, "a nested tensor"), (POOL.to_sparse(), "layout")):
        with pytest.raises(TypeError, match=f"pool must be dense, got {kind}"):
            hullft_ops.fw_select(pool, POOL[:, 0], 3)


@pytest.mark.parametrize("form", FORMS)
def test_integers_of_numpy_are_integers(form: Form) -> None:
    operator, arguments = form
    function = getattr(hullft_ops, operator)
    integers = {
        name: np.int64(value)
        for name, value in arguments.items()
        if isinstance(value, int)
    }
    with_numpy = function(**arguments | integers)

    torch.testing.assert_close(
        with_numpy, function(**arguments), rtol=0, atol=0, equal_nan=True
    )
