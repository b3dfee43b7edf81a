"""Every option is checked where it is defined, and the error names it."""

import math

import pytest

from hullft_ops.ttft.errors import InputError
from hullft_ops.ttft.techniques import TTFTConfig


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("n_select", 100_001, "less than or equal to 100000, got 100001"),
        ("refresh", 0, "greater than 0, got 0"),
        ("pool_size", True, "a valid integer, got True"),
        ("context", -1, "greater than or equal to 0, got -1"),
        ("max_length", 1, "greater than or equal to 2, got 1"),
        ("lr", "1", "a valid number, got '1'"),
        ("lr", 10**400, "a valid number, got 100"),
        ("noise", -0.5, "greater than 0, got -0.5"),
        ("lr", math.nan, "a finite number, got nan"),
        ("method", "nearest", "'hullft', .* or 'knn', got 'nearest'"),
        ("variant", "greedy", "'vanilla' or 'corrective', got 'greedy'"),
        ("dtype", "float16", "'auto' or 'bfloat16', got 'float16'"),
    ],
)
def test_an_option_out_of_range_is_named(option, value, message):
    with pytest.raises(InputError, match=f"^TTFTConfig: {option} must be {message}"):
        TTFTConfig(**{option: value})


def test_the_finetuner_replaces_fields_and_names_unknown_options(gpt2, make):
    config = TTFTConfig(refresh=3, lr=1e-2)
    finetuner = make(gpt2, config=config, lr=1e-3)

    assert (finetuner.config.refresh, finetuner.config.lr) == (3, 1e-3)

    with pytest.raises(InputError, match="unknown option 'n_steps', known are "):
        make(gpt2, n_steps=3)
