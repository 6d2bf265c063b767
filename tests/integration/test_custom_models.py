"""The user's own model trains, resumes, generates and is evaluated like the built-in ones, or is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpt_pretrain.checkpoints.custom_model import build_custom_model
from gpt_pretrain.checkpoints.custom_weights import CustomWeights
from gpt_pretrain.checkpoints.export.huggingface import export
from gpt_pretrain.checkpoints.pretrained import load_pretrained, open_weights
from gpt_pretrain.commands.serve import _load, _open_models
from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.sampling import generate
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.custom import CustomModel
from gpt_pretrain.model.roles import parameter_roles
from gpt_pretrain.serving.engine import Engine
from gpt_pretrain.serving.requests import CompletionRequest, ServingLimits
from tests.conftest import TINY_RUN
from tests.helpers.training_runs import checkpoint, machine_going_away, same_weights
from tests.serving.test_engine import Client, alone
from tests.serving.test_page import serve_settings

Train = Callable[..., float]
OWN = "tests.helpers.own_models"
QUICK = ["callbacks=minimal", "logger=none"]
BASE = [*(one for one in TINY_RUN if not one.startswith("model")), "model=custom"]
RESUMED = ["trainer.accelerator=cpu", "model=custom"]


def named(name: str, *arguments: str) -> list[str]:
    return [f"++model._target_={OWN}.{name}", *(f"++model.{one}" for one in arguments)]


def config(vocab_size: int = 257, context_length: int = 32) -> GPTConfig:
    return GPTConfig(vocab_size, context_length, 1, 1, 1, kind="custom")


@pytest.fixture
def train_own(train: Train) -> Train:
    """Train with the tiny run's settings, but without its model."""

    def trained(*overrides: str, base: Sequence[str] = BASE, **arguments: Any) -> float:
        return train(*overrides, base=[*base], **arguments)

    return trained


