"""Decoding, evaluation and serving on a GPU give what a CPU gives."""

import numpy as np
import pytest
import torch

from gpt_pretrain.evaluation.packing import ScoreRequest
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.generation import sampling
from gpt_pretrain.generation.decoding import DecodingModel
from gpt_pretrain.generation.prompts import PromptOptions, TextModel, continue_ids
from gpt_pretrain.generation.sampling import generate
from gpt_pretrain.model.build import new_model
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.serving.engine import Engine
from gpt_pretrain.serving.requests import CompletionRequest, ServingLimits
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from tests.conftest import tiny_model
from tests.serving.test_engine import Client, requests

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

GPU = torch.device("cuda")


def model_of(kind: str) -> LanguageModel:
    """Return a model whose logits differ clearly, so that rounding does not choose another token."""
    fields = {"vocab_size": 997, "context_length": 96, "emb_dim": 64, "n_heads": 4, "n_layers": 3, "drop_rate": 0.0}
    if kind == "modern":
        fields |= {"kind": "modern", "init": "modern", "tie_embeddings": False, "n_kv_heads": 2}
    torch.manual_seed(2)
    model = new_model(GPTConfig(**fields)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["gpt2", "modern"])
def test_decoding_with_a_graph_equals_decoding_without(
    kind: str, dtype: torch.dtype, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = []
    real = sampling.capture_step
    monkeypatch.setattr(sampling, "capture_step", lambda *args: captured.append(1) or real(*args))
    decoder = DecodingModel(model_of(kind).to(GPU), dtype=dtype, batch_size=batch_size)
    prompt = torch.randint(997, (batch_size, 7), device=GPU, generator=torch.Generator(GPU).manual_seed(1))
    with_graph = generate(decoder, prompt, 60)
    assert captured
    monkeypatch.setattr(sampling, "GRAPH_MIN_TOKENS", 10**9)
    without = generate(decoder, prompt, 60)
    if dtype == torch.float32:
        assert torch.equal(with_graph, without)
        assert torch.equal(with_graph, generate(decoder, prompt, 60, use_cache=False))
    else:  # another order of sums may choose another token, after which the texts differ
        assert (with_graph == without).float().mean().item() > 0.5


def test_evaluation_equals_that_on_a_cpu() -> None:
    model = model_of("gpt2")
    ids = np.random.default_rng(1).integers(997, size=300)
    texts = [ScoreRequest(ids[start : start + 60], n_scored=40) for start in range(0, 240, 40)]
    cpu = list(Scorer(model).score(texts))
    gpu = list(Scorer(model.to(GPU)).score(texts))
    for one, other in zip(cpu, gpu, strict=True):
        assert np.allclose(one.losses, other.losses, atol=1e-3)


def test_texts_that_are_served_together_are_those_served_alone() -> None:
    model = TextModel(DecodingModel(tiny_model(vocab_size=257, context_length=64, emb_dim=48).to(GPU)), ByteTokenizer())
    engine = Engine({"m": model}, ServingLimits(rows=4, queue=50))
    asked = requests(8)
    clients = [Client() for _ in asked]
    engine.start()
    try:
        for request, client in zip(asked, clients, strict=True):
            engine.submit([request], [client.listen])
        assert [client.text for client in clients] == [alone_on_gpu(model, request) for request in asked]
    finally:
        engine.stop()


def alone_on_gpu(model: TextModel, request: CompletionRequest) -> str:
    """Return the text as generate.py makes it."""
    generator = torch.Generator(GPU).manual_seed(request.seed)
    options = PromptOptions(1, request.seed, request.stop)
    return continue_ids(model, list(request.prompt_ids), request.sampler, options, generator=generator).text
