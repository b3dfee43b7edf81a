"""The grid file: what it may say, and the configurations that it stands for."""

import json
from pathlib import Path
from typing import Any

import pytest

from hullft_ops.evaluation.experiment import (
    expand,
    read_experiment,
)
from hullft_ops.ttft.techniques import TTFTConfig
from hullft_ops.ttft.validation import InputError

# Steps on selected passages, and nothing beside them.
ALONE = {"train_on_prompt": 0, "context": 0, "ngrams": 0}


def configs(*settings: dict[str, Any]) -> list[TTFTConfig]:
    """Of grids, with the selected passages alone unless the settings say more."""
    return expand([ALONE | grid for grid in settings])


def values_of(names: list[str], *grids: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The values of these settings in each configuration; None where they do not matter."""
    return [
        tuple(config.settings().get(name) for name in names)
        for config in configs(*grids)
    ]


def written(content: Any, folder: Path) -> Path:
    file = folder / "grid.json"
    text = content if isinstance(content, str) else json.dumps(content)
    file.write_text(text)
    return file


def test_lists_multiply_out_and_each_configuration_comes_once() -> None:
    grid = {"method": "hullft", "n_select": [5, 10], "refresh": [1, 2]}

    assert values_of(["n_select", "refresh"], grid, grid | {"n_select": 5}) == [
        (5, 1),
        (5, 2),
        (10, 1),
        (10, 2),
    ]


def test_settings_of_a_technique_that_is_off_do_not_multiply() -> None:
    grid = {"method": ["knn", "sift"], "n_select": 0, "lr": [1.0, 2.0], "context": 5}

    assert [config.settings() for config in configs(grid)] == [
        {"context": 5, "context_following": 1}
    ]


def test_a_setting_of_one_method_does_not_multiply_the_others() -> None:
    grid = {"method": ["hullft", "sift", "knn"], "n_select": 8, "noise": [0.1, 0.2]}

    assert values_of(["method", "noise"], grid | {"context_following": [1, 2]}) == [
        ("hullft", None),
        ("sift", 0.1),
        ("sift", 0.2),
        ("knn", None),
    ]

    # Each passage has one step.
    knn = {"method": "knn", "n_select": 5, "refresh": [1, 2, 4]}

    assert values_of(["refresh"], knn) == [(None,)]


@pytest.mark.parametrize(
    "options",
    [
        {"n_select": 20, "lr": 1.0, "max_length": 64, "context": 2},
        {"n_select": 3, "method": "knn", "dtype": None, "ngrams": 0.5},
    ],
)
def test_settings_make_the_configuration_again(options: dict[str, Any]) -> None:
    config = TTFTConfig(**options)
    off = {"n_select": 0, "train_on_prompt": 0, "context": 0, "ngrams": 0.0}
    again = TTFTConfig(**off | config.settings())

    assert again.settings() == config.settings()
    assert list(map(type, again.active())) == list(map(type, config.active()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": 3}, "settings[0]: TTFTConfig: unknown option 'experts', known"),
        ({"lr": -1}, "settings[0]: TTFTConfig: lr must be greater"),
        (
            {"n_select": []},
            "nothing to measure where every technique is off, or a list",
        ),
        (
            ALONE | {"n_select": 0},
            "nothing to measure where every technique is off",
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
        ({"limits": 3}, "limits: Unexpected keyword argument"),
        ({"settings": ["knn"]}, "settings.0 must be an object, got 'knn'"),
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
