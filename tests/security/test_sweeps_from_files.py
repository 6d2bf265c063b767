"""Settings that a sweep brings: only harmless ones are replayed, and a stranger's sweep does not become the user's own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, OverrideType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt_pretrain.commands.command_line.custom_options import custom_groups
from gpt_pretrain.commands.command_line.stored_overrides import admit_overrides
from gpt_pretrain.config.overrides import override_key
from gpt_pretrain.config.stored_settings import (
    NEVER,
    override_kind,
)
from gpt_pretrain.errors import UserError
from gpt_pretrain.sweeps.folder import own_overrides, sign_sweep
from tests.helpers.hostile_files import SMALL, hostile_run, hostile_sweep
from tests.helpers.resource_limits import within

Script = Callable[..., "subprocess.CompletedProcess[str]"]


RUNS_CODE = {
    "env_set": "+hydra.job.env_set={GIT_CONFIG_COUNT:'1',GIT_CONFIG_KEY_0:core.fsmonitor,GIT_CONFIG_VALUE_0:'touch PWNED'}",
    "hub": "+callbacks.custom.x={_target_:torch.hub.load,repo_or_dir:sweep,model:m,source:local}",
    "import": "+callbacks.custom.x={_target_:sweep.evil.X}",
    "named otherwise": "+callbacks.custom.x={_targ\\_et_:sweep.evil.X}",
    "hidden in a group": "callbacks={custom:{x:{_target_:sweep.evil.X}}}",
    "in a setting": "optimizer.lr={_target_:sweep.evil.X}",
    "search path": "hydra.searchpath=[file://sweep]",
    "launcher": "+hydra.launcher._target_=sweep.evil.X",
    "launcher's shell": "hydra.launcher.setup=[touch PWNED]",
    "sweeper": "hydra.sweeper._target_=sweep.evil.X",
    "sweeper's overrides": "+hydra.sweeper.params={+callbacks.custom.x._target_:sweep.evil.X}",
    "callbacks of Hydra": "+hydra.callbacks.x={_target_:sweep.evil.X}",
    "logging": "hydra.job_logging.handlers.file.class=sweep.evil.X",
    "log file": "hydra.job_logging.handlers.file.filename=/tmp/PWNED",
    "run folder": "hydra.run.dir=/tmp/PWNED",
    "chdir": "hydra.job.chdir=true",
    "a flag": "--config-dir=sweep",
    "config": "-cn=evil",
    "another package": "data@hydra.job.env_set=sample",
    "a config elsewhere": "model=../../sweep/evil",
    "an absolute config": "model=/sweep/evil",
    "several options": "model=[tiny,../sweep/evil]",
    "environment": "start_context=${oc.env:HF_TOKEN}",
    "escaped environment": "start_context=$\\{oc.env\\:HF_TOKEN\\}",
    "quoted environment": "start_context='\\\\${oc.env:HF_TOKEN}'",
    "a deletion": "~hydra.callbacks.run_folder",
    "resume": "resume=elsewhere",
    "custom": "data.remote.options.anon=true",
    "unknown": "unknown.setting=1",
    "no Hydra": "hydra=null",
    "no launcher": "hydra.launcher=null",
    "line feed": "start_context='a\nb'",
    "escape": "start_context='\x1b]0;PWNED\x07'",
    "nested": "start_context=" + "[" * 2000 + "]" * 2000,
    "many jobs": "seed=range(0,1000000000000)",
    "digits": "seed=" + "9" * 5000,
    "glob": "model=glob(*)",
    "wandb": "logger=wandb",
    "url": "data.url=http://127.0.0.1:1/x",
    "path": "data.path=/etc/passwd",
    "one of several paths": "data.path=text.txt,/etc/passwd",
    "source": "data.sources=[{path:/etc,weight:1}]",
    "hub's model": "init_from=someone/theirs",
    "machines": "trainer.num_nodes=50",
    "processes": "trainer.devices=500",
    "workers": "data.num_workers=500",
    "trials": "hydra.sweeper.n_trials=1000000000",
    "tokens": "sampler.max_new_tokens=1000000000",
    "one of several numbers": "eval_iter=1,1000000000",
    "a grid of samples": "callbacks.grid.top_ks=[1,2,3,4,5,6,7,8,9,10,11]",
    "sweeper's class": "hydra.sweeper.params._target_=null",
}


@pytest.mark.parametrize("name", RUNS_CODE)
def test_a_sweep_replays_only_harmless_settings(script: Script, tmp_path: Path, name: str) -> None:
    override = RUNS_CODE[name]
    sweep = hostile_sweep(tmp_path / "sweep", task=[*SMALL, "seed=1,2", override])
    (sweep / "evil.py").write_text("open('PWNED', 'w')\nclass X: pass\n")
    (sweep / "hubconf.py").write_text("open('PWNED', 'w')\ndef m(): pass\n")
    done = script("train.py", f"sweep_resume={sweep}", timeout=60)
    assert done.returncode == 2, done.stdout
    assert "multirun.yaml" in done.stderr
    assert "To use it, add:" in done.stderr or "asks for" in done.stderr
    assert "Traceback" not in done.stderr and "\x1b" not in done.stderr
    assert not (tmp_path / "PWNED").exists() and not list(sweep.glob("*/run.json"))


def test_a_hostile_override_among_hydra_s_own_is_refused_too(script: Script, tmp_path: Path) -> None:
    sweep = hostile_sweep(tmp_path / "sweep", task=[*SMALL, "seed=1"], hydra=[RUNS_CODE["env_set"], RUNS_CODE["search path"]])
    done = script("train.py", f"sweep_resume={sweep}", timeout=60)
    assert done.returncode == 2 and done.stderr.count("To use it, add:") == 2, "all are reported together"


OWN_OPTIONS = {
    "optimizer/own": "_target_: mine.Optimizer",
    "optimizer/inherits": "defaults: [own, _self_]",
    "experiment/inner": "defaults:\n- override /optimizer: own",
    "experiment/outer": "defaults:\n- inner",
    "experiment/absolute": "defaults: [/experiment/outer@_global_]",
    "experiment/inline": "optimizer: {_target_: mine.Optimizer}",
    "experiment/plain": "defaults:\n- override /optimizer: adamw",
    "debug/own": "defaults:\n- override /optimizer: [own]",
}


@pytest.mark.parametrize(
    "override",
    [
        "optimizer=own",
        "optimizer=own,adamw",
        "optimizer='own'",
        'optimizer="own"',
        "optimizer=choice(own,adamw)",
        "optimizer=shuffle(adamw,own)",
        "optimizer=shuffle(choice('own',adamw))",
        "optimizer=sort(own,adamw)",
        "optimizer=inherits",
        "experiment=outer",
        "experiment='absolute'",
        "experiment=choice(plain,inline)",
        "debug=own",
    ],
)
def test_a_stranger_chooses_no_option_that_names_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str) -> None:
    for name, content in OWN_OPTIONS.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / f"{name}.yaml").write_text(content)
    monkeypatch.setattr("gpt_pretrain.commands.command_line.command_words.CONF", tmp_path / "conf")
    plain = hostile_sweep(tmp_path / "plain", task=["experiment=choice(plain,none)", "optimizer=choice(adamw,muon)"])
    assert len(admit_overrides(plain, script="train", typed=set()).kept) == 2
    sweep = hostile_sweep(tmp_path / "sweep", task=[override])
    with pytest.raises(UserError, match="To use it, add:"):
        admit_overrides(sweep, script="train", typed=set())
    assert custom_groups([override], folders=[tmp_path / "conf"]) == {"optimizer"}


def test_a_stranger_chooses_no_such_option_in_a_folder_that_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine/optimizer").mkdir(parents=True)
    (tmp_path / "mine/optimizer/own.yaml").write_text("_target_: mine.Optimizer")
    typed = ["-cd", str(tmp_path / "mine"), "sweep_resume=sweep"]
    monkeypatch.setattr("gpt_pretrain.commands.command_line.stored_overrides.typed_arguments", lambda: typed)
    sweep = hostile_sweep(tmp_path / "sweep", task=["optimizer=own"])
    with pytest.raises(UserError, match="To use it, add: optimizer=own"):
        admit_overrides(sweep, script="train", typed=set())


def test_the_files_of_a_sweep_are_regular_and_in_form(script: Script, tmp_path: Path) -> None:
    for number, content in enumerate(
        ("hydra: {job: {name: train}}", "[1]", "a: [", "hydra:\n  job:\n    name: train\n  overrides: {hydra: 1, task: [2]}")
    ):
        sweep = tmp_path / f"sweep{number}"
        sweep.mkdir()
        (sweep / "multirun.yaml").write_text(content)
        done = script("train.py", f"sweep_resume={sweep}", timeout=60)
        assert done.returncode == 2 and "Traceback" not in done.stderr, content


@pytest.mark.parametrize(
    ("task", "what"),
    [
        (
            [f"callbacks.grid.temperatures=[{','.join(['1'] * 2001)}]"] * 2,
            "overrides of 4,000 commas, more than the limit of 2,000",
        ),
        (["start_context=" + "x" * 9000] * 12, "overrides of 108,168 characters, more than the limit of 50,000"),
        (["seed=1"] * 301, "301 overrides, more than the limit of 300"),
    ],
    ids=["commas", "characters", "overrides"],
)
def test_a_sweep_that_takes_the_parser_long_is_refused(tmp_path: Path, task: list[str], what: str) -> None:
    with within(1, 100), pytest.raises(UserError, match=f"holds {what}"):
        admit_overrides(hostile_sweep(tmp_path, task=task), script="train", typed=frozenset())


def test_a_sweep_without_a_signature_is_resumed(script: Script, tmp_path: Path, story: str) -> None:
    (tmp_path / "text.txt").write_text(story)
    task = [*SMALL, "data.path='text.txt'", "data.cache_dir=elsewhere", "optimizer.lr=1e-3,2e-3", "start_context=A tale"]
    sweep = hostile_sweep(tmp_path / "sweep", task=task, hydra=["hydra.mode=MULTIRUN", "hydra.sweep.dir=sweep"])
    done = script("train.py", f"sweep_resume={sweep}")
    assert done.returncode == 0, done.stderr
    assert "data.cache_dir=elsewhere comes from" in done.stderr
    assert sorted(path.parent.name for path in sweep.glob("*/run.json")) == ["optimizer.lr=0.001", "optimizer.lr=0.002"]
    again = script("train.py", "sweep_resume=sweep")
    assert "Skipped 2 of 2 jobs: already complete" in again.stdout


def test_a_stranger_s_sweep_does_not_become_the_user_s_own(script: Script, tmp_path: Path, story: str) -> None:
    here, private = tmp_path / "here", tmp_path / "private.txt"
    sweep = hostile_sweep(here / "sweep", task=[*SMALL, "data.path=sweep/corpus.txt", "seed=1"])
    for file in (private, sweep / "corpus.txt"):
        file.write_text(story)
    for _ in range(2):
        assert script("train.py", "sweep_resume=sweep", "init_from=null", cwd=here).returncode == 0
        own = own_overrides(sweep, script="train")
        assert {override_key(text) for text in own} == {"hydra.mode", "hydra.sweep.dir", "init_from"}
    (sweep / "corpus.txt").unlink()
    (sweep / "corpus.txt").symlink_to(private)
    refused = script("train.py", "sweep_resume=sweep", cwd=here)
    assert refused.returncode == 2 and "To use it, add: data.path=sweep/corpus.txt" in refused.stderr
    # What the user types for it counts from then on, wherever it leads.
    for typed in ([f"data.path={private}"], []):
        done = script("train.py", "sweep_resume=sweep", *typed, cwd=here)
        assert done.returncode == 0, done.stderr
    assert f"data.path={private}" in " ".join(own_overrides(sweep, script="train")).replace("'", "")
    signed = sweep / "multirun.signature"
    signed.write_text(signed.read_text().replace('["', '["seed=1", "'))
    assert own_overrides(sweep, script="train") == [], "the signature covers which overrides are the user's"


def test_the_user_s_own_sweep_keeps_its_places(script: Script, tmp_path: Path, story: str) -> None:
    text = tmp_path / "elsewhere" / "text.txt"
    text.parent.mkdir()
    text.write_text(story)
    here = tmp_path / "here"
    here.mkdir()
    rates = ["optimizer.lr=1e-3,1e-9", "scheduler.min_lr=1e-6"]  # the second one is refused in its job
    first = script("train.py", "-m", *SMALL, f"data.path={text}", *rates, "hydra.sweep.dir=s", cwd=here)
    assert first.returncode == 1
    again = script("train.py", "sweep_resume=s", "optimizer.lr=1e-3,2e-3", cwd=here)
    assert again.returncode == 0, again.stderr
    settings = (here / "s" / "multirun.yaml").read_text()
    (here / "s" / "multirun.yaml").write_text(settings.replace(str(text), "/etc/passwd"))
    refused = script("train.py", "sweep_resume=s", cwd=here)
    assert refused.returncode == 2 and "/etc/passwd" in refused.stderr, "the signature covers the overrides"


@pytest.mark.parametrize("own", [True, False])
def test_a_sweep_without_the_settings_of_its_search_is_resumed(script: Script, tmp_path: Path, own: bool) -> None:
    search = ["hparams_search=random", "hydra.sweeper.n_trials=1", "hydra.sweeper.params=null", "seed=1,2"]
    sweep = hostile_sweep(tmp_path / "sweep", task=[*SMALL, *search])
    if own:
        sign_sweep(sweep, {"hydra": [], "task": [*SMALL, *search]}, script="train")
    kept = admit_overrides(sweep, script="train", typed=set()).kept
    assert "hydra.sweeper.params=null" in kept


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        *(
            ("profiler", text)
            for text in ("trainer.profiler=pytorch", "trainer={profiler:pytorch}", "trainer.profiler=simple,pytorch")
        ),
        *(("keep", text) for text in ("checkpoint.keep=100", "checkpoint={keep:1}", "checkpoint.keep=1,2")),
    ],
)
def test_a_stranger_s_sweep_is_resumed_without_settings_that_cost(tmp_path: Path, setting: str, text: str) -> None:
    sweep = hostile_sweep(tmp_path / "sweep", task=["seed=1,2", text])
    admitted = admit_overrides(sweep, script="train", typed=set())
    assert not any(setting in kept for kept in admitted.kept)
    assert len(admitted.notices) == 1 and "is not used. To use it, add: " in admitted.notices[0]
    sign_sweep(sweep, {"hydra": [], "task": ["seed=1,2", text]}, script="train")
    assert text in admit_overrides(sweep, script="train", typed=set()).kept


def test_a_sweep_of_texts_asks_for_its_model(script: Script, finished_run: Path, tmp_path: Path) -> None:
    task = [f"checkpoint={finished_run}", "sampler.temperature=0.5,1.0", "sampler.max_new_tokens=2"]
    sweep = hostile_sweep(tmp_path / "sweep", task=task, script="generate")
    refused = script("generate.py", f"sweep_resume={sweep}")
    assert refused.returncode == 2 and f"To use it, add: checkpoint={finished_run}" in refused.stderr
    done = script("generate.py", f"sweep_resume={sweep}", f"checkpoint={finished_run}")
    assert done.returncode == 0, done.stderr
    assert len(list(sweep.glob("*/run.json"))) == 2


def test_texts_are_not_compared_with_a_stranger_s_places(script: Script, finished_run: Path, tmp_path: Path) -> None:
    secret = tmp_path / "outside" / "secret.txt"
    secret.parent.mkdir()
    secret.write_text("x" * 5000)
    data = {"path": str(secret), "cache_dir": str(tmp_path / "cache")}
    run = hostile_run(finished_run, tmp_path / "run", lambda content: content["config"]["data"].update(data))
    done = script("generate.py", "-m", f"checkpoint={run}", "sampler.max_new_tokens=2", "hydra.sweep.dir=s")
    assert done.returncode == 0, done.stderr
    (metadata,) = (tmp_path / "s").glob("*/run.json")
    assert json.loads(metadata.read_text())["measures"]["run_length"] is None
    assert not (tmp_path / "cache").exists()


OVERRIDES = ["seed=1,2", "data.path='a b'", "optimizer.lr=tag(log,interval(1e-4,1e-2))", *RUNS_CODE.values()]


PIECES = [
    "_target_",
    "${x}",
    "$",
    "\\",
    "{",
    "}",
    "[",
    "(",
    ")",
    "'",
    "=",
    "+",
    "~",
    "@",
    ":",
    ",",
    "hydra.",
    "custom",
    "\n",
    "choice(",
]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_a_sweep_replays_is_a_setting_of_this_program(data: st.DataObject, tmp_path: Path) -> None:
    text = data.draw(st.sampled_from([one for one in OVERRIDES if len(one) < 500]))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        text = text[:start] + data.draw(st.sampled_from(PIECES)) + text[start + data.draw(st.integers(0, 4)) :]
    try:
        kept = admit_overrides(hostile_sweep(tmp_path, task=[text]), script="train", typed=set()).kept
    except UserError:
        return
    for override in kept:
        parsed = OverridesParser.create().parse_override(override)
        assert parsed.package is None and parsed.type != OverrideType.DEL
        assert not any(part in override for part in ("${", "_target_")) and "custom" not in parsed.key_or_group
        values = parsed.value().list if isinstance(parsed.value(), ChoiceSweep) else [parsed.value()]
        assert all(override_kind(parsed.key_or_group, str(value), script="train") != NEVER for value in values)
