"""Hidden states beside logits, in every way of writing and in scoring."""

from threading import Thread

import pytest
import torch

from hullft_ops.ttft import Draft, Prepared, Technique
from hullft_ops.ttft.models.hidden import seen_hidden_states

PROMPT = "the cat sat on the red mat"
OPTIONS = {"max_new_tokens": 6, "do_sample": False}


class Watcher(Technique):
    """As a mixture, it compares hidden states with logits and changes nothing."""

    trains = False

    def __init__(self, head):
        self.head = head
        self.seen = []

    def prepare(self, neighbours, language_model):
        return Prepared(mixture=self)

    def mixed(self, question, written, prediction):
        product = self.head(prediction.hidden)
        torch.testing.assert_close(
            product.log_softmax(dim=-1), prediction.logits.log_softmax(dim=-1)
        )
        self.seen.append(len(written))
        return prediction.logits

    def draft(self, question, written, length):
        # Wrong, mostly.
        return Draft([40, 41], rate=0.9)

    def while_writing(self):
        return self


@pytest.fixture
def watcher(model):
    """It has a head of its own, which nobody sees."""
    head = torch.nn.Linear(16, 320, bias=False)
    head.weight = model.get_output_embeddings().weight
    return Watcher(head)


@pytest.fixture(params=[0, 2], ids=["alone", "behind passages"])
def finetuner(model, make, store_of, watcher, request):
    options = {"context": request.param, "techniques": (watcher,)}
    return make(model, store=store_of(["a dog", "on"]), n_select=0, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True},
        {"num_beams": 3},
        {"num_beams": 2, "do_sample": True},
        {"use_cache": False},
        {"token_healing": False},
    ],
    ids=str,
)
def test_every_way_of_writing_has_them(finetuner, watcher, options):
    with finetuner.adapted(PROMPT) as adaptation:
        adaptation.generate(PROMPT, **OPTIONS | options)

    assert max(watcher.seen) >= 5

    watcher.seen.clear()
    finetuner.generate([PROMPT, "a dog", "he ran to"], **OPTIONS | options)

    assert len(watcher.seen) >= 18


def test_scoring_has_them_in_every_window(finetuner, watcher, tokenizer):
    text = " and ran to the park" * 8
    with finetuner.adapted(PROMPT) as adaptation:
        adaptation.score(text, after=PROMPT)

    assert len(watcher.seen) == len(tokenizer(text)["input_ids"]) > 32


def test_where_a_token_takes_several_passes_there_are_none(llama, make):
    class Needless(Watcher):
        def mixed(self, question, written, prediction):
            assert prediction.hidden is None
            return prediction.logits

    finetuner = make(llama, n_select=0, techniques=(Needless(None),))

    assert finetuner.generate(PROMPT, guidance_scale=1.5, **OPTIONS)
    assert finetuner.generate(PROMPT, prompt_lookup_num_tokens=2, **OPTIONS)


@torch.no_grad()
def test_a_thread_sees_its_own_passes_and_nothing_stays(llama):
    ids = torch.tensor([[5, 6, 7]])
    hooks = llama.get_output_embeddings()._forward_pre_hooks
    with seen_hidden_states(llama, is_needed=True) as states:
        thread = Thread(target=llama, args=(ids,))
        thread.start()
        thread.join()

        assert states.pop() is None

        llama(ids)

        assert states.pop(2).shape == (1, 2, 16)
        assert states.pop() is None

    assert not hooks

    with seen_hidden_states(llama, is_needed=False):
        assert not hooks
