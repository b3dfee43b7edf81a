"""The next line of code, by RepoCoder's search and by windows of lines: RepoEval's task.

    python -m benchmarks.studies.lines rl diffusers --model qwen.gguf --output rows.jsonl --write 0

draws 600 lines of each repository, a folder, and writes a row for each: of what each search finds,
the similarity of the most similar line, 1 if it has the target itself, and the tokens. The model
writes the first ``--write`` lines itself, in each of ``--ways`` in turn: after ``nothing``, what
``repocoder`` reads or ``windows``, and with ``ngrams``. With ``--suffix-lines`` it sees as many
lines after the target.

A target is a line of code of five tokens at least, after a line with text. The prompt is the file
before it, 1,000 tokens at most. RepoCoder (arXiv:2303.12570, its first iteration) has windows of 20
lines every 10, ranked by the Jaccard similarity of their sets of tokens and the set of the
prompt's last 20 lines, each moved on by 10 lines, within 1,000 tokens. The file itself is found
above the prompt alone.
"""

import argparse
import io
import json
import random
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from scipy import sparse

from hullft_ops.ttft import (
    MemoryStore,
    TestTimeFinetuner,
    TTFTConfig,
    load_model,
    question_of,
)
from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.prefix import Passage
from hullft_ops.ttft.search import Neighbours, retrieved_runs, with_separator
from hullft_ops.ttft.techniques.technique import Prepared, Technique
from hullft_ops.ttft.windows import LineBlocks

SEED = 84
PROMPT_TOKENS = CONTEXT_TOKENS = 1000
WINDOWS = 5
RULE = "# " + 50 * "-"
HIDDEN = (
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)


@dataclass(frozen=True)
class Task:
    """A line to write. ``begin`` is the first line of the prompt, ``line`` the target."""

    file: str
    line: int
    begin: int
    prompt: str
    target: str


class Folder(MemoryStore):
    """A repository's files of Python."""

    def __init__(self, folder: Path) -> None:
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.py"))
        self.files = {
            name: (folder / name).read_text(errors="replace") for name in files
        }
        super().__init__([*self.files.values()])

    def documents(self) -> Any:
        return self.files.items()


