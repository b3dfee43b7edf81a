"""What settings write behind prompts, and which lines greedy decoding would get.

    python -m benchmarks.studies.written code.json --prompts 16 --output code_written.jsonl

takes the settings of an experiment of ``hullft-ops evaluate``, and for each prompt and setting
writes a line with

* tokens: of the true continuation's tokens, the share of those that are the likeliest, given the
  true text before them;
* lines: of the true continuation's lines, the share of those whose every token is the likeliest,
  given the true text before it;
* next_line: whether the first line of what is written greedily is that of the continuation;
* chrf: chrF of the 64 tokens that are written, against as many of the continuation.

Then it prints the means of each setting and domain.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from sacrebleu import sentence_chrf

from hullft_ops.evaluation.experiment import label, read_experiment
from hullft_ops.evaluation.measuring import Evaluation, load_evaluation
from hullft_ops.evaluation.prompts import Prompt
from hullft_ops.ttft.adaptation import Adaptation
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.reader import Reader

TOKENS = 64
MEASURES = ("tokens", "lines", "next_line", "chrf")

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    experiment = read_experiment(arguments.experiment)
    evaluation = load_evaluation(replace(experiment, limit=arguments.prompts))
    rows = []
    with arguments.output.open("x") as file:
        for prompt in evaluation.prompts:
            for row in rows_of(evaluation, prompt):
                rows.append(row)
                file.write(json.dumps(row) + "\n")
                file.flush()
    print_means(rows)


def rows_of(evaluation: Evaluation, prompt: Prompt) -> Iterator[Row]:
    """A row of each setting; those that differ in n-grams alone share an adaptation."""
    groups: dict[TTFTConfig, list[float]] = defaultdict(list)
    # Nothing at all comes first.
    groups[TTFTConfig(train_on_prompt=0, context=0, ngrams=0)].append(0)
    for config in evaluation.configs.values():
        groups[replace(config, ngrams=1)].append(config.ngrams)
    for config, factors in groups.items():
        finetuner = evaluation.finetuner.with_config(config)
        with finetuner.adapted(prompt.text) as adaptation:
            for ngrams in factors:
                adaptation.mix(ngrams)
                measures = measured(adaptation, finetuner.reader, prompt)
                name = label(replace(config, ngrams=ngrams))
                yield {
                    "prompt": prompt.id,
                    "domain": prompt.domain,
                    "config": name,
                } | measures


def measured(adaptation: Adaptation, reader: Reader, prompt: Prompt) -> Row:
    truth = prompt.continuation or ""
    likeliest = adaptation.score(truth, after=prompt.text).likeliest
    written = adaptation.generate(prompt.text, max_new_tokens=TOKENS, do_sample=False)
    ids = reader.tokens(truth).ids
    beginning = str(reader.tokenizer.decode(ids[:TOKENS]))
    return {
        "tokens": fmean(likeliest),
        "lines": share_of_lines(truth, reader, likeliest),
        "next_line": first_line(written) == first_line(truth),
        "chrf": sentence_chrf(written, [beginning]).score,
        "written": written,
    }


def share_of_lines(text: str, reader: Reader, likeliest: list[bool]) -> float:
    """The share of the lines with text whose every token is the likeliest."""
    tokens = reader.tokens(text)
    offsets = (tokens.offsets or [])[tokens.opening :]
    wrong = {
        text.count("\n", 0, begin)
        for (begin, _), is_likeliest in zip(offsets, likeliest, strict=True)
        if not is_likeliest
    }
    numbers = [number for number, line in enumerate(text.split("\n")) if line.strip()]
    return sum(number not in wrong for number in numbers) / len(numbers)


def first_line(text: str) -> str:
    lines = [line.strip() for line in text.split("\n")]
    return next(filter(None, lines), "")


def print_means(rows: list[Row]) -> None:
    table: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        table[row["config"]].append(row)
    for config, group in table.items():
        means = [f"{name} {fmean(row[name] for row in group):.3f}" for name in MEASURES]
        print(config, *means, sep=" | ")


if __name__ == "__main__":
    main()
