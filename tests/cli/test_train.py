"""``hullft-ops train``."""

import re
import warnings

import pytest
from peft import PeftModel

from command import succeeded
from hullft_ops.ttft.models.loading import load_model


@pytest.fixture
def arguments(store, model_directory, tmp_path):
    output = tmp_path / "adapter"
    return ["train", store, "--output", output, "--model", model_directory]


def test_it_makes_an_adapter_for_peft(arguments, model_directory, tmp_path):
    with warnings.catch_warnings():
        # No warning of a library leaks.
        warnings.simplefilter("error", FutureWarning)
        result = succeeded(*arguments, "--rank", 2, "--max-length", 32)

    path = tmp_path / "adapter"

    assert re.search(r"100%.* 54/54 \[.*it/s", result.stderr)
    assert result.stdout.splitlines()[-1] == f"an adapter of rank 2 is in {path}"

    model, _ = load_model(model_directory)
    adapted = PeftModel.from_pretrained(model, path)
    config = adapted.peft_config["default"]

    assert config.r == 2
    assert config.base_model_name_or_path == str(model_directory)
    assert list(tmp_path.iterdir()) == [path]