@pytest.mark.parametrize(
    "words",
    [
        [*named("Recurrent", "dropout=0.2", "context_length=32"), "optimizer=adamw", "ema_decay=0.9"],
        [*named("Encoder"), "optimizer=muon", "scheduler=warmup_linear"],
        [*named("WithLogits", "context_length=16"), "optimizer=custom", "++optimizer._target_=tests.helpers.own_parts.Growing"],
    ],
    ids=["recurrent_adamw_ema", "encoder_muon", "logits_of_an_object_own_optimizer"],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(train_own: Train, tmp_path: Path, words: list[str]) -> None:
    train_own(*words, *QUICK, run_dir=tmp_path / "whole")
    parts = tmp_path / "parts"
    with machine_going_away(at_step=5):
        train_own(*words, *QUICK, "checkpoint.every_n_steps=2", run_dir=parts)
    names = [word for word in words if "_target_" in word or "=custom" in word]  # the arguments are the checkpoint's
    train_own(*names, f"resume='{parts}'", run_dir=parts, base=RESUMED)
    whole, resumed = checkpoint(tmp_path / "whole"), checkpoint(parts)
    assert whole["global_step"] == resumed["global_step"] > 5
    assert same_weights(whole, resumed)
    assert all(torch.equal(value, resumed["ema"][name]) for name, value in whole.get("ema", {}).items())


def test_a_checkpoint_names_the_class_and_builds_nothing(train_own: Train, tmp_path: Path) -> None:
    train_own(*named("Recurrent", "width=8", "context_length=32"), *QUICK, "trainer.max_steps=2")
    run = tmp_path / "run"
    content = checkpoint(run)
    assert content["config"]["custom"]["model"] == {
        "class": f"{OWN}.Recurrent",
        "arguments": {"width": 8, "context_length": 32},
    }
    with pytest.raises(UserError, match=rf"own, {OWN}\.Recurrent.*Name it again: model\._target_={OWN}\.Recurrent"):
        train_own(f"resume='{run}'", "trainer.max_steps=3", base=["trainer.accelerator=cpu"])
    with pytest.raises(UserError, match=r"model\.width was 8, is 9 now"):
        train_own(*named("Recurrent", "width=9"), f"resume='{run}'", "trainer.max_steps=3", base=RESUMED)
    with pytest.raises(UserError, match=rf"model\._target_ was {OWN}\.Recurrent, is {OWN}\.Small now"):
        train_own(*named("Small"), f"resume='{run}'", "trainer.max_steps=3", base=RESUMED)
    with pytest.raises(UserError, match="A checkpoint never decides which code runs"):
        load_pretrained(run)
    model = load_pretrained(run, custom={"_target_": f"{OWN}.Recurrent"})
    assert model(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, 257)


def test_a_changed_class_does_not_fit_its_checkpoint(train_own: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_own(*named("Recurrent"), *QUICK, "trainer.max_steps=2")
    from tests.helpers import own_models

    class Wider(own_models.Recurrent):
        def __init__(self, vocab_size: int) -> None:
            super().__init__(vocab_size, 24)
            self.more = nn.Linear(2, 2)

    monkeypatch.setattr(own_models, "Recurrent", Wider)
    expected = (
        r"the file lacks more\.bias, more\.weight; other shapes have embed\.weight, head\.weight, rnn\.bias_hh_l0 and 3 more"
    )
    run = tmp_path / "run"
    with pytest.raises(UserError, match=expected):
        train_own(*named("Recurrent"), f"resume='{run}'", "trainer.max_steps=3", base=RESUMED)
    with pytest.raises(UserError, match=expected):
        load_pretrained(run, custom={"_target_": f"{OWN}.Recurrent"})


def test_arguments_of_a_stranger_have_to_be_typed(train_own: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_own(*named("Recurrent", "width=8"), *QUICK, "trainer.max_steps=1")
    monkeypatch.setattr("gpt_pretrain.checkpoints.custom_weights.has_signed_settings", lambda content: False)
    with pytest.raises(UserError, match=r"model\.width=8 comes from .*which is not signed with your key"):
        load_pretrained(tmp_path / "run", custom={"_target_": f"{OWN}.Recurrent"})
    assert load_pretrained(tmp_path / "run", custom={"_target_": f"{OWN}.Recurrent", "width": 8}).num_parameters() > 0


def test_a_new_run_starts_from_its_weights(train_own: Train, tmp_path: Path) -> None:
    train_own(*named("Recurrent", "width=8", "context_length=32"), *QUICK, "trainer.max_steps=2", "ema_decay=0.9")
    start = [f"init_from='{tmp_path / 'run'}'", *QUICK, "trainer.max_steps=1", "optimizer=adamw", "optimizer.lr=1e-9"]
    new = tmp_path / "new"
    train_own(*named("Recurrent"), *start, "weights=ema", run_dir=new)
    average, trained = checkpoint(tmp_path / "run")["ema"], checkpoint(new)["state_dict"]
    assert all(torch.allclose(average[name], trained[name], atol=1e-6) for name in average)
    assert checkpoint(new)["config"]["custom"]["model"]["arguments"]["width"] == 8
    with pytest.raises(UserError, match="Name it again"):
        train_own(*start, run_dir=tmp_path / "unnamed", base=TINY_RUN)


def test_weights_of_a_built_in_model_are_refused(train: Train, train_own: Train, tmp_path: Path) -> None:
    train(*QUICK, "trainer.max_steps=1")
    with pytest.raises(UserError, match=r"cannot take the weights of .*: they belong to a built-in model"):
        train_own(*named("Recurrent"), f"init_from='{tmp_path / 'run'}'", run_dir=tmp_path / "new")


WRONG: dict[str, tuple[str, list[str], str]] = {
    "sees_the_future": ("Encoder", ["causal=false"], "sees the tokens that it is to predict.*Add a causal mask"),
    "mixes_windows": ("Encoder", ["first=false"], "mixes the windows of a batch|fails on token ids"),
    "last_position_only": ("LastOnly", [], r"returns \(1, 32, 257\)|returns \(1, 1, 257\).*must return logits for each position"),
    "pair": ("Pair", [], "returns a tuple, but must return logits"),
    "fewer_logits": ("Small", [], "has 100 logits, but the tokenizer has 257 tokens|fails on token ids"),
    "rounded_up": ("Padded", [], r"returns 320 logits for a vocabulary of 257 tokens.*model\.vocab_size=320"),
    "fails": ("Failing", [], "fails on token ids of the shape .*ValueError: no logits today"),
    "extra_state": ("Extra", [], r"something else than dense tensors in its state_dict\(\), as _extra_state"),
    "no_module": ("nothing", [], "returned a NoneType, not a torch.nn.Module"),
    "no_such_argument": (
        "Recurrent",
        ["depth=3"],
        r"cannot be built: TypeError: .*'depth'\. Its arguments are vocab_size, width",
    ),
    "tensor": ("MARK", [], "is a value of type Tensor, not a class"),
    "export": ("Recurrent", [], "export=true is not possible with your own model, for which transformers has no class"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_refused_before_the_run(train_own: Train, tmp_path: Path, case: str) -> None:
    name, arguments, message = WRONG[case]
    more = ["export=true"] if case == "export" else []
    with pytest.raises(UserError, match=message):
        train_own(*named(name, *arguments), *QUICK, *more)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Random", "other logits when it reads the same tokens again.*use nn.Dropout"),
        ("Probabilities", "returns probabilities, but must return logits: leave out its softmax"),
        ("Undefined", "returns logits that are NaN"),
        ("Changing", "changes the token ids that it is given"),
        ("Future", "sees the tokens that it is to predict"),
    ],
)
def test_logits_that_a_training_would_not_notice_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_custom_model({"_target_": f"{OWN}.{name}"}, config())


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("trainer.strategy=fsdp", "whose blocks this program would shard"),
        ("trainer.activation_checkpointing=true", "whose blocks would be recomputed"),
        ("data.respect_documents=true", "which gets token ids only"),
    ],
)
def test_settings_that_need_the_inside_of_a_model_are_refused(train_own: Train, setting: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"{setting} is not possible with your own model, {reason}"):
        train_own(*named("Recurrent"), setting)


def test_a_kind_without_a_class_is_refused(train: Train) -> None:
    with pytest.raises(UserError, match=r"model\.kind=custom: this is your own class.* Add model\._target_="):
        train("model.kind=custom")


def test_trying_a_model_leaves_no_trace() -> None:
    torch.manual_seed(5)
    model = build_custom_model({"_target_": f"{OWN}.Recurrent"}, config())
    after = torch.rand(1)
    torch.manual_seed(5)
    from tests.helpers.own_models import Recurrent

    fresh = Recurrent(257)
    assert torch.equal(after, torch.rand(1)), "random numbers go on as if it had not been tried"
    assert all(torch.equal(value, model.custom.state_dict()[name]) for name, value in fresh.state_dict().items())
    assert model.custom.training and model.custom.drop.training


def test_a_larger_vocabulary_can_be_stated(train_own: Train, tmp_path: Path) -> None:
    train_own(*named("Padded", "vocab_size=320"), *QUICK, "trainer.max_steps=2")
    assert checkpoint(tmp_path / "run")["architecture"]["vocab_size"] == 320
    model = load_pretrained(tmp_path / "run", custom={"_target_": f"{OWN}.Padded"})
    assert model.config.vocab_size == 320


def test_generation_recomputes_the_window() -> None:
    torch.manual_seed(1)
    model = build_custom_model({"_target_": f"{OWN}.Encoder"}, config(context_length=32))
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    found = generate(model, prompt, 40)
    expected = prompt
    model.eval()
    with torch.no_grad():
        for _ in range(40):
            expected = torch.cat([expected, model(expected[:, -32:])[:, -1].argmax(-1)[:, None]], dim=1)
    assert torch.equal(found, expected)
    model.train()
    generate(model, prompt, 2)
    assert model.custom.layer.training, "the modes of its parts are as before"


def test_averages_of_shared_weights_and_buffers_are_loaded(train_own: Train, tmp_path: Path) -> None:
    train_own(*named("Encoder"), *QUICK, "ema_decay=0.5", "checkpoint.every_n_steps=2", "checkpoint.keep=3")
    run, own = tmp_path / "run", {"_target_": f"{OWN}.Encoder"}
    content = checkpoint(run)
    for kind in ("trained", "ema", "average"):
        model = open_weights(run, kind=kind, custom=own).build()
        assert isinstance(model, CustomModel) and model.custom.head.weight is model.custom.tokens.weight
        assert torch.equal(model.custom.numbers, torch.arange(3)), "a buffer of whole numbers"
        expected = {"trained": content["state_dict"], "ema": content["ema"]}.get(kind)
        if expected is not None:
            assert torch.equal(model.custom.head.weight, expected["model.custom.tokens.weight"])


def test_what_a_model_computes_in_inference_mode_can_be_trained_with() -> None:
    model = build_custom_model({"_target_": f"{OWN}.Encoder"}, config())
    model.custom.kept = None
    with torch.inference_mode():
        model(torch.zeros(1, 4, dtype=torch.int64))
    model.loss(torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.int64)).backward()
    assert model.custom.kept is not None


