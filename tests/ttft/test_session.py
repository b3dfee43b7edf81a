"""A session reads again only what has changed, and keeps its time."""

from contextlib import closing
from dataclasses import replace

import pytest

from hullft_ops.ttft import Datastore, TestTimeFinetuner, load_model, question_of
from hullft_ops.ttft.session import Session
from hullft_ops.ttft.write import continue_questions
from model_state import unchanged

pytestmark = pytest.mark.filterwarnings("ignore:the model has no tokens to fill in")

LINES = [f"    total_{n} = price_{n} * count_{n % 7}  # of {n}\n" for n in range(80)]
OPTIONS = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture
def finetuner(tmp_path):
    texts = [*LINES, *(line.replace("total", "sum") for line in LINES)]
    sources = ["open.py"] * 80 + ["other.py"] * 80
    store = Datastore.build(texts, None, tmp_path / "store", sources=sources)
    # Rounding depends on how many tokens are read at once.
    settings = {"search": "windows", "context": 2, "train_on_prompt": 0, "dtype": None}
    return TestTimeFinetuner(*load_model(None), store, **settings)


@pytest.fixture
def session(finetuner):
    with closing(Session(finetuner)) as session:
        yield session


@pytest.fixture
def ask(session):
    def ask(line, first=0, **options):
        text, suffix = "".join(LINES[first:line]), "".join(LINES[line + 1 :])
        return session.answer(text + "    total", suffix=suffix, **OPTIONS | options)

    return ask


def read_anew(session, line):
    """What the model writes at a line after the session's passages, read at once."""
    model = session.finetuner.language_model
    question = question_of(model.tokenizer, "".join(LINES[:line]) + "    total")
    prefix = replace(session._prefix, ids=(), cache=None)
    return continue_questions(model, [question], [prefix], **OPTIONS)[0]


def test_a_second_prompt_of_a_file_reads_what_changed(session, ask):
    ask(20)
    first = session.n_read
    text = ask(21)

    assert session.n_read < first / 8
    assert session.n_cached > first - 40
    assert text == read_anew(session, 21)

    # An editor sends the last lines alone, of which one goes with each that comes.
    assert ask(22, first=2) == read_anew(session, 22)
    assert session.n_read < first / 8


def test_passages_stay_until_the_cursor_is_far(session, ask):
    def sources():
        every = session.finetuner.search.store.sources
        passages = session._prefix.passages
        return {every[place] for passage in passages for place in passage.positions}

    ask(20)
    passages = session._prefix.passages

    # The open file is left out after the cursor.
    assert sources() == {"other.py"}

    ask(40)

    assert session._prefix.passages == passages

    ask(41)

    assert session._prefix.passages != passages

    # Another file, which begins alike.
    text = "".join(LINES[:9]) + "\n".join("abcdefghijklmnopqr") + LINES[44]
    session.answer(text, suffix="\n", **OPTIONS)

    assert "open.py" in sources()


def test_the_last_chunks_stand_between_passages_and_prompt(session, ask):
    chunks = [f"# {n}.py\nx = {n}\n" for n in range(7)]
    ask(20)
    count = len(session._prefix.passages)
    ask(21, chunks=chunks)
    first = session.n_read

    assert [each.text for each in session._prefix.passages[count:]] == chunks[2:]

    # An editor that forgets one does not have all read again.
    ask(22, chunks=chunks[3:])

    assert session.n_read < first / 4


def test_in_a_hurry_it_reads_the_nearest_lines_and_the_rest_for_the_next(session, ask):
    ask(20, seconds=1e-9)
    hurried = session.n_read

    assert 0 < hurried <= 16

    session.read_ahead()
    text = ask(20, seconds=1e-9)

    assert session.n_cached > 10 * hurried
    assert text == read_anew(session, 20)


def test_nobody_waits_for_what_is_not_wanted_any_more(session, ask):
    assert ask(20, is_over=lambda: True) == ""
    assert ask(20) == read_anew(session, 20)


def test_weights_stay_changed_until_the_end(finetuner):
    with unchanged(finetuner.model):
        options = replace(finetuner.config, train_on_prompt=1)
        with closing(Session(finetuner.with_config(options))) as session:
            text = session.answer("def area(", **OPTIONS)

        assert text == session.finetuner.generate("def area(", **OPTIONS)
        assert session.n_read > 0

        with closing(Session(finetuner)), pytest.raises(RuntimeError, match="in use"):
            finetuner.generate("def area(")
