"""Files of settings with mistakes of an editor: each message names the file, the line and the remedy."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpt_pretrain import load_settings
from gpt_pretrain.commands.command_line import custom_options
from gpt_pretrain.commands.command_line.argument_checks import argument_problems
from gpt_pretrain.commands.command_line.command_words import sort_arguments
from gpt_pretrain.config import setting_names
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.checkout import CONF

Script = Callable[..., "subprocess.CompletedProcess[str]"]

TINY = (CONF / "model" / "tiny.yaml").read_text(encoding="utf-8")
TRAIN = (CONF / "train.yaml").read_text(encoding="utf-8")
EXPERIMENT = (CONF / "experiment" / "small_text.yaml").read_text(encoding="utf-8")

# Name of a case: the file in the user's folder, its content, and what the message says.
OPTIONS = {
    "tab": ("model/own.yaml", TINY.replace("n_heads: 4", "\tn_heads: 4"), "own.yaml: line 6, `n_heads: 4", "contains a tab."),
    "indented": ("model/own.yaml", TINY.replace("n_heads: 4", "  n_heads: 4"), "own.yaml: line 6, `n_heads: 4", "A line has the form"),
    "no_colon": ("model/own.yaml", TINY.replace("n_heads: 4", "n_heads 4"), "own.yaml: line 6, `n_heads 4", "A line has the form"),
    "no_blank": ("model/own.yaml", TINY.replace("n_heads: 4", "n_heads:4"), "own.yaml: line 6, `n_heads:4", "A line has the form"),
    "twice": ("model/own.yaml", TINY + "n_layers: 6\n", "own.yaml: line 12, `n_layers: 6`", "sets n_layers again."),
    "no_break_space": ("model/own.yaml", TINY.replace("n_heads: 4", "n_heads:\u00a04"), "own.yaml: line 6", "a no-break space."),
    "no_package": ("experiment/own.yaml", "trainer:\n  max_steps: 3\n", "experiment: ", "must begin with the line `# @package _global_`."),
    "second_colon": ("experiment/own.yaml", "start_context: Note: be good\n", "own.yaml: line 1", "has a second colon."),
    "latin_1": ("model/own.yaml", TINY.encode() + "# für".encode("latin-1"), "own.yaml: line 12", "not UTF-8"),
    "utf_16": ("model/own.yaml", TINY.encode("utf-16"), "own.yaml: line 1", "not UTF-8"),
    "itself": ("model/own.yaml", "defaults:\n  - own\n", "own.yaml: its list `defaults:`", "leads back to model/own itself."),
    "list": ("model/own.yaml", "- a\n", "model/own: this file holds a list in place of settings.", "A line has the form"),
    "number": ("model/own.yaml", "5\n", "own.yaml: it does not hold settings", "A line has the form"),
    "nothing": ("model/own.yaml", "", "own_conf/model/own.yaml lacks this setting", "Add it to the file."),
    "no_option": ("model/own.yaml", "defaults:\n  - tinny\n", "names model/tinny, which does not exist.", "The options are chapter5, "),
    "ending": ("experiment/own.yml", EXPERIMENT, "experiment=own: ", "own.yml must have the ending .yaml. Rename it."),
    "not_global": (
        "experiment/own.yaml",
        EXPERIMENT.replace("# @package _global_\n", ""),
        "experiment/own overrides the group model.",
        "begins with `# @package _global_` can do so: add this line.",
    ),
    "not_an_override": (
        "experiment/own.yaml",
        EXPERIMENT.replace("override /model: modern_small", "model: tiny"),
        "names experiment/model/tiny, which does not exist.",
        "write `- override /model: tiny`, and begin the file with `# @package _global_`.",
    ),
    "word_for_a_group": (
        "experiment/own.yaml",
        "# @package _global_\noptimizer: adamw\n",
        "experiment/own: optimizer is a group of settings, but here it is the word adamw.",
        "To choose an option, write `- override /optimizer: adamw` in the list `defaults:`.",
    ),
    "word_for_an_optional_group": (
        "experiment/own.yaml",
        "# @package _global_\ncallbacks:\n  doctor: default\n",
        "experiment/own: callbacks.doctor: default must be a group of settings, which are set one by one: ",
        ", or null.",
    ),
    "no_text": (
        "experiment/own.yaml",
        "# @package _global_\nstart_context: no\n",
        "experiment/own.yaml: start_context is a text, but YAML reads it as False.",
        "Put it within quotation marks.",
    ),
    "bare_word": (
        "model/own.yaml",
        "hello\n",
        "own_conf/model/own.yaml: model.hello: there is no such setting.",
        "",
    ),
    "group_in_a_model": (
        "model/own.yaml",
        TINY.replace("_here_\n", "_here_\n  - /optimizer: adamw\n", 1),
        "own_conf/model/own.yaml: model.optimizer: there is no such setting.",
        "",
    ),
    "time_of_day": (
        "experiment/own.yaml",
        "# @package _global_\nstart_context: 12:30\n",
        "experiment/own.yaml: start_context is a text, but YAML reads it as 750.",
        "Put it within quotation marks.",
    ),
    "exponent": (
        "experiment/own.yaml",
        "# @package _global_\nstart_context: 1e3\n",
        "experiment/own.yaml: start_context is a text, but YAML reads it as 1000.0.",
        "Put it within quotation marks.",
    ),
    "no_name": (
        "model/own.yaml",
        TINY.replace("init: gpt2", "init: on"),
        "model/own.yaml: model.init is a text, but YAML reads it as True.",
        "Put it within quotation marks.",
    ),
    "not_a_list": (
        "experiment/own.yaml",
        "# @package _global_\noptimizer:\n  betas: 0.9, 0.95\n",
        "optimizer.betas: must be a list of numbers, such as [0.9, 0.95].",
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_a_mistake_in_an_option_is_explained(tmp_path: Path, script: Script, name: str) -> None:
    file, content, message, remedy = OPTIONS[name]
    path = tmp_path / "own_conf" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = script("train.py", "--config-dir", "own_conf", f"{path.parent.name}=own", "model.n_layers=1", "trainer.max_steps=1")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message in done.stderr
    assert remedy in done.stderr


@pytest.fixture
def write_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Replace the file of train.py's defaults."""
    monkeypatch.setattr(setting_names, "CONF", tmp_path)
    monkeypatch.setattr(custom_options, "CONF", tmp_path)
    setting_names.script_groups.cache_clear()
    yield (tmp_path / "train.yaml").write_bytes
    setting_names.script_groups.cache_clear()