def test_what_a_model_keeps_from_a_validation_can_be_trained_with(train_own: Train, tmp_path: Path) -> None:
    train_own(*named("Encoder"), "callbacks=default", "callbacks.progress_bar=false", "logger=csv", "eval_freq=1")
    assert (tmp_path / "run" / "samples.txt").is_file()
    assert (tmp_path / "run" / "report.html").is_file() or (tmp_path / "run" / "metrics.csv").is_file()


def test_roles_of_a_foreign_module() -> None:
    model = build_custom_model({"_target_": f"{OWN}.Encoder"}, config())
    roles = {name.removeprefix("custom."): role for name, role in parameter_roles(model).items()}
    assert roles["tokens.weight"].name == "head", "the embedding is the head as well"
    assert roles["positions.weight"].name == "embedding"
    assert roles["layer.self_attn.in_proj_weight"].parts == (16, 16, 16)
    assert roles["layer.linear1.weight"].name == "matrices"
    assert roles["layer.norm1.weight"].name == "vectors"
    untied = {
        name: role.name for name, role in parameter_roles(build_custom_model({"_target_": f"{OWN}.Recurrent"}, config())).items()
    }
    assert untied["custom.head.weight"] == "head" and untied["custom.embed.weight"] == "embedding"
    assert untied["custom.rnn.weight_ih_l0"] == "matrices"


