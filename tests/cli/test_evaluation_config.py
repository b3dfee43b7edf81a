"""Configuration files of ``hullft-ops evaluate``, `tune` and `adapt`."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from hullft_ops.cli.evaluate import configuration
from hullft_ops.ttft.evaluation.config import (
    Config,
    ConfigError,
    config_id,
    expand_grid,
    family,
    read_config,
    shipped_configs,
)
from hullft_ops.ttft.evaluation.corpus import Prompt
from hullft_ops.ttft.evaluation.results import open_results, read_rows
from hullft_ops.ttft.evaluation.runner import missing_tasks
from result_rows import result_row


def test_a_grid_is_a_product_with_the_rest_filled_in() -> None:
    grid = expand_grid(
        [{"method": "hullft", "n_select": [5, 9], "refresh": [1, 2]}], "gpt2"
    )
    assert [(s["n_select"], s["refresh"]) for s in grid] == [
        (5, 1),
        (5, 2),
        (9, 1),
        (9, 2),
    ]
    assert {s["lr"] for s in grid} == {5e-5}
    assert {s["lr"] for s in expand_grid([{}], None)} == {2e-4}


def test_a_configuration_comes_once() -> None:
    same = {"method": "hullft", "n_select": 5, "refresh": 2}
    assert len(expand_grid([same, same], None)) == 1
    # Every text of kNN gets one step: refresh says nothing of it.
    assert len(expand_grid([{"method": "knn", "refresh": [1, 2, 4]}], None)) == 1


def test_the_id_says_all_that_is_not_a_default() -> None:
    (setting,) = expand_grid(
        [{"n_select": 5, "variant": "away", "pool_size": 200}], None
    )
    assert config_id(setting) == "hullft n=5 refresh=2 lr=0.0002 variant=away"


def test_texts_in_the_context_are_named_where_there_are_any() -> None:
    plain, two = expand_grid(
        [{"method": "knn", "n_select": 20, "context": [0, 5]}], "gpt2"
    )
    assert config_id(plain) == "knn n=20 refresh=1 lr=5e-05"
    assert config_id(two) == "knn n=20 refresh=1 lr=5e-05 context=5"
    assert (family(plain), family(two)) == ("knn", "knn context=5")


def test_without_steps_only_the_context_counts() -> None:
    axes = {
        "method": ["knn", "hullft"],
        "n_select": [0, 20],
        "refresh": [1, 2],
        "lr": [1.0, 2.0],
    }
    grid = expand_grid([axes | {"context": [0, 5], "variant": "away"}], None)
    stepless = [settings for settings in grid if settings["n_select"] == 0]
    assert [config_id(s) for s in stepless] == ["no steps", "no steps context=5"]
    assert {family(s) for s in stepless} == {"no steps"}
    assert len(grid) == 2 + 2 * (2 + 4)


@pytest.mark.parametrize("key", ["lr", "noise", "max_grad_norm"])
def test_settings_that_differ_in_the_last_digit_are_two(key: str) -> None:
    grid = expand_grid([{"method": "sift", key: [1.234567e-4, 1.234568e-4]}], None)
    assert [settings[key] for settings in grid] == [1.234567e-4, 1.234568e-4]
    assert f"{key}=0.0001234567" in config_id(grid[0])


def test_a_number_has_one_name_however_it_is_written() -> None:
    assert len(expand_grid([{"lr": [1, 1.0]}], None)) == 1


def test_a_file_with_rounded_names_goes_on_by_its_settings(tmp_path: Path) -> None:
    """Earlier versions gave two learning rates one name and ran the first of them."""
    grid = expand_grid([{"method": "knn", "lr": [1.234567e-4, 1.234568e-4]}], None)
    prompt, file = Prompt("a prompt"), tmp_path / "rows.jsonl"
    row = result_row(prompt.id, settings=grid[0])
    rounded = asdict(replace(row, config="knn n=50 refresh=1 lr=0.000123457"))
    file.write_text(json.dumps(rounded) + "\n")
    with open_results(file, "r") as results:
        assert missing_tasks([prompt], grid, results) == [(prompt, [grid[1]])]
        results.append(result_row(prompt.id, settings=grid[1]))
    assert [row.config for row in read_rows(file)] == [
        config_id(settings) for settings in grid
    ]


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    content = {
        "store": "s",
        "prompts": "p",
        "limit": 3,
        "settings": {"lr": 1e-3},
        "tuned": {},
    }
    file.write_text(json.dumps(content))
    config = read_config(file)
    assert (config.store, config.prompts, config.limit) == (Path("s"), Path("p"), 3)
    assert [setting["lr"] for setting in config.configurations] == [1e-3]


def test_a_null_is_the_default(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({field.name: None for field in fields(Config)}))
    assert read_config(file) == Config()
    file.write_text('{"limits": null}')
    with pytest.raises(ConfigError, match="unknown key 'limits'"):
        read_config(file)


def test_the_learning_rate_is_that_of_the_model_named_last() -> None:
    config = read_config("sweep_n").with_changes(model="gpt2")
    assert {setting["lr"] for setting in config.configurations} == {5e-5}


def test_the_command_line_takes_the_place_of_an_axis_in_every_settings(
    tmp_path: Path,
) -> None:
    file = tmp_path / "grid.json"
    grid = [{"method": "sift", "noise": 0.2, "lr": [1.0, 2.0]}, {"method": "knn"}]
    file.write_text(json.dumps({"settings": grid}))
    axes = {"method": None, "lr": [3.0], "n_select": []}
    changed = configuration({"config": str(file), **axes}, default={"method": "hullft"})
    assert changed.settings == (
        {"method": "sift", "noise": 0.2, "lr": [3.0]},
        {"method": "knn", "lr": [3.0]},
    )
    default = configuration(axes, default={"method": "hullft", "lr": 1.0})
    assert default.settings == ({"method": "hullft", "lr": [3.0]},)


def test_a_zero_on_the_command_line_is_a_value() -> None:
    axes = {"method": "", "n_select": 0, "lr": 0.0, "refresh": None}
    changed = configuration(axes, default={"method": "hullft", "lr": 1.0})
    assert changed.settings == ({"method": "", "n_select": 0, "lr": 0.0},)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object, got list"),
        ('{"stores": 1}', "unknown key 'stores', known are model, embedder"),
        (
            '{"settings": {"steps": 1}}',
            "settings: unknown key 'steps', known are n_select",
        ),
        (
            '{"settings": {"method": "knn", "noise": 0.1}}',
            "noise is for method sift, got 'knn'",
        ),
        ('{"settings": 7}', "settings must be an object or a list of them"),
        ('{"limit": "7"}', "limit must be an integer, got '7'"),
        ('{"model": 7}', "model must be a string, got 7"),
        (
            '{"allow_missing_weights": 1}',
            "allow_missing_weights must be true or false, got 1",
        ),
        ('{"seed": -1}', "seed must be in 0..2^63 - 1, got -1"),
        (
            '{"seed": 18446744073709551616}',
            "seed must be in 0..2^63 - 1, got 18446744073709551616",
        ),
    ],
)
def test_a_bad_file_is_refused(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="^config .*config.json: ") as caught:
        read_config(file)
    assert message in str(caught.value)


def test_a_byte_order_mark_is_none_of_it(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"limit": 3}', encoding="utf-8-sig")
    assert read_config(file).limit == 3


def test_a_name_of_nothing_is_told_what_ships(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="No such file .*; cpu_timing, experts, paper"
    ):
        read_config(tmp_path / "sweep")


def test_every_shipped_configuration_is_one() -> None:
    names = ["cpu_timing", "experts", "paper", "sift_reuse", "smollm2", "sweep_n"]
    assert shipped_configs() == names
    for name in shipped_configs():
        config = read_config(name)
        assert config.configurations
        assert config.description