# Name of a case: the content of train.yaml, and what the message says.
DEFAULTS = {
    "indented": (TRAIN.replace("\nseed: 123", "\n  seed: 123"), "line 20, `seed: 123"),
    "latin_1": (TRAIN.encode() + "# für".encode("latin-1"), "not UTF-8. Save the file as UTF-8."),
    "empty": ("", "the list `defaults:` is missing"),
    "not_a_text": (
        TRAIN.replace("start_context: Every effort moves you", "start_context: no"),
        "start_context is a text, but YAML",
    ),
    "no_defaults": ("seed: 1\n", "the list `defaults:` is missing"),
    "not_itself": (TRAIN.replace("  - _self_\n", ""), "lacks `- _self_`"),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_mistake_in_the_defaults_is_explained(write_defaults: Callable[[bytes], None], name: str) -> None:
    content, message = DEFAULTS[name]
    write_defaults(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        load_settings("model=tiny")
    assert "train.yaml: " in str(caught.value)
    assert message in str(caught.value)


def test_a_file_of_defaults_that_is_gone_is_named(write_defaults: Callable[[bytes], None]) -> None:
    with pytest.raises(UserError, match=r"train\.yaml: cannot be read \(No such file or directory\)\.$"):
        load_settings("model=tiny")


def test_a_group_without_a_default_is_named(write_defaults: Callable[[bytes], None]) -> None:
    write_defaults(TRAIN.replace("  - logger: tensorboard\n", "").encode())
    with pytest.raises(UserError) as caught:
        load_settings("logger=none")
    assert str(caught.value).endswith("has no line for this group. Restore the line `- logger: OPTION`.")


def test_the_heads_of_loaded_weights_need_not_fit_the_default_width() -> None:
    assert load_settings("init_from=model.pth", "model.n_heads=6").model.n_heads == 6
    with pytest.raises(UserError, match=r"model\.n_heads=0: must be a whole number of at least 1\.$"):
        load_settings("init_from=model.pth", "model.n_heads=0")


def test_a_field_of_a_class_of_one_s_own_may_be_true_or_false(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own.yaml").write_text("_target_: own_model.Own\ninit: false\n")
    arguments = sort_arguments(["--config-dir", str(tmp_path), "model=own"])
    assert argument_problems(arguments, script="train") == []
    (tmp_path / "model" / "own.yaml").write_text("init: false\n")
    assert len(argument_problems(arguments, script="train")) == 1


def test_a_setting_that_does_not_exist_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    file = tmp_path / "optimizer" / "own.yaml"
    arguments = sort_arguments(["--config-dir", str(tmp_path), "optimizer=own"])
    for content in ("defaults: [adamw]\nlrr: 1\n", "lrr\n"):
        file.write_text(content, encoding="utf-8")
        assert argument_problems(arguments, script="train") == [
            f"{file}: optimizer.lrr: there is no such setting. Did you mean optimizer.lr?"
        ]
    for header in ("# @package _global_", "#@package _global_", "\n #  @package  _global_"):
        file.write_text(f"{header}\noptimizer: {{lr: 1}}\nseed: 1\n", encoding="utf-8")
        assert argument_problems(arguments, script="train") == []


@pytest.mark.parametrize("name", ["1", "on", "2026-11-28"])
def test_a_name_in_a_file_of_settings_may_look_like_another_value(tmp_path: Path, name: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(f"# @package _global_\n{name}: 2\n", encoding="utf-8")
    arguments = sort_arguments(["--config-dir", str(tmp_path), "experiment=own"])
    assert argument_problems(arguments, script="train") == []  # Hydra refuses it, and its message is explained


@pytest.mark.parametrize("text", ["'1e3'", "100", "1e", "2026-11-28", "e3", "${seed}"])
def test_a_text_that_yaml_does_not_change_is_accepted(tmp_path: Path, text: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(f"# @package _global_\nstart_context: {text}\n", encoding="utf-8")
    arguments = sort_arguments(["--config-dir", str(tmp_path), "experiment=own"])
    assert argument_problems(arguments, script="train") == []


def test_a_callback_in_the_current_folder_is_found(tmp_path: Path, script: Script) -> None:
    (tmp_path / "own_callback.py").write_text(
        "import lightning as L\n\n\nclass Shout(L.Callback):\n    def __init__(self, word):\n        self.word = word\n\n"
        "    def on_train_end(self, trainer, module):\n        print(self.word, trainer.global_step)\n"
    )
    settings = ("model=tiny", "model.n_layers=1", "model.emb_dim=16", "tokenizer=byte", "trainer.max_steps=1", "logger=none")
    settings += ("callbacks=minimal", "eval_iter=1", "trainer.accelerator=cpu")
    done = script("train.py", *settings, "callbacks.custom.a={_target_: own_callback.Shout, word: hello}")
    assert done.returncode == 0, done.stderr
    assert "hello 1\n" in done.stdout
    wrong = script("train.py", *settings, "callbacks.custom.a={_target_: own_callback.Shuot}")
    assert wrong.returncode == 2
    assert (
        "callbacks.custom.a._target_=own_callback.Shuot: the module own_callback has no Shuot. Did you mean Shout?"
        in wrong.stderr
    )
