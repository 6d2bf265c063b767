"""The comparison of runs: tables, warnings and curves."""

from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from gpt_pretrain.commands.compare import comparison_warnings, differing_settings, format_comparison
from gpt_pretrain.runs.charts import curves, drawing
from gpt_pretrain.runs.reader import read_run
from tests.helpers.command_line import gpt_pretrain
from tests.helpers.made_runs import CONFIG, METADATA, make_metrics, make_run

Command = Callable[..., None]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `gpt-pretrain compare` in the test's own folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> None:
        gpt_pretrain("compare", *arguments)

    return run


def row(text: str, head: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(head)]
    return line.removeprefix(head).split()


def test_differences_are_printed_and_curves_are_drawn(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(
        curves, "overlay_figure", lambda *args, real=curves.overlay_figure, **kw: drawn.append((args, kw)) or real(*args, **kw)
    )
    make_run(tmp_path / "a")
    changed = CONFIG.replace("lr: 0.001", "lr: 0.01").replace("somewhere", "elsewhere").replace("n_layers: 4", "n_layers: 6")
    other = {
        "program": {"git": "another"},
        "model": {"parameters": 9_000_000},
        "result": METADATA["result"] | {"best_val_loss": 4.25},
    }
    make_run(tmp_path / "b", config=changed, rows=make_metrics(tokens=400), **other)
    command("a", "b/checkpoints/last.ckpt", "out=both.svg")
    out, err = capsys.readouterr()
    assert err == ""
    assert row(out, "optimizer.lr") == ["0.001", "0.01"]
    assert row(out, "model.n_layers") == ["4", "6"]
    assert row(out, "git") == ["0123456789ab-dirty", "another"]
    assert row(out, "parameters") == ["7,210,112", "9,000,000"]
    assert row(out, "best validation loss") == ["4.5000", "4.2500"]
    assert row(out, "last training loss") == ["2.2500", "2.2500"]
    assert not [line for line in out.splitlines() if line.startswith(("run_dir", "seed", "torch", "text", "device"))]
    (((panels, labels), _),) = drawn
    assert [series.tokens for series in panels["validation"]] == [[400, 800, 1200], [1600, 3200, 4800]]
    assert panels["training"][1].values == read_run(tmp_path / "b").metrics["eval/train_loss"].values
    assert labels == ["1  model.n_layers=4, optimizer.lr=0.001", "2  model.n_layers=6, optimizer.lr=0.01"]
    assert (tmp_path / "both.svg").read_text().startswith("<?xml")


def test_equal_runs_have_no_differences(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / name)) for name in "ab"]
    assert (differing_settings(runs), comparison_warnings(runs)) == ([], [])
    assert "no setting differs" in format_comparison(runs)


