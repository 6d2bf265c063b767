"""Exports as Hugging Face folders, opened by transformers itself."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from gpt_pretrain.checkpoints.checkpoint_file import write_checkpoint
from gpt_pretrain.checkpoints.export import export_folder, huggingface
from gpt_pretrain.checkpoints.export.huggingface import export
from gpt_pretrain.checkpoints.export.tokenizer_files import write_tokenizer
from gpt_pretrain.checkpoints.formats import layouts
from gpt_pretrain.checkpoints.pretrained import load_pretrained, open_weights
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.tiktoken_bpe import TiktokenTokenizer
from tests.conftest import ROOT, tiny_model
from tests.helpers.fork_server import ForkServer
from tests.helpers.other_models import hugging_face

Train = Callable[..., float]
TEXT = "Every effort moves you: it's 3.14, naïve 東京 🙂\n\n  <|endoftext|>And on."


def checkpoint(path: Path, *, tokenizer: str = "byte", **changes: object) -> GPTModel:
    """Write one of this program's checkpoints with random weights."""
    model = tiny_model(vocab_size=257, **changes)
    state = {f"model.{name}": value.clone() for name, value in model.state_dict().items()}
    write_checkpoint({"state_dict": state, "architecture": model.config.to_dict(), "tokenizer": tokenizer}, path)
    return model


@pytest.mark.parametrize(
    "changes",
    [{}, {"qkv_bias": True}, {"tie_embeddings": False}, {"gelu_approximate": "none", "init": "pytorch", "drop_rate": 0.25}],
    ids=["plain", "biases", "own head", "exact GELU"],
)
def test_transformers_opens_the_folder_and_the_round_trip_is_exact(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = checkpoint(tmp_path / "x.ckpt", **changes)
    assert export(open_weights(tmp_path / "x.ckpt"), tmp_path / "out") <= 1e-3
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    token_ids = torch.randint(0, 257, (2, 16))
    # These large weights round coarsely in fp32.
    with torch.no_grad():
        exact = theirs.double()(token_ids).logits - model.double()(token_ids)
    assert exact.abs().max() <= 1e-10
    model.float()
    assert theirs.config.tie_word_embeddings == model.config.tie_embeddings
    assert theirs.config.eos_token_id == theirs.config.bos_token_id == 256
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 256
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert tokenizer.encode(TEXT) == build_tokenizer("byte").encode(TEXT)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT

    back = open_weights(tmp_path / "out")
    assert (back.config, back.tokenizer) == (model.config, "byte")
    for name, value in back.build().state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert oct((tmp_path / "out" / "model.safetensors").stat().st_mode) == oct((tmp_path / "out" / "README.md").stat().st_mode)


def test_rounding_of_large_logits_does_not_prevent_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "x.ckpt")
    monkeypatch.setattr(huggingface, "MAX_DIFFERENCE", 1e-9)  # out of reach of fp32, but not of fp64
    assert 1e-9 < export(open_weights(tmp_path / "x.ckpt"), tmp_path / "out") < 1e-3


def test_a_model_of_very_many_tokens_is_compared_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(vocab_size=400_000, emb_dim=2, n_heads=1, context_length=64)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    compute, sizes = GPTModel.forward, list[int]()

    def forward(self: GPTModel, token_ids: torch.Tensor) -> torch.Tensor:
        logits = compute(self, token_ids)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(GPTModel, "forward", forward)
    export(open_weights(tmp_path / "x.pth", n_heads=1), tmp_path / "out")
    assert 400_000 <= max(sizes) <= 1 << 25


def test_the_gpt2_tokenizer_is_exported_as_transformers_own(tmp_path: Path) -> None:
    write_tokenizer(build_tokenizer("gpt2"), tmp_path, context_length=1024)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert type(tokenizer).__name__ == "GPT2Tokenizer"
    story = (ROOT / "gpt_pretrain" / "data" / "sample.txt").read_text()
    assert tokenizer.encode(story + TEXT, verbose=False) == build_tokenizer("gpt2").encode(story + TEXT)
    assert (tokenizer.model_max_length, tokenizer.eos_token_id) == (1024, 50256)


