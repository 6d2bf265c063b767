"""Texts that are decoded together are those that each request gets alone, and that generate.py makes."""

import threading
import time

import pytest
import torch

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.decoding import DecodingModel
from gpt_pretrain.generation.prompts import PromptOptions, TextModel, continue_ids
from gpt_pretrain.model.modern import ModernModel
from gpt_pretrain.serving.compute_thread import ComputeThread
from gpt_pretrain.serving.engine import Engine
from gpt_pretrain.serving.requests import OUT_OF_TIME, STOPPED, CompletionRequest, QueueFullError, ServingLimits, Update
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from tests.conftest import tiny_model

SAMPLED = SamplerConfig(30, 1.2, top_k=60, top_p=0.95, min_p=0.01, repetition_penalty=1.1)


class Client:
    """Collects the updates of a request."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.done = threading.Event()

    def listen(self, update: Update) -> None:
        self.updates.append(update)
        if update.finish_reason or update.error:
            self.done.set()

    @property
    def text(self) -> str:
        assert self.done.wait(100)
        assert self.updates[-1].error is None, self.updates[-1].error
        return "".join(update.text for update in self.updates)


def text_model(kind: str = "gpt2", dtype: torch.dtype = torch.float32) -> TextModel:
    model = tiny_model(vocab_size=257, context_length=64, emb_dim=48)
    if kind == "modern":
        from dataclasses import replace

        config = replace(model.config, kind="modern", init="modern", n_kv_heads=2, tie_embeddings=False)
        torch.manual_seed(4)
        model = ModernModel(config)  # type: ignore[assignment]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
        model.eval()
    return TextModel(DecodingModel(model, dtype=dtype), ByteTokenizer())


def requests(count: int) -> list[CompletionRequest]:
    """Return requests of different lengths, greedy and sampled ones."""
    return [
        CompletionRequest(
            "m",
            tuple(b"Every effort moves you, step by step"[: 1 + 3 * number % 30]),
            SamplerConfig(5 + 4 * number % 30) if number % 2 else SAMPLED,
            seed=number,
        )
        for number in range(count)
    ]


def alone(model: TextModel, request: CompletionRequest) -> str:
    """Return the text as generate.py makes it."""
    generator = torch.Generator().manual_seed(request.seed)
    options = PromptOptions(1, request.seed, request.stop)
    return continue_ids(model, list(request.prompt_ids), request.sampler, options, generator=generator).text


@pytest.mark.parametrize("kind", ["gpt2", "modern"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_texts_are_the_same_alone_and_among_others(kind: str, dtype: torch.dtype) -> None:
    model = text_model(kind, dtype)
    engine = Engine({"m": model}, ServingLimits(rows=7, queue=50))
    wanted = requests(20)
    clients = [Client() for _ in wanted]
    engine.start()
    for request, client in zip(wanted, clients, strict=True):
        engine.submit([request], [client.listen])
        time.sleep(0.003)  # So that they join at different steps.
    texts = [client.text for client in clients]
    engine.stop()
    assert texts == [alone(model, request) for request in wanted]
    assert len(set(texts)) > 15
    assert engine.counts["finished"] == 20


def test_texts_of_one_prompt_share_its_computation_and_differ_by_their_seeds() -> None:
    model = text_model()
    engine = Engine({"m": model}, ServingLimits(rows=4, queue=4))
    wanted = [CompletionRequest("m", tuple(b"Every effort"), SAMPLED, seed=seed, logprobs=2) for seed in range(6)]
    clients = [Client() for _ in wanted]
    engine.submit(wanted, [client.listen for client in clients])
    engine.start()
    texts = [client.text for client in clients]
    engine.stop()
    assert engine.counts["prompt_tokens"] == len(b"Every effort")
    assert texts == [alone(model, request) for request in wanted]
    for client in clients:
        scores = [score for update in client.updates for score in update.scores]
        assert len(scores) == client.updates[-1].n_tokens
        assert all(len(score.likely_ids) == 2 for score in scores)


def test_the_scores_of_a_prompt_are_the_models() -> None:
    model = text_model()
    engine = Engine({"m": model}, ServingLimits())
    client = Client()
    ids = tuple(b"Every effort moves")
    engine.submit([CompletionRequest("m", ids, SamplerConfig(1), 1, logprobs=3, scores_prompt=True)], [client.listen])
    engine.start()
    assert client.text is not None
    engine.stop()
    scores = client.updates[0].prompt_scores
    with torch.no_grad():
        expected = tiny_model(vocab_size=257, context_length=64, emb_dim=48)(torch.tensor([ids]))[0].log_softmax(-1)
    assert [score.token_id for score in scores] == list(ids)
    assert scores[0].logprob is None
    own = torch.tensor([score.logprob for score in scores[1:]])
    torch.testing.assert_close(own, expected[torch.arange(len(ids) - 1), list(ids[1:])], rtol=1e-4, atol=1e-4)


def test_one_thread_loads_models_and_decodes() -> None:
    thread, threads = ComputeThread(), []
    loading = thread.submit(threading.get_ident).result()
    engine = Engine({"m": text_model()}, ServingLimits(), thread=thread)
    done = threading.Event()

    def listen(update: Update) -> None:
        threads.append(threading.get_ident())
        done.set()

    engine.submit([CompletionRequest("m", (65,), SamplerConfig(1), 1)], [listen])
    engine.start()
    assert done.wait(100)
    engine.stop()
    assert set(threads) == {loading} and loading != threading.get_ident()


def test_errors_of_the_thread_that_computes_reach_the_caller() -> None:
    def fail() -> None:
        raise UserError("no such model")

    thread = ComputeThread()
    with pytest.raises(UserError, match="no such model"):
        thread.submit(fail).result()
    assert thread.submit(lambda: 1).result() == 1


def test_a_full_queue_refuses_and_a_cancelled_text_frees_its_row() -> None:
    engine = Engine({"m": text_model()}, ServingLimits(rows=1, queue=1))
    long = CompletionRequest("m", (65,), SamplerConfig(60, 1.0), 1)
    first, second = Client(), Client()
    (job,) = engine.submit([long], [first.listen])
    engine.submit([long], [second.listen])
    with pytest.raises(QueueFullError):
        engine.submit([long], [Client().listen])
    job.cancel()
    engine.start()
    assert second.text
    engine.stop()
    assert first.updates == []
    assert (engine.counts["cancelled"], engine.counts["finished"], engine.counts["rejected"]) == (1, 1, 1)


def test_a_text_that_takes_too_long_and_one_of_an_ended_server_get_an_error() -> None:
    late, left = Client(), Client()
    engine = Engine({"m": text_model()}, ServingLimits(seconds=-1))
    engine.submit([CompletionRequest("m", (65,), SamplerConfig(9), 1)], [late.listen])
    engine.start()
    assert late.done.wait(100)
    engine.stop()
    assert late.updates[-1].error == OUT_OF_TIME
    stopped = Engine({"m": text_model()}, ServingLimits())
    stopped.submit([CompletionRequest("m", (65,), SamplerConfig(9), 1)], [left.listen])
    stopped._stopping = True
    stopped.start()
    stopped.stop()
    assert left.updates[-1].error == STOPPED


def test_a_failure_of_one_text_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = text_model()
    engine = Engine({"m": model}, ServingLimits())
    bad, good = Client(), Client()
    engine.submit([CompletionRequest("m", (65, 2**70), SamplerConfig(9), 1)], [bad.listen])
    engine.submit([CompletionRequest("m", (65,), SamplerConfig(9), 1)], [good.listen])
    engine.start()
    assert good.text
    engine.stop()
    assert bad.updates[-1].error == "The server could not continue this text."