def test_a_function_may_build_it(train_own: Train, tmp_path: Path) -> None:
    assert train_own(*named("two_layers"), *QUICK, "trainer.max_steps=2") > 0
    with pytest.raises(UserError, match="A model of your own class cannot be exported"):
        export(open_weights(tmp_path / "run"), tmp_path / "exported")
    assert isinstance(open_weights(tmp_path / "run"), CustomWeights)


def test_evaluate_and_generate_name_the_class_again(train_own: Train, script: Callable[..., Any], tmp_path: Path) -> None:
    train_own(*named("Recurrent", "width=8"), *QUICK, "trainer.max_steps=2")
    run, own = tmp_path / "run", f"model._target_={OWN}.Recurrent"
    done = script("generate.py", f"checkpoint={run}", "prompt=Hello", "sampler.max_new_tokens=3")
    assert done.returncode == 2 and f"Name it again: {own}" in done.stderr
    done = script("generate.py", f"checkpoint={run}", "prompt=Hello", "sampler.max_new_tokens=3", own)
    assert done.returncode == 0 and done.stdout.startswith("Hello")
    results = tmp_path / "results"
    done = script("evaluate.py", f"checkpoint={run}", own, f"hydra.run.dir={results}")
    assert done.returncode == 0, done.stderr
    assert json.loads((results / "results.json").read_text())["models"]


def test_the_server_names_the_class_again_and_continues_as_generate_does(train_own: Train, tmp_path: Path) -> None:
    train_own(*named("Recurrent", "width=8"), *QUICK, "trainer.max_steps=2")
    run, own = str(tmp_path / "run"), {"_target_": f"{OWN}.Recurrent"}
    unnamed = serve_settings(checkpoint=run, device="cpu")
    with pytest.raises(UserError, match=r"Name it again: model\._target_="):
        _load(_open_models(unnamed)["run"], unnamed)
    settings = serve_settings(checkpoint=run, model=own, device="cpu")
    ((name, weights),) = _open_models(settings).items()
    model = _load(weights, settings)
    request = CompletionRequest(name, tuple(b"Hello"), SamplerConfig(6, 1.0), seed=3, logprobs=2, scores_prompt=True)
    engine, client = Engine({name: model}, ServingLimits()), Client()
    engine.submit([request], [client.listen])
    engine.start()
    assert client.text == alone(model, request)
    assert len(client.updates[0].prompt_scores) == 5
    engine.stop()


@pytest.mark.slow
def test_two_ranks_equal_one_with_two_accumulated_batches(script: Callable[..., Any], tmp_path: Path) -> None:
    model = [f"model._target_={OWN}.Unused", "model.context_length=32"]
    base = [*(one for one in BASE if one != "model=custom"), *model, *QUICK, "data.batch_size=4", "trainer.max_epochs=1"]
    many, one = tmp_path / "many", tmp_path / "one"
    done = script("train.py", *base, "trainer.devices=2", f"hydra.run.dir={many}")
    assert done.returncode == 0, done.stderr
    done = script("train.py", *base, "trainer.accumulate_grad_batches=2", f"hydra.run.dir={one}")
    assert done.returncode == 0, done.stderr
    first, second = (checkpoint(run)["state_dict"] for run in (many, one))
    assert all(torch.allclose(value, second[name], atol=1e-5) for name, value in first.items())
