"""The public names of the package, called with what a newcomer passes to them in a notebook."""

import re
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from gpt_pretrain import (
    GPTConfig,
    GPTLitModule,
    GPTModel,
    TextDataModule,
    build_tokenizer,
    generate,
    load_pretrained,
    load_settings,
)
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.loss import next_token_loss
from gpt_pretrain.model.build import new_model
from gpt_pretrain.system.checkout import CONF
from gpt_pretrain.tokenizers.base import decode
from gpt_pretrain.tokenizers.tables import IdTokenizer
from tests.conftest import tiny_model

ANY: Any = None
SETTINGS = load_settings("model=tiny")
BYTES = build_tokenizer("byte")


def model() -> GPTModel:
    return tiny_model(vocab_size=257)


def ids(*values: Any) -> torch.Tensor:
    return torch.tensor([values])


def module(**arguments: Any) -> GPTLitModule:
    wrong = {"optimizer": SETTINGS.optimizer, "scheduler": SETTINGS.scheduler, "total_steps": 1, **arguments}
    return GPTLitModule(model(), **wrong)


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: generate(model(), [1, 2], 3), "token_ids=[1, 2]: must be a tensor of int64, (B, T), such as torch.tensor("),
    (lambda: generate(model(), "Hello", 3), "token_ids='Hello': must be a tensor of int64"),
    (lambda: generate(model(), ids(1.0), 3), "token_ids has the type torch.float32: it must be a tensor of int64"),
    (lambda: generate(model(), ids(1, 257), 3), "token_ids has ids from 1 to 257, and the model's are 0 to 256. Encode"),
    (lambda: generate(model(), ids(-1, 5), 0), "token_ids has ids from -1 to 5, and"),
    (lambda: generate("gpt2", ids(1), 3), "model='gpt2': must be a model, such as a GPTModel or what load_pretrained returns."),
    (lambda: generate(model(), ids(1), "3"), "max_new_tokens='3': must be a whole number."),
    (lambda: generate(model(), ids(1), 2.5), "max_new_tokens=2.5: must be a whole number."),
    (lambda: generate(model(), ids(1), 3, top_k=2.5), "top_k=2.5: must be a whole number."),
    (lambda: generate(model(), ids(1), 3, top_k=True), "top_k=True: must be a whole number."),
    (lambda: generate(model(), ids(1), True), "max_new_tokens=True: must be a whole number."),
    (lambda: generate(model(), ids(1), 3, eos_id="x"), "eos_id='x': must be a token id, such as tokenizer.eos_id, or None."),
    (lambda: generate(model(), ids(1), 3, generator=5), "generator=5: must be a torch.Generator, such as"),
    (lambda: decode(BYTES, ids(72, 105)), "token_ids has shape (1, 2) and dtype torch.int64: they must be whole numbers, (T,)"),
    (lambda: decode(BYTES, torch.ones(3)), "token_ids has shape (3,) and dtype torch.float32: they must be whole numbers, (T,)"),
    (lambda: decode(BYTES, "Hi"), "token_ids='Hi': they must be whole numbers"),
    (lambda: decode(BYTES, [72.0]), "token_ids=[72.0]: they must be whole numbers"),
    (lambda: decode(BYTES, None), "token_ids=None: they must be whole numbers"),
    (lambda: decode(BYTES, [72, 257]), "token_ids has the id 257, and those of the tokenizer byte are 0 to 256. Use"),
    (lambda: decode(BYTES, [-1]), "token_ids has the id -1, and those of the tokenizer byte are 0 to 256. Use"),
    (lambda: BYTES.encode(None), "text=None: must be a text (str). Decode bytes first"),
    (lambda: BYTES.encode_ordinary(b"Hi"), "text=b'Hi': must be a text (str)."),
    (lambda: build_tokenizer("gpt2").encode(["Hi", "Ho"]), "text=['Hi', 'Ho']: must be a text (str)."),
    (lambda: build_tokenizer("characters:ab").encode(5), "text=5: must be a text (str)."),
    (lambda: IdTokenizer(9).encode(None), "text=None: must be a text (str)."),
    (lambda: generate(model(), ids(1), 3, temperature=None), "temperature=None: must be a number."),
    (lambda: build_tokenizer(None), "tokenizer=None: must be a name such as 'gpt2' or 'byte', or a folder or file"),
    (
        lambda: GPTModel(GPTConfig(vocab_size=9, **vars(load_settings("model=modern_tiny").model))),
        "GPTModel is a GPT-2, but the config",
    ),
    (
        lambda: new_model(GPTConfig(vocab_size=9, context_length=8, emb_dim=1, n_heads=1, n_layers=1, kind="custom")),
        "the config has kind=custom, a class of your own.",
    ),
    (lambda: load_settings(5), "an override=5: must be a text, such as 'model=tiny'."),
    (lambda: load_settings(["model=tiny", 5]), "an override=5: must be a text"),
    (lambda: load_settings("model = tiny"), "model = tiny: there is no such setting. Did you mean model?"),
    (lambda: load_settings("model=tiny seed=3"), "these are 2 settings in one argument. Type model=tiny seed=3"),
    (
        lambda: load_settings("optimizer.lr=1e-3,1e-4"),
        "optimizer.lr=1e-3,1e-4: load_settings takes one value of each setting. To try several, call it once for each value.",
    ),
    (
        lambda: load_settings("optimizer.lr=[1e-3,1e-4]"),
        "must be a number, such as 0.1. load_settings takes one value of each setting. To try several, call it once for each value.",
    ),
    (lambda: model()(ids(1, 257)), "token_ids has ids from 1 to 257, and the model's are 0 to 256. Encode the text"),
    (lambda: model()(ids(1.0)), "token_ids has the type torch.float32: it must be a tensor of int64"),
    (lambda: model()("Hello"), "token_ids='Hello': must be a tensor of int64, (B, T)"),
    (lambda: next_token_loss(model(), ids(1, 300), ids(1, 2)), "token_ids has ids from 1 to 300"),
    (
        lambda: next_token_loss(model(), ids(1, 2), ids(1)),
        "target_ids ((1, 1), torch.int64) must be the next id at each position of token_ids: int64, (1, 2). A window of T + 1",
    ),
    (lambda: next_token_loss(model(), ids(1, 2), ids(1, 2).T), "target_ids ((2, 1), torch.int64) must be"),
    (lambda: next_token_loss(model(), ids(1, 2), ids(1.0, 2.0)), "target_ids ((1, 2), torch.float32) must be"),
    (lambda: next_token_loss(model(), ids(1, 2), ANY), "target_ids (NoneType) must be"),
    (
        lambda: load_settings("callbacks=minimal", "callbacks.doctor.window=5"),
        "is null here, so it has no settings. Choose callbacks=default",
    ),
    (lambda: load_settings("optimizer.lr=-1"), "optimizer.lr=-1.0: must be a finite number above 0"),
    (lambda: load_settings("-m"), "-m: load_settings takes settings only"),
    (lambda: load_pretrained(None), "source=None: must be a path, a model on the hub such as 'gpt2', or 'latest'."),
    (lambda: GPTModel({"emb_dim": 8}), "config={'emb_dim': 8}: must be a GPTConfig, such as GPTConfig("),
    (lambda: load_pretrained(OrderedDict()), "source=<an OrderedDict>: must be a path"),
    (lambda: load_pretrained(np.int64(3)), "source=np.int64(3): must be a path"),
    (lambda: load_pretrained(Fraction(10**9000)), "source=<a Fraction>: must be a path"),
    (lambda: GPTModel(SETTINGS.model), "config=<a ModelSettings>: must be a GPTConfig"),
    (lambda: GPTLitModule(ANY, optimizer=ANY, scheduler=ANY, total_steps=1), "model=None: must be a model, such as"),
    (
        lambda: GPTLitModule(model(), optimizer=torch.optim.AdamW, scheduler=SETTINGS.scheduler, total_steps=1),
        "optimizer=<a type>: must be settings, such as load_settings().optimizer.",
    ),
    (
        lambda: TextDataModule("text.txt", build_tokenizer("byte"), context_length=8, seed=1),
        "settings='text.txt': must be settings, such as load_settings('data.path=FILE').data.",
    ),
    (
        lambda: TextDataModule(SETTINGS.data, build_tokenizer("byte"), context_length=ANY, seed=1),
        "context_length=None: must be a whole number, such as settings.model.context_length.",
    ),
    (
        lambda: TextDataModule(SETTINGS.data, build_tokenizer("byte"), context_length=0, seed=1),
        "The context_length of a TextDataModule must be at least 1, not 0.",
    ),
    (lambda: TextDataModule(SETTINGS.data, BYTES, context_length=8, seed="a"), "seed='a': must be a whole number."),
    (lambda: TextDataModule(SETTINGS.data, BYTES, context_length=8, seed=-1), "seed=-1, rank=0, world_size=1: seed and rank"),
    (lambda: TextDataModule(SETTINGS.data, BYTES, context_length=8, seed=1, rank=2, world_size=2), "rank below world_size."),
    (lambda: module(total_steps=0), "total_steps=0: must be at least 1, the optimizer steps of the whole run."),
    (lambda: module(total_steps=2.5), "total_steps=2.5: must be a whole number of optimizer steps."),
    (lambda: module(on_nonfinite="explode"), "on_nonfinite='explode': must be stop, skip, rollback."),
    (lambda: build_tokenizer("latest"), "Type the folder of the run, such as tokenizer=outputs/RUN."),
    (lambda: TextDataModule(SETTINGS.data, "byte", context_length=8, seed=1), "tokenizer='byte': must be a tokenizer, such as"),
]