def test_runs_with_different_tokenizers_are_compared_by_bits_per_byte(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(drawing, "save_figure", lambda figure, *files, **_options: written.append(figure))
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", tokenizer="byte", config=CONFIG.replace("gpt2", "byte"))
    command("a", "b")
    out, err = capsys.readouterr()
    assert "warning: the runs have different tokenizers" in err and "texts" not in err
    assert row(out, "tokenizer.name") == ["gpt2", "byte"]
    assert row(out, "best bits per byte") == ["1.5000", "1.5000"]
    (axes,) = written[0].axes
    assert axes.get_ylabel() == "bits per byte"
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [[1.5] * 3] * 2


@pytest.mark.parametrize(
    ("fields", "config", "warned"),
    [
        ({"data": {"sha256": "cd" * 32}}, CONFIG, True),
        ({}, CONFIG.replace("train_ratio: 0.9", "train_ratio: 0.8"), True),
        ({"data": {}}, CONFIG, False),  # the hash is unknown, the path is the same
        ({"data": {}}, CONFIG.replace("path: null", "path: book.txt"), True),
        ({"data": {}, "tokenizer": None}, "", False),  # no facts are known
    ],
)
def test_different_validation_texts_give_a_warning(tmp_path: Path, fields: dict[str, object], config: str, warned: bool) -> None:
    runs = [read_run(make_run(tmp_path / "a")), read_run(make_run(tmp_path / "b", config=config, **fields))]
    warnings = comparison_warnings(runs)
    assert bool(warnings) == warned
    assert not warned or "different texts" in warnings[0]


def test_validations_of_different_lengths_give_a_warning(tmp_path: Path) -> None:
    names = {"all": "null", "some": "200"}
    configs = {name: CONFIG.replace("train_ratio: 0.9", f"train_ratio: 0.9\n  val_tokens: {n}") for name, n in names.items()}
    runs = [read_run(make_run(tmp_path / name, config=config)) for name, config in configs.items()]
    (warning,) = comparison_warnings(runs)
    assert "different parts of one text" in warning


def test_shards_of_one_text_with_different_vocabularies_can_be_compared(tmp_path: Path) -> None:
    size = {"name": "shards", "documents": 5, "bytes": 700}
    made = [
        make_run(
            tmp_path / name, tokenizer=name, data=size | {"sha256": sha256}, config=CONFIG.replace("path: null", f"path: {name}")
        )
        for name, sha256 in (("gpt2", "aa" * 32), ("byte", "bb" * 32))
    ]
    runs = [read_run(folder) for folder in made]
    (warning,) = comparison_warnings(runs)
    assert "different tokenizers" in warning
    assert "aaaa" not in format_comparison(runs)


def test_runs_with_missing_files_are_compared_by_the_files_they_have(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a")
    for name, kept in (("recorded", "run.json"), ("configured", "config.yaml"), ("measured", "metrics.csv")):
        (tmp_path / name).mkdir()
        (tmp_path / name / kept).write_bytes((tmp_path / "a" / kept).read_bytes())
    command("recorded", "configured", "measured", "a")
    out, _ = capsys.readouterr()
    assert row(out, "optimizer.lr") == ["-", "0.001", "-", "0.001"]
    assert row(out, "best validation loss") == ["4.5000", "-", "4.5000", "4.5000"]
    assert (tmp_path / "compare.png").exists()
    (tmp_path / "compare.png").unlink()
    command("recorded", "configured")
    assert "no curves to draw" in capsys.readouterr().out
    assert not (tmp_path / "compare.png").exists()


def test_run_folders_may_have_equals_signs_in_their_names(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "optimizer.lr=1,b=${x}")
    make_run(tmp_path / "outputs" / "a")
    command("optimizer.lr=1,b=${x}", "latest")
    assert "outputs/a" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ([], ["0 runs given", "at least two"]),
        (["a"], ["1 run given"]),
        (["a", "nowhere", "out=x.doc"], ["nowhere: no such run folder", "out=x.doc: must end in one of .png"]),
        (["a", "empty"], ["empty: this folder holds no run"]),
        (["a", "s"], ["s: this folder holds runs, each of which is named by itself, such as s/seed=1 s/seed=2"]),
        (["a", "a", "out=missing/x.png"], ["out=missing/x.png: this file cannot be written (No such file or directory)"]),
    ],
)
def test_all_problems_are_reported_together(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str], arguments: list[str], messages: list[str]
) -> None:
    for name in ("a", "s/seed=1", "s/seed=2"):
        make_run(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        command(*arguments)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert all(message in err for message in messages), err


def test_long_values_keep_the_table_narrow(tmp_path: Path) -> None:
    config = CONFIG.replace("Every effort", "x" * 500)
    runs = [read_run(make_run(tmp_path / "a")), read_run(make_run(tmp_path / "b", config=config))]
    assert max(map(len, format_comparison(runs).splitlines()[4:])) < 100


def test_the_table_of_settings_has_an_end(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("".join(f"{name}{number}: 1\n" for number in range(2000)))
    lines = format_comparison([read_run(tmp_path / name) for name in ("a", "b")]).splitlines()
    assert "and 3,500 more" in [line.strip() for line in lines] and len(lines) < 550


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_only_an_earlier_comparison_is_replaced(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    for _ in range(2):
        command("a", "b", f"out=both.{kind}")
    drawing.save_figure(Figure(), tmp_path / f"holiday.{kind}")
    before = (tmp_path / f"holiday.{kind}").read_bytes()
    with pytest.raises(SystemExit):
        command("a", "b", f"out=holiday.{kind}")
    assert f"out=holiday.{kind}: this file exists already, and is not marked as a comparison of runs" in capsys.readouterr().err
    assert (tmp_path / f"holiday.{kind}").read_bytes() == before
