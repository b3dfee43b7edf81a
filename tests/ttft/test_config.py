"""Every option is checked where it is defined, and the error names it."""

import dataclasses
import math

import pytest

from hullft_ops.ttft.config import TTFTConfig


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("n_select", 100_001, r"must be in 0\.\.100000, got 100001"),
        ("refresh", 0, "must be .*, got 0"),
        ("pool_size", 0, "must be .*, got 0"),
        ("context", -1, "must be .*, got -1"),
        ("max_length", 1, "must be .*, got 1"),
        ("seed", -1, "must be .*, got -1"),
        ("lr", "1", "must be a number, got str"),
        ("noise", -0.5, "must be above 0, got -0.5"),
        ("max_grad_norm", math.nan, "must be above 0, got nan"),
        ("method", "nearest", "must be one of hullft, .*, got 'nearest'"),
        ("variant", "greedy", "must be one of vanilla, .*, got 'greedy'"),
        ("dtype", "float16", "must be one of None, bfloat16, got 'float16'"),
    ],
)
def test_an_option_out_of_range_is_named(option, value, message):
    with pytest.raises(
        (TypeError, ValueError), match=f"TTFTConfig: {option} {message}"
    ):
        TTFTConfig(**{option: value})


def test_the_finetuner_replaces_fields_and_names_unknown_options(gpt2, make):
    config = TTFTConfig(refresh=3, lr=1e-2)
    finetuner = make(gpt2, config=config, lr=1e-3)

    assert (finetuner.config.refresh, finetuner.config.lr) == (3, 1e-3)

    with pytest.raises(TypeError, match="n_steps"):
        make(gpt2, n_steps=3)


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError, match="lr"):
        TTFTConfig().lr = 1.0
