"""Anybody's vocabulary is used with its weights, and kept with what was made with it."""

from __future__ import annotations

import logging
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from gpt_pretrain.checkpoints.export.huggingface import export
from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.config.checkpoint_settings import admit_settings
from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import missing_ids
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.conftest import without
from tests.helpers.hub_server import Hub
from tests.helpers.vocabularies import PROBES, TEXT

Script = Callable[..., "subprocess.CompletedProcess[str]"]

TINY = [
    *("model=tiny", "model.emb_dim=16", "model.n_layers=1", "model.n_heads=2", "model.context_length=16", "data.batch_size=4"),
    *("trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_steps=2", "callbacks=minimal", "logger=csv"),
]


def save_model(folder: Path, vocab_size: int, *, favorite: int | None = None, unused_from: int | None = None) -> Path:
    """Save a GPT-2 of transformers, which always prefers one token, or whose logits are lowest for all used ones."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocab_size, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.transformer.wte.weight[:] = -1.0 + 0.01 * torch.randn(vocab_size, 16)
        if favorite is not None:
            model.transformer.wte.weight[favorite] = 1.0
        if unused_from is not None:
            model.transformer.wte.weight[unused_from:] = 0.0
    model.save_pretrained(folder)
    return folder


def copy_vocabulary(source: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.name != "config.json":
            shutil.copy(file, target)
    return target


# With weights


def test_weights_bring_their_own_vocabulary(tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    folder = copy_vocabulary(vocabularies["byte_level"], save_model(tmp_path / "model", 400))
    tokenizer = open_weights(folder).build_tokenizer()
    assert tokenizer.name.startswith("model@")
    assert tokenizer.encode("Der Sinn") == build_tokenizer(str(vocabularies["byte_level"])).encode("Der Sinn")


def test_added_tokens_are_read_and_shown(script: Script, tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    copy_vocabulary(vocabularies["gpt2_files"], save_model(tmp_path / "model", 403, favorite=401))
    done = script("generate.py", "pretrained=model", "prompt=<|user|>Hi", "sampler.max_new_tokens=3")
    assert (done.returncode, done.stdout) == (0, "<|user|>Hi<|user|><|user|><|user|>\n")


@pytest.mark.parametrize("temperature", [0, 1])
def test_rows_without_a_token_are_never_generated(
    script: Script, tmp_path: Path, vocabularies: dict[str, Path], temperature: int
) -> None:
    copy_vocabulary(vocabularies["byte_level"], save_model(tmp_path / "model", 512, unused_from=400))
    more = ("sampler.max_new_tokens=8", f"sampler.temperature={temperature}", "sampler.top_k=null")
    done = script("generate.py", "pretrained=model", "prompt=Hi", *more)
    assert done.returncode == 0
    assert len(done.stdout.strip()) > len("Hi")
    done = script("train.py", "init_from=model", *TINY[5:], "model.context_length=16", "callbacks=default", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "run" / "samples.txt").read_text(encoding="utf-8").split("Every effort moves you")[1].strip()) > 20


def test_unused_ids_within_a_vocabulary_are_rows_without_a_token() -> None:
    tokenizer = build_tokenizer("byte")
    assert missing_ids(tokenizer, 260) == [257, 258, 259]


def test_any_number_of_padded_rows_is_loaded(tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    bare = save_model(tmp_path / "bare", 3000)
    with pytest.raises(UserError, match=r"does not name a tokenizer, and no known tokenizer has 3,000 tokens"):
        open_weights(bare).build_tokenizer()
    typed = open_weights(bare).build_tokenizer(str(vocabularies["byte_level"]))
    assert typed.vocab_size == 400
    with pytest.raises(UserError, match=r"has a vocabulary of 3,000 tokens, but the tokenizer gpt2 has 50,257"):
        open_weights(bare).build_tokenizer("gpt2")


def test_a_size_alone_is_a_guess_that_is_said_and_not_exported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_model(tmp_path / "german", 50265)
    weights = open_weights(folder)
    assert weights.build_tokenizer().name == "gpt2"
    assert "does not name a tokenizer. gpt2 is used, because the vocabulary has 50,265 tokens" in caplog.text
    export(weights, tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert "does not name a tokenizer, so the export has none" in caplog.text


def test_training_goes_on_with_the_vocabulary_of_the_weights(
    script: Script, tmp_path: Path, vocabularies: dict[str, Path]
) -> None:
    copy_vocabulary(vocabularies["byte_level"], save_model(tmp_path / "model", 400))
    start = ["init_from=model", *TINY[5:], "model.context_length=16"]
    done = script("train.py", *start, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "vocabulary 400 (model@" in done.stdout + done.stderr
    shutil.rmtree(tmp_path / "model")
    done = script("generate.py", "checkpoint=run", "prompt=Der Sinn", "sampler.max_new_tokens=4")
    assert done.returncode == 0, done.stderr
    done = script("train.py", "resume=run", "trainer.max_steps=3")
    assert done.returncode == 0, done.stderr


def test_another_vocabulary_than_that_of_the_weights_is_refused(
    script: Script, tmp_path: Path, vocabularies: dict[str, Path]
) -> None:
    copy_vocabulary(vocabularies["byte_level"], save_model(tmp_path / "model", 400))
    done = script("train.py", "init_from=model", *TINY[5:], "model.context_length=16", "tokenizer=byte")
    assert done.returncode == 2
    assert "has tokenizer=model@" in done.stderr
    assert "which your overrides contradict. Remove those overrides." in done.stderr
    assert "errors:" not in done.stderr


def test_a_typed_vocabulary_that_is_not_the_weights_own_is_said(
    tmp_path: Path, vocabularies: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_vocabulary(vocabularies["byte_level"], save_model(tmp_path / "model", 403))
    open_weights(folder).build_tokenizer(str(vocabularies["byte_level"] / "tokenizer.json"))
    assert not caplog.records
    assert open_weights(folder).build_tokenizer(str(vocabularies["gpt2_files"])).name.startswith("gpt2_files@")
    assert "brings the tokenizer model@" in caplog.text and "but tokenizer= names gpt2_files@" in caplog.text
    caplog.clear()
    (folder / "tokenizer.json").write_text("{}")
    open_weights(folder).build_tokenizer("byte")
    assert not caplog.records


def test_another_size_than_that_of_the_weights_is_the_only_error(
    script: Script, tmp_path: Path, vocabularies: dict[str, Path]
) -> None:
    copy_vocabulary(vocabularies["byte_level"], save_model(tmp_path / "model", 400))
    done = script("train.py", "init_from=model", *without(TINY, "model.emb_dim"), "model.emb_dim=64")
    assert done.returncode == 2
    assert done.stderr.startswith("error: model has model.emb_dim=16"), done.stderr


# From the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of this test, and an empty cache."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    changes = {"HF_HUB_OFFLINE": False, "ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
    for name, value in (changes | {"HUGGINGFACE_CO_URL_TEMPLATE": template}).items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", ["byte_level", "gpt2_files", "word_pieces"])
def test_the_vocabulary_of_a_hub_s_model_is_fetched_with_it(
    hub: Hub, tmp_path: Path, vocabularies: dict[str, Path], kind: str
) -> None:
    folder = copy_vocabulary(vocabularies[kind], save_model(tmp_path / "model", 403))
    hub.files = {f"someone/german-gpt2/{file.name}": file.read_bytes() for file in folder.iterdir()}
    ours = build_tokenizer(str(vocabularies[kind]))
    tokenizer = open_weights("someone/german-gpt2").build_tokenizer()
    assert tokenizer.name == f"german-gpt2@{ours.name.partition('@')[2]}"
    assert tokenizer.encode(PROBES[0]) == ours.encode(PROBES[0])
    assert build_tokenizer("someone/german-gpt2").name == tokenizer.name


def test_a_hub_s_model_works_without_a_network_once_it_was_fetched(
    hub: Hub, tmp_path: Path, vocabularies: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_vocabulary(vocabularies["gpt2_files"], save_model(tmp_path / "model", 403))
    hub.files = {f"someone/model/{file.name}": file.read_bytes() for file in folder.iterdir()}
    name = open_weights("someone/model").build_tokenizer().name
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert open_weights("someone/model").build_tokenizer().name == name


def test_gpt2_s_size_on_the_hub_is_no_proof_of_gpt2_s_vocabulary(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_model(tmp_path / "model", 50257)
    hub.files = {f"someone/model/{file.name}": file.read_bytes() for file in folder.iterdir()}
    assert open_weights("someone/model").build_tokenizer().name == "gpt2"
    assert "someone/model does not name a tokenizer" in caplog.text
    caplog.clear()
    hub.files = {f"openai-community/gpt2/{file.name}": file.read_bytes() for file in folder.iterdir()}
    assert open_weights("openai-community/gpt2").build_tokenizer().name == "gpt2"
    assert caplog.text == ""


# Kept with what was made with it


def test_a_run_needs_nothing_but_itself(script: Script, tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    shutil.copytree(vocabularies["byte_level"], tmp_path / "mine")
    done = script("train.py", *TINY, "tokenizer=mine", "hydra.run.dir=run", "export=true")
    assert done.returncode == 0, done.stderr
    ids = build_tokenizer(str(tmp_path / "mine")).encode(PROBES[0])
    shutil.rmtree(tmp_path / "mine")
    for folder in (tmp_path / "run", tmp_path / "run" / "huggingface"):
        assert AutoTokenizer.from_pretrained(folder).encode(PROBES[0]) == ids
    shown = [
        script("generate.py", source, "prompt=Der Sinn", "sampler.max_new_tokens=6", "precision=32-true", "device=cpu").stdout
        for source in ("checkpoint=run", "pretrained=run/huggingface")
    ]
    assert shown[0].startswith("Der Sinn")
    assert shown[0] == shown[1]
    done = script("train.py", "resume=run", "trainer.max_steps=3")
    assert done.returncode == 0, done.stderr
    done = script("train.py", "resume=run", "trainer.max_steps=4", "tokenizer=byte")
    assert done.returncode == 2
    assert "tokenizer.name was mine@" in done.stderr


def test_a_resumed_run_takes_the_same_vocabulary_from_anywhere(
    script: Script, tmp_path: Path, vocabularies: dict[str, Path]
) -> None:
    shutil.copytree(vocabularies["byte_level"], tmp_path / "mine")
    assert script("train.py", *TINY, "tokenizer=mine", "hydra.run.dir=run").returncode == 0
    (tmp_path / "mine").rename(tmp_path / "moved")
    done = script("train.py", "resume=run", "trainer.max_steps=3", "tokenizer=moved/tokenizer.json")
    assert done.returncode == 0, done.stderr


def test_a_corpus_holds_its_vocabulary(script: Script, tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    shutil.copytree(vocabularies["byte_level"], tmp_path / "mine")
    (tmp_path / "text.txt").write_text("".join(TEXT * 5), encoding="utf-8")
    prepare = ("-m", "gpt_pretrain", "prepare", "text.txt", "out=corpus", "workers=1", "val_fraction=0", "--report")
    done = script(*prepare, "tokenizer=mine")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "mine")
    assert build_tokenizer(str(tmp_path / "corpus")).encode(PROBES[0]) == build_tokenizer(str(vocabularies["byte_level"])).encode(
        PROBES[0]
    )
    done = script("train.py", *TINY, "data=shards", "data.path=corpus", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "vocabulary 400 (mine@" in done.stdout + done.stderr
    (tmp_path / "corpus" / "tokenizer.json").unlink()
    done = script("train.py", *TINY, "data=shards", "data.path=corpus", "hydra.run.dir=run2")
    assert done.returncode == 2
    assert "but does not contain it" in done.stderr


def test_a_stranger_s_settings_name_no_place_of_a_tokenizer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for name, is_taken in {"gpt2": True, "mine@0123456789ab": True, "/etc": False, "someone/model": False, "../x": False}.items():
        for own in (False, True):
            admitted = admit_settings(
                {"tokenizer": {"name": name}}, {}, is_typed=lambda _: False, own=own, origin="x.ckpt", folder=None
            )
            assert (admitted.settings == {"tokenizer": {"name": name}}) is is_taken, name
            assert bool(admitted.problems) is not is_taken