def test_a_tokenizer_with_its_own_pattern_is_exported(tmp_path: Path) -> None:
    # cl100k_base's pattern with GPT-2's tokens, because its own tokens would have to be downloaded.
    pattern = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    )
    ranks = build_tokenizer("gpt2").ranks  # type: ignore[attr-defined]
    specials = {"<|endoftext|>": 50256, "<|endofprompt|>": 50276}
    ours = TiktokenTokenizer(tiktoken.Encoding("cl100k_like", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials))
    write_tokenizer(ours, tmp_path, context_length=64)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    story = (ROOT / "gpt_pretrain" / "data" / "sample.txt").read_text()
    for text in (story, TEXT, "x  \n  y\r\n\r\n 12345 '  's '", "end   "):
        assert theirs.encode(text, verbose=False) == ours.encode(text)


def test_a_tokenizer_that_transformers_cannot_reproduce_is_rejected(tmp_path: Path) -> None:
    ours = build_tokenizer("gpt2")
    encoding = tiktoken.Encoding(
        "odd", pat_str=r"\p{L}+|\P{L}", mergeable_ranks=ours.ranks, special_tokens={"<|endoftext|>": 50256}
    )  # type: ignore[attr-defined]
    odd = TiktokenTokenizer(encoding)
    odd.pattern = r"\p{N}+"
    with pytest.raises(UserError, match="tokenizer=odd cannot be exported: transformers encodes"):
        write_tokenizer(odd, tmp_path, context_length=64)


