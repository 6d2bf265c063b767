"""The user's own optimizer and schedule train, resume exactly, and are explained where they cannot be used."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from gpt_pretrain.commands.train import train as train_command
from gpt_pretrain.data.custom_data import build_custom_datasets
from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.conftest import TINY_RUN
from tests.helpers.training_runs import checkpoint, machine_going_away, same_weights

Train = Callable[..., float]
Script = Callable[..., "subprocess.CompletedProcess[str]"]
OWN = "tests.helpers.own_parts"
GROWING = ["optimizer=custom", f"++optimizer._target_={OWN}.Growing"]
HALVING = ["scheduler=custom", f"++scheduler._target_={OWN}.half_life"]
MILESTONES = ["scheduler=custom", "++scheduler._target_=torch.optim.lr_scheduler.MultiStepLR", "++scheduler.milestones=[2,4,7]"]
NUMBERS = ["data=custom", f"++data._target_={OWN}.Numbers"]
# The tiny run without settings of its text.
WITHOUT_TEXT = [one for one in TINY_RUN if not one.startswith("data.")]
QUICK = ["callbacks=minimal", "logger=none"]


@pytest.mark.parametrize(
    "parts",
    [
        [*GROWING, "++optimizer.lr=2e-3", *HALVING],
        [*GROWING, *MILESTONES],
        [*GROWING, "scheduler=warmup_linear", "scheduler.warmup_steps=2"],
        [
            "optimizer=custom",
            "++optimizer._target_=torch.optim.SGD",
            "++optimizer.lr=0.1",
            "++optimizer.momentum=0.9",
            *MILESTONES,
        ],
        ["optimizer=muon", *HALVING, "++scheduler.half=2"],
    ],
    ids=["function", "scheduler_of_torch", "own_optimizer", "optimizer_of_torch", "own_schedule"],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(train: Train, tmp_path: Path, parts: list[str]) -> None:
    train(*parts, *QUICK, "trainer.max_steps=8", "trainer.max_epochs=3", run_dir=tmp_path / "whole")
    resumed = tmp_path / "parts"
    train(*parts, *QUICK, "trainer.max_steps=4", "trainer.max_epochs=3", run_dir=resumed)
    named = [part for part in parts if "=custom" in part or "_target_" in part]  # the arguments are taken from the checkpoint
    train(*named, f"resume='{resumed}'", "trainer.max_steps=8", run_dir=resumed, base=["trainer.accelerator=cpu"])
    if "scheduler=warmup_linear" not in parts:  # whose end has moved
        assert same_weights(checkpoint(tmp_path / "whole"), checkpoint(resumed))
    group = checkpoint(resumed)["optimizer_states"][0]["param_groups"][0]
    assert group.get("size", 1.01**8) == pytest.approx(1.01**8), "what an optimizer keeps in its groups is restored"


def test_the_schedule_is_that_of_the_function(train: Train, tmp_path: Path) -> None:
    train(*GROWING, "++optimizer.lr=0.01", *HALVING, *QUICK, "trainer.max_steps=5")
    state = checkpoint(tmp_path / "run")["lr_schedulers"][0]
    assert state["_last_lr"] == [pytest.approx(0.01 * 0.5 ** (5 / 4))]


def test_a_checkpoint_holds_names_and_plain_arguments(train: Train, tmp_path: Path) -> None:
    train(*GROWING, "++optimizer.growth=1.02", *MILESTONES, *QUICK, "trainer.max_steps=1")
    stored = checkpoint(tmp_path / "run")["config"]["custom"]
    assert stored["optimizer"] == {"class": f"{OWN}.Growing", "arguments": {"growth": 1.02}}
    assert stored["scheduler"]["arguments"] == {"milestones": [2, 4, 7]}


def test_a_run_without_own_parts_stores_nothing_about_them(train: Train, tmp_path: Path) -> None:
    train(*QUICK, "trainer.max_steps=1")
    assert "custom" not in checkpoint(tmp_path / "run")["config"]


def test_the_class_has_to_be_named_again(train: Train, tmp_path: Path) -> None:
    train(*GROWING, *HALVING, *QUICK, "trainer.max_steps=2")
    with pytest.raises(UserError, match=rf"own, {OWN}\.Growing.*Name it again: optimizer\._target_={OWN}\.Growing") as caught:
        train(f"resume='{tmp_path / 'run'}'", "trainer.max_steps=3", base=["trainer.accelerator=cpu"])
    assert len(caught.value.problems) == 2
    other = ["optimizer=custom", "++optimizer._target_=torch.optim.SGD", *HALVING]
    with pytest.raises(UserError, match=rf"optimizer\._target_ was {OWN}\.Growing, is torch\.optim\.SGD now"):
        train(f"resume='{tmp_path / 'run'}'", "trainer.max_steps=3", *other, base=["trainer.accelerator=cpu"])


def test_the_arguments_of_a_resumed_run_count(train: Train, tmp_path: Path) -> None:
    cycle = [
        "scheduler=custom",
        "++scheduler._target_=torch.optim.lr_scheduler.OneCycleLR",
        "++scheduler.max_lr=0.01",
        "++scheduler.cycle_momentum=false",
    ]
    train(*GROWING, *cycle, *QUICK, "trainer.max_steps=3")
    train(*GROWING, *cycle, f"resume='{tmp_path / 'run'}'", "trainer.max_steps=6", base=["trainer.accelerator=cpu"])
    assert checkpoint(tmp_path / "run")["global_step"] == 6
    fresh = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([torch.zeros(1)], lr=0.1), 0.01, total_steps=6, cycle_momentum=False
    )
    for _ in range(6):
        fresh.optimizer.step()
        fresh.step()
    assert checkpoint(tmp_path / "run")["lr_schedulers"][0]["_last_lr"] == pytest.approx(fresh.get_last_lr())


def test_a_changed_learning_rate_scales_the_schedule(train: Train, tmp_path: Path) -> None:
    train(*GROWING, "++optimizer.lr=0.01", *MILESTONES, *QUICK, "trainer.max_steps=3")
    named = [*GROWING, "++optimizer.lr=0.02", *MILESTONES[:2]]
    train(*named, f"resume='{tmp_path / 'run'}'", "trainer.max_steps=4", base=["trainer.accelerator=cpu"])
    assert checkpoint(tmp_path / "run")["lr_schedulers"][0]["_last_lr"] == [pytest.approx(0.02 * 0.01)]


def test_own_data_are_read_in_the_order_of_seed_and_epoch(
    train: Train, compose_train: Callable[..., DictConfig], tmp_path: Path
) -> None:
    def run(*overrides: str, run_dir: Path, base: list[str] = WITHOUT_TEXT) -> None:
        config = compose_train(*base, *overrides, run_dir=run_dir)
        del config.data.cache_dir  # which the tests set for every text
        overridden = {override.lstrip("+").partition("=")[0] for override in (*base, *overrides)}
        train_command(config, overridden=overridden)

    run(*NUMBERS, *QUICK, run_dir=tmp_path / "whole")
    whole, parts = checkpoint(tmp_path / "whole"), tmp_path / "parts"
    assert (whole["global_step"], whole["tokens_seen"]) == (12, 12 * 4 * 32), "two epochs of 26 windows, four at a time"
    assert whole["config"]["data"]["batch_size"] == 4, "as the loader's"
    with machine_going_away(at_step=9):
        run(*NUMBERS, *QUICK, "checkpoint.every_n_steps=4", run_dir=parts)
    run(*NUMBERS, f"resume='{parts}'", run_dir=parts, base=["trainer.accelerator=cpu"])
    assert same_weights(whole, checkpoint(parts))
    more = [*NUMBERS, "++data.n_windows=30"]
    with pytest.raises(UserError, match="the content of the text has changed"):
        run(*more, f"resume='{parts}'", "trainer.max_epochs=3", run_dir=parts, base=["trainer.accelerator=cpu"])


DATA = {
    "no_module": ("torch.nn.Identity", "is a Identity, not a LightningDataModule"),
    "no_validation": (f"{OWN}.NoValidation", "has no val_dataloader(). The validation loss"),
    "several_loaders": (f"{OWN}.Changed", "train_dataloader() returns a list, not a DataLoader of torch"),
    "own_sampler": (f"{OWN}.Sampled", "has a sampler of its own, WeightedRandomSampler"),
    "stream": (f"{OWN}.Streaming", "has no length, so its order cannot be resumed"),
    "one_tensor": (f"{OWN}.Collated", "it is a Tensor, but must be a pair of tensors"),
    "too_long": (f"{OWN}.TooLong", "its windows have 64 tokens, but model.context_length=32"),
    "other_shapes": (f"{OWN}.Shorter", "target_ids has the shape (1, 31), but token_ids (1, 32)"),
    "floats": (f"{OWN}.Floats", "token_ids has the shape (1, 32) and the type torch.float32"),
    "not_shifted": (f"{OWN}.Unshifted", "each target is the token itself, so the model would learn to copy."),
    "no_targets": (f"{OWN}.Ignored", "all of its target_ids are -100, which is not counted."),
    "outside": (f"{OWN}.Outside", "token_ids has the id 5000, but the vocabulary has 257 tokens"),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_cannot_be_used_are_explained(name: str) -> None:
    target, message = DATA[name]
    with pytest.raises(UserError) as caught:
        build_custom_datasets({"_target_": target}, build_tokenizer("byte"), context_length=32, seed=1)
    assert message in str(caught.value)


WRONG = {
    "no_module": (
        "optimizer",
        "gone_module.Class",
        "there is no module gone_module, neither installed nor in the current folder",
    ),
    "no_name": ("optimizer", f"{OWN}.Growin", "has no Growin. Did you mean Growing?"),
    "a_module": ("optimizer", "torch.optim", "torch.optim is a module. Add the name of a class"),
    "a_value": ("optimizer", f"{OWN}.MARK", "is a value of type str, not a class or function"),
    "no_dotted_name": ("optimizer", "Adam", "must be the dotted name of a class or function"),
    "no_optimizer": ("optimizer", "torch.nn.Linear", "is not an optimizer: it must derive from torch.optim.Optimizer"),
    "closure": ("optimizer", "torch.optim.LBFGS", "needs a closure"),
    "own_closure": ("optimizer", f"{OWN}.NeedsClosure", "needs a closure"),
    "two_sets": ("optimizer", f"{OWN}.TwoSets", "keeps other weights for evaluation"),
    "foreign_parameters": ("optimizer", f"{OWN}.of_others", "has parameters that are not the model's"),
    "no_result": ("optimizer", f"{OWN}.nothing", "returned a NoneType, not a torch.optim.Optimizer"),
    "plateau": ("scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau", "needs a validation loss"),
    "no_schedule": ("scheduler", "torch.nn.Linear", "is not a schedule"),
    "no_factor": ("scheduler", f"{OWN}.textual", "returned 'one' for step 0. It must return the factor"),
    "failing": ("scheduler", f"{OWN}.fails", "ValueError: no schedule today"),
    "missing_argument": ("scheduler", "torch.optim.lr_scheduler.StepLR", "Its arguments are optimizer, step_size"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_used_is_explained(train: Train, name: str) -> None:
    group, target, message = WRONG[name]
    with pytest.raises(UserError) as caught:
        train(f"{group}=custom", f"++{group}._target_={target}", *QUICK, "trainer.max_steps=1")
    assert message in str(caught.value)


def test_wrong_arguments_are_explained(train: Train) -> None:
    with pytest.raises(UserError, match=r"unexpected keyword argument 'speed'.* Its arguments are params, lr, growth\."):
        train(*GROWING, "++optimizer.speed=3", *QUICK, "trainer.max_steps=1")
    with pytest.raises(UserError, match=r"scheduler\.interval=epoch: schedules here always advance with every optimizer step"):
        train(*MILESTONES, "++scheduler.interval=epoch", *QUICK, "trainer.max_steps=1")
    with pytest.raises(UserError, match=r"optimizer=custom is your own class, which has no name yet"):
        train("optimizer=custom", *QUICK, "trainer.max_steps=1")


def test_a_module_of_the_current_folder_and_an_option_of_an_own_config_folder(script: Script, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text((Path(__file__).parents[1] / "helpers" / "own_parts.py").read_text())
    option = tmp_path / "my_conf" / "optimizer" / "growing.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("_target_: mine.Growing\n_partial_: true\nlr: 1e-3\n")
    tiny = ["model=tiny", "tokenizer=byte", "callbacks=minimal", "logger=none", "trainer.precision=32-true", "hydra.run.dir=run"]
    own = ["--config-dir", "my_conf", "optimizer=growing", "optimizer.growth=1.5", "scheduler._target_=mine.to_zero"]
    done = script("train.py", *tiny, *own, "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    assert "optimizer: mine.Growing" in done.stdout + done.stderr
    assert checkpoint(tmp_path / "run")["optimizer_states"][0]["param_groups"][0]["size"] == pytest.approx(1.5**2)
    assert "optimizer._target_=mine.Growing" in done.stdout + done.stderr, "the command that resumes names the class"
    done = script("train.py", "resume=run", "trainer.max_steps=3", *own)
    assert done.returncode == 0, done.stderr
    done = script("train.py", *tiny[:-1], *own, "plan=true", "trainer.max_steps=3")
    assert done.returncode == 0, done.stderr
    assert "the state of your own optimizer is unknown" in done.stdout + done.stderr
    done = script("train.py", *tiny, "optimizer.speed=3", "trainer.max_steps=3")
    assert done.returncode == 2
    assert "there is no such setting" in done.stderr, "names are free only beside a class"


def test_a_sweep_compares_an_own_optimizer_with_a_built_in_one(script: Script, tmp_path: Path) -> None:
    option = tmp_path / "my_conf" / "optimizer" / "sgd.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("_target_: torch.optim.SGD\nlr: 0.1\n")
    tiny = ["model=tiny", "tokenizer=byte", "callbacks=minimal", "logger=none", "trainer.precision=32-true"]
    done = script(
        "train.py", "-m", "--config-dir", "my_conf", *tiny, "optimizer=adamw,sgd", "trainer.max_steps=1", "hydra.sweep.dir=s"
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "s").glob("optimizer=*")) == ["optimizer=adamw", "optimizer=sgd"]


@pytest.mark.slow
def test_several_devices_find_the_own_config_folder(script: Script, tmp_path: Path) -> None:
    option = tmp_path / "my_conf" / "optimizer" / "sgd.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("_target_: torch.optim.SGD\nlr: 0.1\n")
    base = ["model=tiny", "model.drop_rate=0", "tokenizer=byte", "callbacks=minimal", "logger=none", "trainer.precision=32-true"]
    base += ["trainer.accelerator=cpu", "--config-dir", "my_conf", "optimizer=sgd", "trainer.max_steps=3"]
    for name, batch, devices in (("one", 8, 1), ("two", 4, 2)):
        done = script("train.py", *base, f"data.batch_size={batch}", f"trainer.devices={devices}", f"hydra.run.dir={name}")
        assert done.returncode == 0, done.stderr
    one, two = checkpoint(tmp_path / "one")["state_dict"], checkpoint(tmp_path / "two")["state_dict"]
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=1e-5)


def test_a_fused_optimizer_is_checked_before_it_steps(train: Train, tmp_path: Path) -> None:
    fused = ["optimizer=custom", "++optimizer._target_=torch.optim.AdamW", "++optimizer.fused=true"]
    train(*fused, *QUICK, "trainer.max_steps=1")
    from gpt_pretrain.checkpoints.checkpoint_file import write_checkpoint

    content = checkpoint(tmp_path / "run")
    content["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(3)
    write_checkpoint(content, tmp_path / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="optimizer state does not fit"):
        train(*fused, f"resume='{tmp_path / 'run'}'", "trainer.max_steps=2", base=["trainer.accelerator=cpu"])


CALLBACKS = {
    "tests.helpers.own_parts.Wordless": "callbacks.custom.own._target_=tests.helpers.own_parts.Wordless cannot be built: ValueError: no reason",
    "datetime.timedelta": "callbacks.custom.own is of the type timedelta, but must be a lightning.Callback.",
}


@pytest.mark.parametrize("target", CALLBACKS)
@pytest.mark.parametrize("plan", ["true", "false"])
def test_a_callback_that_cannot_be_used_is_found_before_the_run_and_in_a_dry_run(
    train: Train, tmp_path: Path, target: str, plan: str
) -> None:
    with pytest.raises(UserError) as caught:
        train(*QUICK, f"+callbacks.custom.own={{_target_: {target}}}", f"plan={plan}", run_dir=tmp_path / "run")
    assert str(caught.value).startswith(CALLBACKS[target])


def test_the_printed_command_resumes_a_run_with_its_callbacks(script: Script) -> None:
    own = "++callbacks.custom.own={_target_: lightning.pytorch.callbacks.Timer, duration: '00:01:00:00'}"
    done = script("train.py", *TINY_RUN, *QUICK, own, "trainer.max_steps=1", "hydra.run.dir=run one")
    (command,) = re.findall(r"python (train.py resume=.*)", done.stdout)
    assert script(*shlex.split(command)).returncode == 0
