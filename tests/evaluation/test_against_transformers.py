"""Perplexities, errors and differences are those of transformers' models and of formulas restated in torch."""

import math
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.evaluation.results import TextResult, summarize
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.evaluation.statistics import paired_difference
from gpt_pretrain.evaluation.text_scores import score_text
from tests.evaluation.test_text_scores import text_of

CONTEXT, EOS = 16, 256


def documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    sizes = torch.randint(1, 60, (24,), generator=generator).tolist()
    return [[*torch.randint(97, 123, (size,), generator=generator).tolist(), EOS] for size in sizes]


def models(folder: Path) -> list[tuple[GPT2LMHeadModel, Scorer]]:
    """Return two models of transformers with random weights, each with this program's scorer of the same weights."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=257, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
        theirs = GPT2LMHeadModel(config).eval()
        theirs.save_pretrained(folder / str(seed))
        found.append((theirs, Scorer(open_weights(str(folder / str(seed))).build(), batch_tokens=64)))
    return found


@torch.no_grad()
def naive_losses(model: GPT2LMHeadModel, document: list[int], stride: int) -> torch.Tensor:
    """Return the loss of each token of a document by the sliding windows that transformers' guide describes."""
    sequence, losses = torch.tensor([EOS, *document]), list[torch.Tensor]()
    end = 1
    while end < len(sequence):
        before, end = end, min(len(sequence), CONTEXT + 1 if end == 1 else end + stride)
        window = sequence[max(0, end - 1 - CONTEXT) : end]
        rows = model(window[None, :-1]).logits[0]
        losses.append(torch.nn.functional.cross_entropy(rows, window[1:], reduction="none")[before - end :])
    return torch.cat(losses)


@pytest.mark.parametrize("stride", [CONTEXT, 5, 1])
def test_losses_errors_and_differences(tmp_path: Path, stride: int) -> None:
    text = documents()
    tokens = text_of([token_id for document in text for token_id in document])
    results, sums = list[TextResult](), list[torch.Tensor]()
    sizes = torch.tensor([len(document) for document in text], dtype=torch.float64)
    n_bytes = sizes - 1
    for theirs, scorer in models(tmp_path):
        nats = torch.stack([naive_losses(theirs, document, stride).double().sum() for document in text])
        found = summarize("a model", score_text(scorer, tokens, stride=stride), stride=stride, context_length=CONTEXT)
        mean = nats.sum() / sizes.sum()
        assert found.nats_per_token.value == pytest.approx(mean.item(), rel=1e-5)
        assert found.perplexity == pytest.approx(mean.exp().item(), rel=1e-4)
        assert found.bits_per_byte.value == pytest.approx((nats.sum() / n_bytes.sum()).item() / math.log(2), rel=1e-5)
        # The delete-one jackknife, another way to the error of a ratio, agrees up to a share of one document in all of them.
        left = (nats.sum() - nats) / (sizes.sum() - sizes)
        jackknife = ((len(text) - 1) * (left - left.mean()).square().mean()).sqrt().item()
        assert found.nats_per_token.error == pytest.approx(jackknife, rel=0.15)
        results.append(found)
        sums.append(nats)
    difference = paired_difference(results[0].clusters, results[1].clusters)
    assert difference is not None
    apart = (sums[0] - sums[1]) / math.log(2)
    mean = apart.sum() / n_bytes.sum()
    residuals = apart - mean * n_bytes
    error = (len(text) / (len(text) - 1) * residuals.square().sum()).sqrt() / n_bytes.sum()
    assert difference.bits_per_byte.value == pytest.approx(mean.item(), rel=1e-4, abs=1e-6)
    assert difference.bits_per_byte.error == pytest.approx(error.item(), rel=1e-3)
    assert difference.limit == pytest.approx(2.07 * error.item(), rel=0.01)  # Student's limit for 23 degrees of freedom