def test_a_model_without_a_known_tokenizer_is_exported_without_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(tiny_model().state_dict(), tmp_path / "x.pth")
    export(open_weights(tmp_path / "x.pth", n_heads=4), tmp_path / "out")
    assert "does not name a tokenizer, so the export has none" in caplog.text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_every_field_of_the_architecture_is_exported_or_prevents_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {"value_embeddings", "bigram_rows"}  # which prevent it, by a test of their own
    assert {*GPTConfig.__dataclass_fields__} - export_folder.EXPORTABLE_FIELDS == tables
    checkpoint(tmp_path / "x.ckpt", gelu_approximate="none")
    monkeypatch.setattr(export_folder, "EXPORTABLE_FIELDS", export_folder.EXPORTABLE_FIELDS - {"gelu_approximate"})
    with pytest.raises(UserError, match="A model with gelu_approximate='none' cannot be exported: transformers has no class"):
        export(open_weights(tmp_path / "x.ckpt"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("damage", ["logits", "disk", "weights", "rename"])
def test_a_failed_export_leaves_the_earlier_one_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    checkpoint(tmp_path / "x.ckpt")
    export(open_weights(tmp_path / "x.ckpt"), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    if damage == "logits":
        monkeypatch.setitem(layouts.HF_GELUS, "relu", "tanh")
        monkeypatch.setattr(
            huggingface, "to_hf_config", lambda *a, **k: layouts.to_hf_config(*a, **k) | {"activation_function": "relu"}
        )
    elif damage == "weights":  # safetensors raises its own error
        monkeypatch.setattr(
            huggingface,
            "save_file",
            lambda *a, **k: fail(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")),
        )
    elif damage == "disk":
        monkeypatch.setattr(huggingface, "model_card", lambda *a, **k: fail(OSError(28, "No space left on device")))
    else:
        real = os.rename
        monkeypatch.setattr(
            os, "rename", lambda a, b: fail(OSError(28, "No space left")) if str(a).endswith(".tmp") else real(a, b)
        )
    space = "cannot be written: No space left on device. model.safetensors needs about .*B, and .*B are free there.$"
    message = {"logits": "computes different logits", "rename": "cannot be written: .*No space left"}.get(damage, space)
    with pytest.raises(UserError, match=message):
        export(open_weights(tmp_path / "x.ckpt"), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.ckpt"]


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    checkpoint(tmp_path / "x.ckpt")
    export(open_weights(tmp_path / "x.ckpt"), tmp_path / "out")
    again = checkpoint(tmp_path / "x.ckpt", qkv_bias=True)
    export(open_weights(tmp_path / "x.ckpt"), tmp_path / "out")
    assert load_pretrained(tmp_path / "out").config == again.config
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds files that no earlier export wrote \(notes\.txt\)"):
        export(open_weights(tmp_path / "x.ckpt"), tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").unlink()
    export(open_weights(tmp_path / "x.ckpt"), tmp_path / "link")
    assert load_pretrained(tmp_path / "out").config == again.config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out", "x.ckpt"]
    with pytest.raises(UserError, match="is the current folder"):
        export(open_weights(tmp_path / "x.ckpt"), Path("."))
    with pytest.raises(UserError, match="is a file"):
        export(open_weights(tmp_path / "x.ckpt"), tmp_path / "x.ckpt")


def test_a_model_that_cannot_be_exported_is_refused_before_its_training(train: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="A model with bigram_rows=40 cannot be exported"):
        train("model=modern_tiny", "model.bigram_rows=40", "export=true", "data.path=null")
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_run_is_exported_and_its_card_describes_the_training(
    train: Train, tmp_path: Path, printed: Callable[[], list[str]]
) -> None:
    train("export=true", "data.path=null")
    folder = tmp_path / "run" / "huggingface"
    assert any(f"Exported to {folder}: " in line for line in printed())
    trained = load_pretrained(tmp_path / "run")
    for name, value in load_pretrained(folder).state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    card = (folder / "README.md").read_text()
    assert "| data | sample (included in gpt-pretrain) |" in card
    assert f"| tokens seen | {content['tokens_seen']:,} |" in card
    assert f"| last training loss | {content['train_losses'][-1]:.4f} nats per token |" in card
    best_loss = content["callbacks"]["SaveRun"]["best_loss"]
    assert f"| best validation loss | {best_loss:.4f} nats per token, in epoch 2 |" in card
    assert "  lr: 0.0004" in card
    assert str(tmp_path) not in card, "the card names no path of this machine"


def test_training_from_a_model_of_transformers_starts_at_its_loss(
    train: Train, printed: Callable[[], list[str]], tmp_path: Path
) -> None:
    model = hugging_face(vocab_size=257, n_positions=40)
    model.save_pretrained(tmp_path / "theirs")
    seen: list[TextDataModule] = []
    original = TextDataModule.prepare_data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextDataModule, "prepare_data", lambda self: (seen.append(self), original(self))[1])
        base = [
            "tokenizer=byte",
            "model.context_length=32",
            "trainer.max_steps=1",
            "eval_iter=50",
            "data.batch_size=16",
            "logger=none",
        ]
        train(f"init_from='{tmp_path / 'theirs'}'", "trainer.precision=32-true", base=base)
    (before,) = [line for line in printed() if line.startswith("Before training")]
    windows = (
        torch.cat([batch[0] for batch in seen[0].val_dataloader()]),
        torch.cat([batch[1] for batch in seen[0].val_dataloader()]),
    )
    with torch.no_grad():
        logits = model(windows[0]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[1].flatten()).item()
    assert float(re.findall(r"Val loss (\d+\.\d+)", before)[0]) == pytest.approx(expected, abs=6e-4)
    stored = open_weights(tmp_path / "run").config
    assert (stored.qkv_bias, stored.n_layers, stored.context_length) == (True, 3, 32)
    with pytest.raises(UserError, match="complete"):  # the run has taken over the architecture of the weights
        train(f"resume='{tmp_path / 'run'}'", base=base)


def test_the_export_command_writes_a_folder_that_generate_reads(
    tmp_path: Path, script: Callable[..., subprocess.CompletedProcess[str]], fork_server: ForkServer
) -> None:
    checkpoint(tmp_path / "x.ckpt")

    def exporting(*arguments: str) -> subprocess.CompletedProcess[str]:
        return fork_server.run(["-m", "gpt_pretrain", "export", *arguments], cwd=tmp_path)

    done = exporting("checkpoint=x.ckpt", "out=my model")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"x\.ckpt -> my model\ntransformers opens the folder; the logits differ by at most \d", done.stdout)
    checkpoint(tmp_path / "y.ckpt")
    again = exporting("checkpoint=y.ckpt", "out=my model")
    assert again.stderr == "warning: out=my model held an earlier export. This one has replaced it.\n"
    exporting("checkpoint=x.ckpt", "out=my model")
    results = [script("generate.py", source) for source in ("pretrained=my model", "checkpoint=x.ckpt")]
    assert results[0].returncode == 0, results[0].stderr
    assert results[0].stdout == results[1].stdout
    wrong = exporting("chekpoint=x.ckpt", "n_heads=four")
    assert wrong.returncode == 2
    assert re.search(r"chekpoint=x\.ckpt: there is no such setting(.|\n)*n_heads=four: (.|\n)*out= is missing", wrong.stderr)
    assert "out         folder to write" in exporting("--help").stdout
