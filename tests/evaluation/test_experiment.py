"""The grid file: what it may say, and the configurations that it stands for."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hullft_ops.evaluation.experiment import (
    Experiment,
    expand,
    label,
    read_experiment,
    settings_of,
)
from hullft_ops.ttft.config import TTFTConfig, matters
from hullft_ops.ttft.errors import InputError

# Steps on selected passages, and nothing beside them.
ALONE = {"train_on_prompt": 0, "context": 0, "ngrams": 0}


def labels(*settings: dict[str, Any]) -> list[str]:
    """Of the configurations, with the selected passages alone unless the settings say more."""
    return [label(config) for config in expand([ALONE | grid for grid in settings])]


def written(content: Any, folder: Path) -> Path:
    file = folder / "grid.json"
    text = content if isinstance(content, str) else json.dumps(content)
    file.write_text(text)
    return file


def test_lists_multiply_out_and_each_configuration_comes_once() -> None:
    grid = {"method": "hullft", "n_select": [5, 10], "refresh": [1, 2]}
    assert labels(grid, grid | {"n_select": 5}) == [
        "hullft n=5 refresh=1 lr=5e-05",
        "hullft n=5 refresh=2 lr=5e-05",
        "hullft n=10 refresh=1 lr=5e-05",
        "hullft n=10 refresh=2 lr=5e-05",
    ]


def test_refresh_does_not_matter_to_a_method_of_one_step_a_passage() -> None:
    grid = {"method": "knn", "n_select": 5, "refresh": [1, 2, 4]}
    assert labels(grid) == ["knn n=5 refresh=1 lr=5e-05"]


@pytest.mark.parametrize(
    ("passages", "named"),
    [
        ({}, " context=5 context_following=1 max_length=64 ngrams=1"),
        (
            {"context": 2, "context_following": 0},
            " context=2 max_length=64 ngrams=1",
        ),
        (ALONE, " max_length=64"),
    ],
)
def test_a_label_states_what_is_read_and_what_is_not_the_default(
    passages: dict[str, int], named: str
) -> None:
    options = {"n_select": 20, "lr": 1.0, "max_length": 64, "variant": "corrective"}
    config = TTFTConfig(**{"train_on_prompt": 0} | options | passages)

    assert label(config) == f"hullft n=20 refresh=2 lr=1{named} variant=corrective"
    assert TTFTConfig(**settings_of(config)) == config


def test_without_steps_what_concerns_them_does_not_matter() -> None:
    grid = {"method": "knn", "n_select": 0, "lr": 1, "pool_size": 50, "context": [0, 5]}

    assert labels(grid) == ["no steps context=5 context_following=1"]

    # A field without a mark is never dropped.
    grid |= {"train_on_prompt": 0, "ngrams": 0}
    unmarked = [field.name for field in fields(TTFTConfig) if matters(field.name, grid)]

    assert unmarked == [
        "n_select",
        "context",
        "context_following",
        "ngrams",
        "train_on_prompt",
        "max_length",
        "dtype",
        "adapter",
    ]


def test_a_setting_of_one_method_does_not_multiply_the_others() -> None:
    grid = {"method": ["hullft", "sift"], "noise": [0.1, 0.2], "order": "grouped"}
    grid |= {"n_select": 8}

    assert labels(grid | {"context_following": [1, 2]}) == [
        "hullft n=8 refresh=2 lr=5e-05 order=grouped",
        "sift n=8 refresh=2 lr=5e-05 noise=0.1 order=grouped",
        "sift n=8 refresh=2 lr=5e-05 noise=0.2 order=grouped",
    ]


def test_the_model_decides_the_learning_rate_unless_the_grid_does() -> None:
    settings = [{"n_select": 2}, {"n_select": 2, "lr": 1.0}]
    for model, default in ((None, 2e-4), ("gpt2", 5e-5)):
        configs = Experiment(model=model, settings=settings).configs()
        assert [config.lr for config in configs] == [default, 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": 3}, "settings[0]: TTFTConfig: unknown option 'experts', known"),
        ({"n_select": []}, "settings[0]: n_select must not be an empty list"),
        (
            ALONE | {"n_select": 0},
            "nothing to measure where n_select, train_on_prompt, context, ngrams, adapter",
        ),
    ],
)
def test_a_setting_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        expand([settings])

    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", "must be an object, got []"),
        ({"limits": 3}, "limits: Unexpected keyword argument"),
        ({"limit": "3"}, "limit must be a valid integer, got '3'"),
        ({"store": 3}, "store must be"),
        ({"settings": []}, "settings: List should have at least 1 item"),
        ({"settings": ["knn"]}, "settings.0 must be an object, got 'knn'"),
        (
            {"settings": [{}, {"n_select": 1, "lr": -1}]},
            "settings[1]: TTFTConfig: lr must be greater",
        ),
    ],
)
def test_an_error_names_the_file_and_the_key(
    content: Any, message: str, tmp_path: Path
) -> None:
    file = written(content, tmp_path)

    with pytest.raises(InputError) as error:
        read_experiment(file)

    assert str(error.value).startswith(f"config {file}: {message}")
    assert "\n" not in str(error.value)


def test_a_missing_file_lists_what_ships_with_the_package() -> None:
    with pytest.raises(InputError, match="no.json: No such file.*; cpu_timing, demo"):
        read_experiment("no.json")


@pytest.mark.parametrize("name", ["cpu_timing", "demo", "paper", "smollm2", "sweep_n"])
def test_what_ships_with_the_package(name: str) -> None:
    experiment = read_experiment(name)

    assert experiment.description
    assert len(experiment.configs()) >= 3
