"""TensorBoard and report pages in a browser. Skipped if there is none."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt_pretrain.commands.report import write_report
from gpt_pretrain.runs.samples import Sample
from gpt_pretrain.sweeps.report_page import save_sweep_page
from gpt_pretrain.sweeps.results import read_sweep
from tests.conftest import TINY_RUN
from tests.evaluation.test_page import page_model, page_of
from tests.helpers.fork_server import ForkServer

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SAMPLE = "Every effort moves you"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def sweep(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a sweep of two jobs and return its folder."""
    folder = tmp_path_factory.mktemp("browser")
    overrides = [*TINY_RUN, "optimizer.lr=1e-3,1e-2", f"data.cache_dir='{folder / 'cache'}'", "hydra.sweep.dir=sweep"]
    done = fork_server.run(["train.py", "-m", *overrides], cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "sweep"


@pytest.fixture(scope="module")
def tensorboard(sweep: Path) -> Iterator[str]:
    """Start TensorBoard on the sweep and return its URL."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(sweep), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        yield next(found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def page(browser: "playwright.Browser") -> Iterator["playwright.Page"]:
    """Open a page as wide as a laptop screen."""
    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    opened.set_default_timeout(60_000)
    yield opened
    opened.close()


def test_both_losses_are_in_one_chart(page: "playwright.Page", tensorboard: str) -> None:
    page.goto(f"{tensorboard}#custom_scalars")
    for title in ("train and validation", "every eval_freq steps", "by tokens seen"):
        page.get_by_text(title, exact=True).wait_for()
    chart = page.locator("tf-custom-scalar-multi-line-chart-card").first
    chart.get_by_text(re.compile(r"Matches \(4\)")).wait_for()  # Two tags of two runs.
    chart.locator("svg").first.wait_for()


def test_each_metric_has_a_card_by_step_and_by_tokens_seen(page: "playwright.Page", tensorboard: str) -> None:
    for tag, last_step in (("val/loss", 5), ("tokens_seen/val/loss", 3072)):
        page.goto(f"{tensorboard}?tagFilter=^{tag}$#timeseries")
        page.reload()
        card = page.locator("scalar-card").first
        card.get_by_text("optimizer.lr=0.01").first.wait_for()  # The table below the curves is loaded last.
        shown = "".join(card.inner_text().split())
        assert shown.startswith(tag)
        for run in ("optimizer.lr=0.001", "optimizer.lr=0.01"):
            values = re.search(rf"{re.escape(run)}(\d\.\d{{4}}|\d\.\d+){{2}}{last_step}", shown.replace(",", ""))
            assert values is not None, shown


def test_samples_are_listed_in_a_table(page: "playwright.Page", tensorboard: str) -> None:
    page.goto(f"{tensorboard}#text")
    page.get_by_text("samples over time/text_summary").first.wait_for()
    table = page.locator("table table", has_text="memorized").first  # Inside a table of TensorBoard.
    table.locator("th").first.wait_for()
    assert table.locator("th").all_inner_texts() == ["epoch", "step", "sampler", "memorized", "text"]
    rows = table.locator("tbody tr")
    assert rows.count() == 2, "one per epoch"
    assert SAMPLE in rows.first.inner_text()
    page.get_by_text("python serve.py checkpoint=").first.wait_for()


def test_the_loss_figure_is_shown_as_an_image(page: "playwright.Page", tensorboard: str) -> None:
    page.goto(f"{tensorboard}#images")
    picture = page.locator("tf-image-loader img").first
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 500


def test_the_hparams_tab_compares_the_runs(page: "playwright.Page", tensorboard: str, sweep: Path) -> None:
    page.goto(f"{tensorboard}#hparams")
    page.locator("vaadin-grid-cell-content", has_text="0.010000").first.wait_for()
    cells = [cell for cell in page.locator("vaadin-grid-cell-content").all_inner_texts() if cell.strip()]
    assert cells[2:6] == ["optimizer.lr", "val/best_loss", "val/loss", "eval/train_loss"]
    for job in read_sweep(sweep):
        row = cells[cells.index(job.folder.name) :]
        assert float(row[1]) == float(job.settings["optimizer.lr"])
        assert float(row[2]) == pytest.approx(job.val_loss, abs=1e-4)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_report_fits_the_screen_and_runs_no_script(
    browser: "playwright.Browser", sweep: Path, tmp_path: Path, width: int
) -> None:
    run = tmp_path / "run <b>&"
    shutil.copytree(next(sweep.glob("optimizer.lr=*")), run)
    markup = "<script>document.title = 'forged'</script><img src=x onerror=\"document.title='forged'\"><h1>big</h1>"
    with open(run / "samples.txt", "a", encoding="utf-8") as stream:
        stream.write(str(Sample(9, 99, 999, markup)))
    write_report(run)
    for file in (run / "report.html", sweep / "report.html"):
        page = browser.new_page(viewport={"width": width, "height": 900})
        requested: list[str] = []
        page.on("request", lambda request, requested=requested: requested.append(request.url))
        page.goto(file.as_uri())
        assert [url for url in requested if not url.startswith(("data:", "file:"))] == [], "the page loads something"
        assert len([url for url in requested if url.startswith("file:")]) == 1, "the page is one file"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page is wider than the screen"
        assert page.title() != "forged"
        pictures = page.locator("img")
        assert pictures.count() >= 2
        assert all(pictures.nth(n).evaluate("image => image.naturalWidth") > 100 for n in range(pictures.count()))
        text = page.locator("body").inner_text()
        for expected in ("Every effort moves you", "optimizer.lr", "python train.py", "torch"):
            assert expected in text or expected in page.content(), expected
        if file.parent == run:
            assert markup in text
        page.close()


def test_the_page_of_a_sweep_over_many_settings_fits_a_phone(browser: "playwright.Browser", sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep, tmp_path / "sweep")
    for job in (tmp_path / "sweep").glob("optimizer.lr=*"):
        job.rename(f"{job},optimizer.weight_decay=0.0,model.drop_rate=0.2158")
    page = browser.new_page(viewport={"width": 360, "height": 800})
    page.goto(save_sweep_page(tmp_path / "sweep").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_of_an_evaluation_answers_to_mouse_and_keyboard(
    browser: "playwright.Browser", tmp_path: Path, width: int
) -> None:
    file = tmp_path / "evaluation.html"
    file.write_text(page_of(page_model("Every effort moves you.\n" * 30), page_model("Every effort", name="b")), encoding="utf-8")
    opened, errors = browser.new_page(viewport={"width": width, "height": 844}), list[str]()
    opened.on("console", lambda message: errors.append(message.text))
    opened.goto(file.as_uri())
    note = opened.locator(".note").first
    opened.locator(".surprise i").nth(6).hover()
    assert re.fullmatch(r"e\n\d+\.\d\d nats, \d+\.\d%(\n *\d+\.\d%  .+){5}", note.inner_text())
    opened.locator(".surprise i").first.focus()
    opened.keyboard.press("ArrowRight")
    assert note.inner_text().startswith("v\n")
    opened.keyboard.press("ArrowLeft")
    assert note.inner_text().startswith("E\n")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.close()
    same = [page_model("Every effort\n" * 3, name=name) for name in ("a", "b")]
    file.write_text(page_of(*same), encoding="utf-8")
    opened = browser.new_page(viewport={"width": width, "height": 844})
    opened.on("console", lambda message: errors.append(message.text))
    opened.goto(file.as_uri())
    opened.locator(".surprise i").nth(1).hover()
    assert all(one.startswith("v\n") for one in opened.locator(".note").all_inner_texts())
    opened.locator(".surprise i").first.focus()
    for key, number in (("End", 39), ("Home", 1), ("ArrowRight", 2), ("ArrowDown", 15), ("ArrowUp", 2)):
        opened.keyboard.press(key)
        assert opened.evaluate(f"document.activeElement === document.querySelector('.surprise i:nth-child({number})')"), key
    assert errors == []
    opened.close()
