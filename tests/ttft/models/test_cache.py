"""Caches that grow in place, and attention to them without copies."""

import pytest
import torch

from hullft_ops.ttft.models.cache import copied, grouped_attention

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture
def read(grouped_llama):
    """The model's cache of three tokens, and its logits of all six."""
    with torch.no_grad():
        logits = grouped_llama(IDS).logits
        return grouped_llama(IDS[:, :3]).past_key_values, logits


@torch.no_grad()
def test_grouped_attention_behind_a_cache_changes_no_logits(grouped_llama, read):
    cache, logits = read
    with grouped_attention(grouped_llama) as is_grouped:
        behind = grouped_llama(IDS[:, 3:], past_key_values=copied(cache)).logits
        whole = grouped_llama(IDS).logits

    assert is_grouped
    assert grouped_llama.config._attn_implementation == "sdpa"
    torch.testing.assert_close(behind, logits[:, 3:])
    torch.testing.assert_close(whole, logits)


@torch.no_grad()
def test_a_model_without_torchs_attention_keeps_its_own(grouped_llama):
    grouped_llama.set_attn_implementation("eager")
    with grouped_attention(grouped_llama) as is_grouped:
        assert not is_grouped
        assert grouped_llama.config._attn_implementation == "eager"


@torch.no_grad()
def test_copies_of_a_cache_are_cut_and_grow_apart(grouped_llama, read):
    cache, logits = read
    first, second = copied(cache), copied(cache)
    grouped_llama(IDS[:, :2], past_key_values=first)
    first.crop(-2)
    third = copied(first)
    grouped_llama(IDS[:, :2], past_key_values=third)
    for copy in (first, second):
        for position in range(3, 6):
            token = IDS[:, position : position + 1]
            output = grouped_llama(token, past_key_values=copy).logits
            torch.testing.assert_close(output[:, 0], logits[:, position])

    assert cache.get_seq_length() == 3


@torch.no_grad()
def test_beams_are_reordered(grouped_llama, read):
    cache, logits = copied(read[0]), read[1]
    cache.batch_repeat_interleave(2)
    tokens = torch.tensor([[8], [11]])
    grouped_llama(tokens, past_key_values=cache)
    cache.reorder_cache(torch.tensor([0, 0]))
    output = grouped_llama(IDS[:, 4:5].repeat(2, 1), past_key_values=cache).logits

    torch.testing.assert_close(output[:, 0], logits[:, 4].repeat(2, 1))
