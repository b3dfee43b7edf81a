"""Held-out prompts: texts that are scored, and never trained on."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hullft_ops.ttft.evaluation.config import ConfigError
from hullft_ops.ttft.evaluation.corpus import Passage, record_of_line
from hullft_ops.ttft.store.sources import is_unicode, numbered

NO_DOMAIN = "all"


@dataclass(frozen=True)
class Prompt:
    """A text to adapt to and to score, with its domain."""

    text: str
    domain: str = NO_DOMAIN

    @property
    def id(self) -> str:
        """An id that depends only on the text, not on its file or position."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSONL file in order, each text once.

    Raises:
        ConfigError: there is no such file, a line has no string "text", or there are no prompts.
    """
    prompts: dict[str, Prompt] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"prompts {path}: {error.strerror}") from error
    for number, line in numbered(lines):
        try:
            prompt = _prompt(line)
        except ValueError as error:
            raise ConfigError(f"prompts {path}: line {number}: {error}") from error
        prompts.setdefault(prompt.id, prompt)
    if not prompts:
        raise ConfigError(f"prompts {path}: holds no prompt")
    return list(prompts.values())


def choose_prompts(held_out: Sequence[Passage], count: int, seed: int) -> list[Passage]:
    """The first ``count`` by a hash of ``seed`` and text. Documents take turns."""
    ranked = sorted(held_out, key=lambda p: hashlib.sha256(f"{seed}\n{p.text}".encode()).digest())
    taken: Counter[str] = Counter()
    rounds = []
    for position, passage in enumerate(ranked):
        rounds.append((taken[passage.source], position))
        taken[passage.source] += 1
    return [ranked[position] for _, position in sorted(rounds)[:count]]


def ranked_prompts(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """The prompts ordered by a hash of seed and text. Domains take turns."""
    passages = [Passage(prompt.domain, prompt.text) for prompt in prompts]
    ranked = choose_prompts(passages, len(passages), seed)
    return [Prompt(passage.text, passage.source) for passage in ranked]


def count_domains(prompts: Sequence[Prompt]) -> dict[str, int]:
    """How many prompts each domain has, by name."""
    return dict(sorted(Counter(prompt.domain for prompt in prompts).items()))


def _prompt(line: bytes) -> Prompt:
    text, record = record_of_line(line)
    domain = record.get("domain", NO_DOMAIN)
    if not isinstance(domain, str):
        raise ValueError(f'"domain" must be a string, got {json.dumps(domain)}')
    if not is_unicode(domain):
        raise ValueError('"domain" with half a surrogate pair')
    return Prompt(text, domain)
