"""A technique of a user's own, which is an object in one file, works wherever the others do."""

from dataclasses import dataclass, replace

import pytest
import torch

from hullft_ops.evaluation.experiment import Experiment
from hullft_ops.evaluation.measuring import Evaluation, measure_tasks, missing
from hullft_ops.evaluation.prompts import HeldOut
from hullft_ops.evaluation.report import cells_of
from hullft_ops.evaluation.statistics import Measurements
from hullft_ops.ttft import Draft, Passage, Prepared, Technique, TTFTConfig
from hullft_ops.ttft.models.weights import trained_parameters
from hullft_ops.ttft.scoring import score_text

PROMPT = "the cat sat"
OPTIONS = {"max_new_tokens": 3, "do_sample": False}


@dataclass(frozen=True)
class Favourite:
    """A mixture that prefers a token, whatever the text."""

    token: int

    def mixed(self, question, written, prediction):
        logits = prediction.logits.clone()
        logits[self.token] += 100
        return logits

    def draft(self, question, written, length):
        return Draft()

    def while_writing(self):
        return self


class Everything(Technique):
    """It changes weights, has a passage before the prompt, and changes predictions."""

    def __init__(self, token):
        self.token = token
        self.n_neighbours = 2
        self.settings = {"favourite": token}

    def prepare(self, neighbours, language_model):
        assert len(neighbours.positions) >= 2

        def halve(training):
            for parameter in training.trainable.parameters:
                parameter.data.mul_(0.5)

        ids = language_model.passage_ids(neighbours.question.text)
        return Prepared(
            change_weights=halve,
            passages=[Passage(neighbours.question.text, ids)],
            mixture=Favourite(self.token),
        )


@pytest.fixture
def finetuner(llama, make):
    return make(llama, n_select=0, techniques=(Everything(40),))


def test_it_changes_weights_reads_and_changes_predictions(finetuner, llama, tokenizer):
    layers = trained_parameters(llama).values()
    before = [parameter.clone() for parameter in layers]
    with finetuner.adapted(PROMPT) as adaptation:
        for old, new in zip(before, layers, strict=True):
            assert torch.equal(new, old / 2)

        assert [passage.text for passage in adaptation.passages] == [PROMPT]
        assert adaptation.score(PROMPT, after="") != score_text(
            llama, tokenizer, PROMPT
        )

        written = adaptation.generate(PROMPT, **OPTIONS)

    assert written == tokenizer.decode([40] * 3)

    for old, new in zip(before, layers, strict=True):
        assert torch.equal(new, old)

    assert finetuner.generate([PROMPT, "a dog"], **OPTIONS) == [written] * 2


def test_it_is_evaluated_and_reported_beside_others(finetuner):
    grid = {"n_select": [0, 3], "train_on_prompt": 0, "context": 0, "ngrams": 0}
    grid |= {"techniques": [(Everything(40),), (Everything(41),)]}
    configs = Experiment(settings=[grid]).configs()

    assert len(configs) == 4

    evaluation = Evaluation(
        run="r",
        prompts=[HeldOut(PROMPT), HeldOut("a dog ran")],
        notes=[],
        metrics=["prompt"],
        finetuners={
            str(config.settings()): finetuner.with_config(replace(config, dtype=None))
            for config in configs
        },
    )
    rows = list(measure_tasks(evaluation, missing(evaluation, {})))
    measured = Measurements.of(rows)
    orders = {row.settings.get("techniques") for row in rows}

    assert orders == {None, "Everything,PassageSteps"}

    names = [cells["settings"].split() for cells in cells_of(measured)[1:]]

    assert sorted(name[:2] for name in names if "hullft" in name) == [
        ["favourite=40", "hullft"],
        ["favourite=41", "hullft"],
    ]
    assert sorted(name for name in names if "hullft" not in name) == [
        ["favourite=40"],
        ["favourite=41"],
    ]


def test_what_is_no_technique_is_refused():
    with pytest.raises(ValueError, match="TTFTConfig: techniques"):
        TTFTConfig(techniques=("reading",))
