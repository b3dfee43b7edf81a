"""Retrieved passages before a prompt, and prompts that are refused."""

import warnings

import pytest

from hullft_ops.ttft.scoring import score_text
from hullft_ops.ttft.search import SEPARATOR, whole_runs
from hullft_ops.ttft.store.base import MemoryStore

CONTEXT = 32
PROMPT = "the cat sat on the red mat"
# Each is nearer to the prompt than the one before.
SHORT = [
    "a dog",
    "a cat ran",
    "red cat sat",
    "the cat sat on",
    "the cat sat on the mat",
]


def sizes_of(tokenizer, texts):
    """How many tokens each takes before a prompt."""
    encodings = [tokenizer(text + SEPARATOR)["input_ids"] for text in texts]
    return [len(tokens) for tokens in encodings]


def test_the_nearest_that_fit_stand_before_the_prompt(gpt2, tokenizer, make, store_of):
    store = store_of(SHORT)
    sizes = sizes_of(tokenizer, SHORT[::-1])
    room = CONTEXT - len(tokenizer(PROMPT)["input_ids"])
    fitting = max(k for k in range(6) if sum(sizes[:k]) <= room)

    assert 0 < fitting < 5

    for context in range(7):
        finetuner = make(gpt2, store=store, context=context, n_select=0)
        with (
            warnings.catch_warnings(record=True, action="always") as caught,
            finetuner.adapted(PROMPT) as adaptation,
        ):
            passages = adaptation.passages

        count = min(context, fitting)
        room = f"there is room for {count} of {min(context, 5)} retrieved passages"
        expected = [room] if context > fitting else []

        assert [str(w.message).partition(" before")[0] for w in caught] == expected
        assert [list(each.positions) for each in passages] == [
            [position] for position in range(5 - count, 5)
        ]
        assert [each.text for each in passages] == [
            text + SEPARATOR for text in SHORT[5 - count :]
        ]
        assert [len(each.ids) for each in passages] == sizes[:count][::-1]


class DocumentStore(MemoryStore):
    """Three passages make a document."""

    def following(self, position):
        return position + 1 if position % 3 < 2 else None


@pytest.fixture
def documents(embedder):
    texts = ["a b", "c", "d", "the cat sat", "a cat", "e", "a dog", "f", "g"]
    return DocumentStore(texts, embedder.encode(texts), embedder.name)


def test_passages_are_read_with_those_that_follow(llama, tokenizer, make, documents):
    options = {"store": documents, "n_select": 0, "context": 2}
    # A passage that stands there already is not repeated.
    for following, expected in [(0, [[4], [3]]), (1, [[3, 4]]), (2, [[3, 4, 5]])]:
        finetuner = make(llama, context_following=following, **options)
        with finetuner.adapted("the cat sat") as adaptation:
            assert [each.positions for each in adaptation.passages] == expected


def test_a_prompt_is_embedded_by_the_side_for_prompts(gpt2, make, embedder, store_of):
    class TwoSided(type(embedder)):
        def encode_query(self, texts):
            return self.encode(["a dog" for _ in texts])

    store = store_of(["the cat", "a dog"])
    for side, nearest in ((embedder, 0), (TwoSided(), 1)):
        finetuner = make(gpt2, store=store, embedder=side, n_select=0, context=1)

        assert finetuner.retrieve("the cat").positions == [nearest]


def test_without_steps_nothing_is_selected_or_trained(gpt2, tokenizer, make):
    finetuner = make(gpt2, n_select=0)
    with finetuner.adapted(PROMPT) as adaptation:
        assert adaptation.score(PROMPT, after="") == score_text(gpt2, tokenizer, PROMPT)

    assert adaptation.losses == []


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("", ValueError, "prompt must have a token, got ''"),
        (" \n", ValueError, r"prompt must have text, got ' \\n'"),
        (None, TypeError, "prompt must be a str, got NoneType"),
        ("a \udcff", ValueError, "prompt must be valid Unicode"),
    ],
)
def test_a_bad_prompt_is_refused(gpt2, make, prompt, error, message):
    finetuner = make(gpt2)

    with pytest.raises(error, match=message):
        finetuner.select(prompt)

    with pytest.raises(error, match=message), finetuner.adapted(prompt):
        pytest.fail("the body must not run")


class Documents:
    """Seven passages, of which the fourth ends a document."""

    def following(self, position):
        return position + 1 if position not in (3, 6) else None


@pytest.mark.parametrize(
    ("positions", "runs"),
    [
        ([5], [[5, 6]]),
        ([3], [[3]]),
        ([2, 0], [[0, 1, 2, 3]]),
        ([3, 4, 1], [[1, 2, 3], [4, 5]]),
    ],
)
def test_neighbours_that_follow_one_another_are_one_text(positions, runs):
    assert sorted(whole_runs(Documents(), positions)) == runs