class RepoCoder(Technique):
    """RepoCoder's first iteration, before the prompt."""

    n_neighbours = 1
    trains = False

    def __init__(self, folder: Folder, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.lines = {name: text.split("\n") for name, text in folder.files.items()}
        distinct = list({line for lines in self.lines.values() for line in lines})
        encoded = tokenizer([line + "\n" for line in distinct])["input_ids"]
        self.ids = dict(zip(distinct, encoded, strict=True))
        self.spans = [
            (name, max(0, middle - 10), min(len(lines), middle + 10))
            for name, lines in self.lines.items()
            for middle in range(0, len(lines), 10)
        ]
        sets = [self.tokens_of(self.lines[name][a:b]) for name, a, b in self.spans]
        self.sizes = np.array([len(each) for each in sets])
        ends = np.concatenate([[0], np.cumsum(self.sizes)])
        columns = np.array([token for each in sets for token in each])
        ones = np.ones(len(columns), np.float32)
        self.windows = sparse.csr_array((ones, columns, ends)).T.tocsr()
        self.task: Any = None

    def tokens_of(self, lines: list[str]) -> set[int]:
        return {token for line in lines for token in self.ids[line]}

    def retrieved(self, task: Task) -> str:
        """What stands before the prompt, the nearest window last."""
        before = self.lines[task.file][max(0, task.line - 20) : task.line]
        query = [*self.tokens_of(before)]
        query = [token for token in query if token < self.windows.shape[0]]
        shared = self.windows[query].sum(axis=0)
        scores = shared / (self.sizes + len(query) - shared)
        head = f"# Here are some relevant code fragments from other files of the repo:\n{RULE}\n"
        left = CONTEXT_TOKENS - len(self.tokenizer(head)["input_ids"])
        blocks: list[str] = []
        for window in np.argsort(-scores, kind="stable"):
            name, _, end = self.spans[window]
            end = min(end + 10, len(self.lines[name]))
            if name == task.file and end > task.begin:
                continue
            code = [f"# {line}" for line in self.lines[name][max(0, end - 20) : end]]
            where = ["# the below code fragment can be found in:", f"# {name}", RULE]
            block = "\n".join([*where, *code, RULE, ""])
            left -= len(self.tokenizer(block)["input_ids"])
            if left < 0 or len(blocks) == 10:
                break
            blocks.append(block)
        return head + "".join(reversed(blocks)) + "\n"

    def prepare(
        self, neighbours: Neighbours, language_model: LanguageModel
    ) -> Prepared:
        text = self.retrieved(self.task)
        return Prepared(passages=[Passage(text, language_model.passage_ids(text))])


def code_lines(text: str) -> list[int]:
    """The lines of code of five tokens at least, after a line with text."""
    lines = text.split("\n")
    tokens: dict[int, list[Any]] = {}
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type not in HIDDEN:
                is_one = (
                    token.start[0] == token.end[0] and token.type != tokenize.COMMENT
                )
                for line in range(token.start[0] - 1, token.end[0]):
                    tokens.setdefault(line, []).append(token if is_one else None)
    except (SyntaxError, tokenize.TokenError):
        return []
    return [
        line
        for line, inside in sorted(tokens.items())
        if inside[0] is not None
        and inside[0].type != tokenize.STRING
        and len(inside) - inside.count(None) >= 5
        and line >= 10
        and lines[line - 1].strip()
        and not lines[line].lstrip().startswith(("import ", "from "))
    ]


def tasks_of(
    folder: Folder, tokenizer: Any, draw: random.Random, lines: int
) -> list[Task]:
    """Lines of files in random order, again and again until there are enough."""
    files = [*folder.files]
    draw.shuffle(files)
    chosen: dict[tuple[str, int], Task] = {}
    while len(chosen) < lines:
        for name in files:
            choices = code_lines(folder.files[name]) if len(chosen) < lines else []
            if choices:
                place = name, draw.choice(choices)
                chosen.setdefault(place, task_at(folder, tokenizer, *place))
    return [*chosen.values()]


def task_at(folder: Folder, tokenizer: Any, name: str, line: int) -> Task:
    lines = folder.files[name].split("\n")
    begin, left = line, PROMPT_TOKENS
    while (
        begin
        and (left := left - len(tokenizer(lines[begin - 1] + "\n")["input_ids"])) >= 0
    ):
        begin -= 1
    prompt = "".join(f"{each}\n" for each in lines[begin:line])
    return Task(name, line, begin, prompt, lines[line].strip())


def found_by_windows(blocks: LineBlocks, task: Task) -> str:
    nearest = blocks.nearest(task.prompt, WINDOWS, task.file).tolist()
    runs: Any = retrieved_runs(blocks, nearest, following=1)  # type: ignore[arg-type]
    return "".join(with_separator(blocks, run) for run in runs)


def similarity(text: str, target: str) -> float:
    """The edit similarity of the most similar line, without comments' marks."""
    lines = {line.removeprefix("# ").strip() for line in text.split("\n")}
    return max(Levenshtein.normalized_similarity(line, target) for line in lines)


def written(finetuner: TestTimeFinetuner, task: Task, suffix: str) -> tuple[str, float]:
    """The next line with text, and the seconds of this process that it took."""
    start = process_time()
    question = question_of(
        finetuner.tokenizer, task.prompt, source=task.file, suffix=suffix
    )
    with finetuner.adapted(question) as adaptation:
        text = adaptation.generate(
            max_new_tokens=64, do_sample=False, stop_strings=["\n"]
        )
    line = next((line.strip() for line in text.split("\n") if line.strip()), "")
    return line, round(process_time() - start, 2)


def finetuners_of(
    folder: Folder, model: Any, tokenizer: Any, repocoder: RepoCoder
) -> dict[str, TestTimeFinetuner]:
    """The ways to write a line, by name."""
    options: dict[str, dict[str, Any]] = {
        "nothing": {},
        "ngrams": {"ngrams": 1.0},
        "repocoder": {"techniques": (repocoder,)},
        "windows": {"context": WINDOWS},
        "windows_ngrams": {"context": WINDOWS, "ngrams": 1.0},
    }
    off: Any = {"context": 0, "ngrams": 0, "train_on_prompt": 0, "search": "windows"}
    finetuner = TestTimeFinetuner(model, tokenizer, folder, **off)
    return {
        name: finetuner.with_config(TTFTConfig(**{**off, **each}))
        for name, each in options.items()
    }


def rows_of(
    path: Path, model: Any, tokenizer: Any, arguments: argparse.Namespace
) -> Iterator[Any]:
    folder = Folder(path)
    draw = random.Random(SEED)
    repocoder = RepoCoder(folder, tokenizer)
    finetuners = finetuners_of(folder, model, tokenizer, repocoder)
    blocks: Any = finetuners["windows"].search.store  # type: ignore[union-attr]
    tasks = tasks_of(folder, tokenizer, draw, arguments.lines)
    for number, task in enumerate(tasks):
        texts = {
            "repocoder": repocoder.retrieved(task),
            "windows": found_by_windows(blocks, task),
        }
        row: dict[str, Any] = {
            "repository": path.name,
            "file": task.file,
            "line": task.line,
        }
        for name, text in texts.items():
            tokens = len(tokenizer(text)["input_ids"])
            row[name] = [round(similarity(text, task.target), 3), tokens]
        if number < arguments.write:
            repocoder.task = task
            behind = folder.files[task.file].split("\n")[task.line + 1 :]
            suffix = "\n" + "\n".join(behind[: arguments.suffix_lines])
            row["target"] = task.target
            row["written"] = {
                way: written(
                    finetuners[way], task, suffix if arguments.suffix_lines else ""
                )
                for way in arguments.ways
            }
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repositories", nargs="+", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--lines", type=int, default=600)
    parser.add_argument("--write", type=int, default=100)
    parser.add_argument("--ways", nargs="+", default=["repocoder", "windows_ngrams"])
    parser.add_argument("--suffix-lines", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    model, tokenizer = load_model(arguments.model)
    model.to(getattr(torch, arguments.dtype))
    rows = []
    with arguments.output.open("x") as output:
        for path in arguments.repositories:
            for row in rows_of(path, model, tokenizer, arguments):
                output.write(json.dumps(row) + "\n")
                output.flush()
                rows.append(row)
    for name in ("repocoder", "windows"):
        similar, tokens = np.array([row[name] for row in rows]).T
        print(
            f"{name}: {np.mean(similar == 1):.1%} of {len(rows)} lines are found, similarity "
            f"{similar.mean():.1%}, {tokens.mean():.0f} tokens"
        )


if __name__ == "__main__":
    main()
