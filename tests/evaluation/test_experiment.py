"""The grid file: what it may say, and the configurations that it stands for."""

import json
from dataclasses import dataclass
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
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.errors import InputError


def labels(*settings: dict[str, Any]) -> list[str]:
    return [label(config) for config in expand(settings)]


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


@pytest.mark.parametrize("method", ["knn", "random"])
def test_refresh_does_not_matter_to_methods_of_one_step_a_passage(method: str) -> None:
    grid = {"method": method, "n_select": 5, "refresh": [1, 2, 4]}
    assert labels(grid) == [f"{method} n=5 refresh=1 lr=5e-05"]


def test_a_label_states_what_is_not_the_default() -> None:
    config = TTFTConfig(n_select=20, lr=1.0, context=5, max_length=64, variant="away")
    named = "hullft n=20 refresh=2 lr=1 context=5 max_length=64 variant=away"

    assert label(config) == named
    assert TTFTConfig(**settings_of(config)) == config


def test_a_label_names_functions() -> None:
    def nearest(*_: object) -> Any:
        raise AssertionError

    config = TTFTConfig(method=nearest, refresh=max, n_select=3)
    assert label(config) == "nearest n=3 refresh=max lr=5e-05"

    json.dumps(settings_of(config))


def test_without_steps_only_the_context_matters() -> None:
    grid = {"method": ["knn", "hullft"], "n_select": 0, "lr": [1, 2], "context": [0, 5]}
    assert labels(grid) == ["no steps context=5"]


def test_the_seed_concerns_the_method_random_alone() -> None:
    experiment = Experiment(
        seed=3, settings=[{"method": ["knn", "random"], "n_select": 2}]
    )
    knn, random = experiment.configs()

    assert (knn.seed, random.seed) == (0, 3)


def test_the_model_decides_the_learning_rate_unless_the_grid_does() -> None:
    settings = [{"n_select": 2}, {"n_select": 2, "lr": 1.0}]
    for model, default in ((None, 2e-4), ("gpt2", 5e-5)):
        configs = Experiment(model=model, settings=settings).configs()
        assert [config.lr for config in configs] == [default, 1.0]


def test_fields_of_a_subclass_are_settings() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Warm(TTFTConfig):
        warmup: int = 0

    grid = {"method": "sift", "n_select": 2, "warmup": [0, 7]}
    cold, warm = expand([grid], Warm)

    assert (cold, warm) == (
        Warm(method="sift", n_select=2),
        Warm(method="sift", n_select=2, warmup=7),
    )
    assert label(warm) == "sift n=2 refresh=2 lr=5e-05 warmup=7"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": 3}, "settings[0]: unknown 'experts', known are method, n_select"),
        ({"n_select": []}, "settings[0]: n_select must not be an empty list"),
        ({"n_select": [3, -1]}, "settings[0]: TTFTConfig: n_select must be in 0.."),
        ({"lr": "fast"}, "settings[0]: TTFTConfig: lr must be a"),
        ({"method": "best"}, "settings[0]: TTFTConfig: method must be one of hullft"),
        ({"n_select": 0}, "without steps and context there is nothing to measure"),
    ],
)
def test_a_setting_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        expand([settings])

    assert message in str(error.value)


def test_a_file_may_have_comments_and_one_grid(tmp_path: Path) -> None:
    content = {
        "_why": "for a test",
        "description": "a test",
        "store": "store",
        "limit": 3,
        "settings": {"method": "knn", "n_select": [1, 2]},
    }
    experiment = read_experiment(written(content, tmp_path))

    assert experiment.store == Path("store")
    assert experiment.limit == 3
    assert [label(config) for config in experiment.configs()] == [
        "knn n=1 refresh=1 lr=0.0002",
        "knn n=2 refresh=1 lr=0.0002",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", "Input should be"),
        ({"limits": 3}, "limits: Extra inputs are not permitted"),
        ({"limit": "3"}, "limit: Input should be a valid integer"),
        ({"limit": 0}, "limit: Input should be greater than or equal to 1"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"store": 3}, "store: "),
        ({"settings": []}, "settings: List should have at least 1 item"),
        ({"settings": ["knn"]}, "settings.0: Input should be an object"),
        ({"settings": [{}, {"lr": -1}]}, "settings[1]: TTFTConfig: lr must be above 0"),
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
    with pytest.raises(InputError, match="no.json: No such file.*; cpu_timing, paper"):
        read_experiment("no.json")


@pytest.mark.parametrize("name", ["cpu_timing", "paper", "smollm2", "sweep_n"])
def test_what_ships_with_the_package(name: str) -> None:
    experiment = read_experiment(name)
    assert experiment.description
    assert len(experiment.configs()) > 3


def test_changes_take_the_place_of_what_the_file_says() -> None:
    experiment = Experiment(limit=3, store=Path("a"))
    changed = experiment.changed(limit=5, settings=[{"n_select": 2}])

    assert (changed.limit, changed.store) == (5, Path("a"))

    with pytest.raises(InputError, match="limit: Input should be greater than"):
        experiment.changed(limit=0)
