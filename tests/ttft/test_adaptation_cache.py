"""The cache of adaptations: what a hit saves, what makes a miss, and what goes first."""

import copy
import os
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hullft_ops.ttft.training.trainer import SupportTrainer

PROMPT = "the cat sat on the red mat"
OTHER = "a blue tree ran to the world"


def with_lora(model, alpha=8):
    lora = LoraConfig(
        target_modules=["c_attn"], r=2, lora_alpha=alpha, task_type="CAUSAL_LM"
    )
    torch.manual_seed(0)
    return get_peft_model(model, lora)


@pytest.fixture
def cached(make, tmp_path):
    def cached(model, **options):
        return make(
            model, **({"n_select": 3, "cache_dir": tmp_path / "cache"} | options)
        )

    return cached


def adapt(finetuner, prompt=PROMPT, **options):
    """The report, and the model's bytes while it is adapted."""
    with finetuner.adapted(prompt, **options) as report:
        state = finetuner.model.state_dict()
        return report, b"".join(t.detach().numpy().tobytes() for t in state.values())


def entries(tmp_path):
    return sorted((tmp_path / "cache").glob("*.safetensors"))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_hit_makes_no_pass_and_gives_the_same_bits(
    gpt2, cached, tmp_path, bits, monkeypatch, kind
):
    model = with_lora(gpt2) if kind == "lora" else gpt2
    uncached, wanted = adapt(cached(model, cache_dir=None))
    first, stored = adapt(cached(model))
    assert (first.from_cache, first.forward_backward_passes) == (
        False,
        len(first.losses),
    )
    assert stored == wanted
    [entry] = entries(tmp_path)
    size = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    assert size < entry.stat().st_size < size + 8000
    # As in another process: a copy of the model, and a finetuner that has seen nothing.
    again, before = copy.deepcopy(model), bits(model)
    # The same model may lie in another folder.
    again.config._name_or_path = "elsewhere"
    for config in getattr(again, "peft_config", {}).values():
        config.base_model_name_or_path = "elsewhere"
    monkeypatch.setattr(
        SupportTrainer, "train", lambda *_: pytest.fail("it was trained again")
    )
    for finetuner in (cached(again), cached(model)):
        for prompt in (PROMPT, finetuner.select(PROMPT)):
            report, found = adapt(finetuner, prompt)
            assert found == wanted
            assert report.from_cache
            assert report.forward_backward_passes == report.full_logits_passes == 0
            assert report.steps_taken == uncached.steps_taken
            assert report.losses == uncached.losses
    assert before.changed() == set()
    with cached(model).adapted(PROMPT) as report:
        report.save_adapter(tmp_path / "mine", rank=None if kind == "lora" else 2)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 2e-2},
        {"n_select": 4},
        {"refresh": 1},
        {"refresh": lambda count: 3},
        {"method": "knn"},
        {"max_length": 16},
        {"dtype": "bfloat16"},
        {"order": "interleaved"},
        {"schedule": "linear"},
        {"max_grad_norm": 1.0},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.filterwarnings("ignore:.*multiplies bfloat16 in software")
def test_other_settings_are_another_entry(gpt2, cached, tmp_path, options):
    adapt(cached(gpt2))
    report, found = adapt(cached(gpt2, **options))
    assert not report.from_cache
    assert len(entries(tmp_path)) == 2
    assert found == adapt(cached(gpt2, cache_dir=None, **options))[1]


def test_other_weights_are_another_entry(gpt2, cached, tmp_path):
    finetuner = cached(gpt2)
    adapt(finetuner)
    # Trained further behind the finetuner's back, then changed where no sample looks.
    for number, place in ((2, 0), (3, -1)):
        with torch.no_grad():
            gpt2.transformer.wte.weight.view(-1)[place] += 1
        finetuner = cached(gpt2) if place else finetuner
        assert not adapt(finetuner)[0].from_cache
        assert len(entries(tmp_path)) == number
    gpt2.config.layer_norm_epsilon = 0.1
    adapt(cached(gpt2))
    adapt(cached(with_lora(copy.deepcopy(gpt2))))
    adapt(cached(with_lora(copy.deepcopy(gpt2), alpha=16)))
    assert len(entries(tmp_path)) == 6


