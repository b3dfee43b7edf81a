"""``hullft-ops adapt`` on a folder of the user's own, and prompts that come from a file."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hullft_ops.cli.app import app
from hullft_ops.ttft.store.embedding import SentenceTransformerEmbedder

PROMPT = "the cat sat on the red mat"
FILES = 300


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["adapt", *map(str, arguments)])


@pytest.fixture
def with_corpus(
    model_directory: Path,
    embedder_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> list[object]:
    """A folder of 300 texts and a binary file, which is also where the command runs."""
    for number in range(FILES):
        (tmp_path / f"{number}.md").write_text(f"the {number}th cat sat on the red mat")
    (tmp_path / "picture").write_bytes(b"\x89PNG\0")
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", model_directory, "--embedder", embedder_directory]
    return [*arguments, "--corpus", ".", "--n-select", 4, "--max-new-tokens", 3]


def test_a_folder_of_ones_own_is_embedded_once(
    with_corpus: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, encoded = SentenceTransformerEmbedder.encode, []
    monkeypatch.setattr(
        SentenceTransformerEmbedder,
        "encode",
        lambda self, texts: encoded.append(list(texts)) or encode(self, texts),
    )
    first = invoke(*with_corpus, "--prompt", PROMPT)
    assert first.exit_code == 0, first.output
    (folder,) = Path("hullft_datastores").iterdir()
    assert f"datastore of .: {folder}" in first.stderr
    assert f"{FILES} passages, {FILES} of them embedded now" in first.stderr
    assert sum(map(len, encoded)) == FILES + 1
    encoded.clear()
    again = invoke(*with_corpus, "--prompt", PROMPT, "--no-generate")
    assert f". has not changed: {FILES} passages in {folder}" in again.stderr
    assert encoded == [[PROMPT]]
    shown = [line for line in again.stdout.splitlines() if "seconds: " not in line]
    assert (
        shown
        == [line for line in first.stdout.splitlines() if "seconds: " not in line][:-1]
    )


def test_a_prompt_from_a_file_or_stdin(with_corpus: list[object]) -> None:
    Path("prompt").write_bytes(PROMPT.encode("utf-8-sig") + b"\r\n")
    own = [*with_corpus, "--no-generate"]
    results = [
        invoke(*own, "--prompt", PROMPT, "--corpus", "11.md"),
        invoke(*own, "--prompt-file", "prompt", "--corpus", "11.md"),
        CliRunner().invoke(
            app, ["adapt", *map(str, own), "--prompt-file", "-"], input=f"{PROMPT}\n"
        ),
    ]
    found = [
        re.findall(r"bits per byte of the prompt: (\S+)", r.stdout) for r in results
    ]
    assert found[0] == found[1] == found[2] != []
    Path("prompt").write_bytes(b"\xff")
    for arguments, message in (
        ([], "give one of --prompt and --prompt-file"),
        (
            ["--prompt", "a", "--prompt-file", "prompt"],
            "give one of --prompt and --prompt-file",
        ),
        (["--prompt-file", "prompt"], "prompt file prompt: not UTF-8"),
        (["--prompt-file", "nowhere"], "nowhere"),
        (["--prompt", "a", "--store", "s"], "give one of --store and --corpus"),
        (["--prompt", "a", "--corpus", "picture"], "picture: must be .jsonl"),
    ):
        result = invoke(*with_corpus, *arguments)
        assert result.exit_code == 2, result.output
        assert message in result.stderr.splitlines()[-1]