@pytest.mark.parametrize(("call", "said"), WRONG)
def test_an_argument_of_the_wrong_type_is_named_with_what_is_taken(call: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        call()


@pytest.mark.parametrize("name", ["byte", "gpt2"])
def test_a_tensor_or_an_array_of_ids_is_decoded_as_a_list_is(name: str) -> None:
    tokenizer = build_tokenizer(name)
    token_ids = tokenizer.encode("Hi there")
    for form in (torch.tensor(token_ids), torch.tensor([token_ids])[0].numpy(), tuple(token_ids), iter(token_ids)):
        assert decode(tokenizer, form) == "Hi there"


def test_the_end_of_text_may_be_a_number_of_numpy() -> None:
    first = generate(model(), ids(1), 1)[0, 1].item()
    for eos_id in (first, np.int64(first)):
        assert generate(model(), ids(1), 5, eos_id=eos_id).tolist() == [[1, first]]


def test_a_model_says_which_shape_it_reads() -> None:
    with pytest.raises(ValueError, match=r"token_ids has shape \(3,\): it must be \(B, T\), such as token_ids\[None\]"):
        model()(torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("use", ["train_dataloader", "val_dataloader"])
def test_data_that_is_not_prepared_says_what_to_call(use: str) -> None:
    data = TextDataModule(SETTINGS.data, build_tokenizer("byte"), context_length=8, seed=1)
    with pytest.raises(AttributeError, match=r"A TextDataModule has no (train|val) yet\. Call setup\(\) first\."):
        getattr(data, use)()
    assert not hasattr(data, "train")
    assert not hasattr(data, "trian")


def test_texts_are_written_as_on_the_command_line() -> None:
    settings = load_settings("start_context=It's 5, [no] $x", "data=text", "data.path=my file, v2.txt", "trainer.max_tokens=1e6")
    assert (settings.start_context, settings.data.path) == ("It's 5, [no] $x", "my file, v2.txt")
    assert settings.trainer.max_tokens == 1_000_000


def test_paths_and_lists_are_taken_where_they_are_natural(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    assert load_settings(["model=tiny", "seed=5"]).seed == load_settings("model=tiny", "seed=5").seed == 5
    with pytest.raises(UserError, match="there is no such tokenizer"):
        build_tokenizer(tmp_path / "nothing")
    assert build_tokenizer(Path("byte")).name == "byte"
    assert isinstance(GPTModel(GPTConfig(vocab_size=300, **vars(SETTINGS.model))), GPTModel)


@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "checkpoints", "run.json"])
def test_a_file_of_a_run_is_no_vocabulary_but_the_run_has_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"PK\3\4")
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("tokenizer: {name: byte}")
    with pytest.raises(UserError, match=rf"{name} belongs to a run\. Give the folder of the run, .*: tokenizer={tmp_path}$"):
        build_tokenizer(tmp_path / name)
    assert build_tokenizer(tmp_path).name == "byte"


def test_a_model_whose_input_is_checked_is_compiled_as_a_whole() -> None:
    compiled = torch.compile(model(), backend="eager", fullgraph=True)
    assert torch.equal(compiled(ids(1, 2)), compiled._orig_mod(ids(1, 2)))


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    size = np.int64(8)
    config = GPTConfig(vocab_size=np.uint8(9), context_length=size, emb_dim=size, n_heads=np.int32(2), n_layers=1)
    assert config == GPTConfig(vocab_size=9, context_length=8, emb_dim=8, n_heads=2, n_layers=1)
    assert all(type(value) is not np.int64 for value in vars(config).values())
    assert TextDataModule(SETTINGS.data, BYTES, context_length=size, seed=np.int64(1)).context_length == 8


def test_settings_are_loaded_in_threads_and_in_a_program_with_hydra() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda seed: load_settings("model=tiny", f"seed={seed}").seed, range(4))) == [0, 1, 2, 3]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        assert load_settings("seed=5").seed == 5
        assert GlobalHydra.instance().is_initialized()
    assert not GlobalHydra.instance().is_initialized()
