"""Every option is checked where it is defined, and the error names it."""

import math

import pytest

from hullft_ops.ttft.techniques import TTFTConfig
from hullft_ops.ttft.validation import InputError


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("n_select", 100_001, "less than or equal to 100000, got 100001"),
        ("pool_size", True, "a valid integer, got True"),
        ("lr", math.nan, "a finite number, got nan"),
        ("method", "nearest", "'hullft', .* or 'knn', got 'nearest'"),
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