def test_a_callers_autocast_is_another_entry(gpt2, cached, tmp_path):
    adapt(cached(gpt2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not adapt(cached(gpt2))[0].from_cache
        # Autocast would go on with its copies of the weights before.
        assert adapt(cached(gpt2))[0].from_cache


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign"])
def test_a_damaged_entry_is_made_again(gpt2, cached, tmp_path, damage):
    wanted = adapt(cached(gpt2))[1]
    [entry] = entries(tmp_path)
    whole = entry.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    damaged = {
        "empty": b"",
        "cut": whole[:-1],
        "flipped": flipped,
        "foreign": b"{}" * 99,
    }
    entry.write_bytes(damaged[damage])
    with pytest.warns(
        UserWarning, match=r"TestTimeFinetuner: .* is damaged, and made again"
    ):
        report, found = adapt(cached(gpt2))
    assert (report.from_cache, found) == (False, wanted)
    assert entry.read_bytes() == whole
    assert adapt(cached(gpt2))[0].from_cache


def test_what_nobody_used_for_longest_goes_first(gpt2, cached, tmp_path):
    adapt(cached(gpt2))
    [first] = entries(tmp_path)
    room = int(2.5 * first.stat().st_size)
    adapt(cached(gpt2, cache_bytes=room), OTHER)
    [second] = set(entries(tmp_path)) - {first}
    folder = first.parent
    names = ("notes.txt", "mine.safetensors", f".{first.name}.mine.partial")
    for name in names:
        (folder / name).write_text("mine")
    remains = folder / f".{first.name}.{'0' * 12}4{'0' * 3}8{'0' * 15}.partial"
    remains.write_text("of a process that was killed")
    for age, entry in enumerate((second, first)):
        os.utime(entry, (1000 - age, 1000 - age))
    assert adapt(cached(gpt2))[0].from_cache  # so the second one is the oldest now
    adapt(cached(gpt2, cache_bytes=room), "red dog")
    assert first.exists()
    assert not second.exists()
    assert not remains.exists()
    assert len(entries(tmp_path)) == 3  # with the user's
    assert all((folder / name).read_text() == "mine" for name in names)


def test_a_cache_too_small_for_one_entry_is_refused(gpt2, cached, tmp_path):
    size = sum(4 * p.numel() for p in gpt2.parameters())
    message = (
        f"TestTimeFinetuner: cache_bytes must be at least {size}, .*, got {size - 1}"
    )
    with pytest.raises(ValueError, match=message):
        cached(gpt2, cache_bytes=size - 1)
    with pytest.raises(TypeError, match="cache_bytes must be an int, got float"):
        cached(gpt2, cache_bytes=1e9)
    # The file's header comes on top.
    with pytest.warns(
        UserWarning, match=rf"is not kept: it has \d+ bytes, cache_bytes is {size}"
    ):
        adapt(cached(gpt2, cache_bytes=size))
    assert entries(tmp_path) == []


def test_what_leaves_steps_out_is_not_kept(gpt2, cached, tmp_path):
    report, _ = adapt(cached(gpt2), seconds=1e-6)
    assert report.steps_left_out == 3
    assert entries(tmp_path) == []
    assert adapt(cached(gpt2), seconds=1e6)[0].steps_left_out == 0
    report, _ = adapt(cached(gpt2), seconds=1e-6)
    assert (report.from_cache, report.steps_left_out) == (True, 0)


def test_an_entry_that_cannot_be_written_is_said_so(gpt2, cached, tmp_path):
    finetuner, wanted = cached(gpt2), adapt(cached(gpt2, cache_dir=None))[1]
    shutil.rmtree(tmp_path / "cache")
    with pytest.warns(UserWarning, match=r"TestTimeFinetuner: .* is not kept: "):
        assert adapt(finetuner)[1] == wanted


def test_without_a_step_nothing_is_kept(gpt2, cached, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not adapt(cached(gpt2, n_select=0, context=1))[0].from_cache
    assert entries(tmp_path) == []
