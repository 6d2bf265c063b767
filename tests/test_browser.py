"""TensorBoard and the reports as a browser shows them. Skipped where no Chromium is installed."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, TINY_RUN

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SAMPLE = "Every effort moves you"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason=f"no browser is installed: {', '.join(BROWSERS)}"),
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of two runs, one of which has a sample with markup in it."""
    folder = tmp_path_factory.mktemp("browser")
    words = [*TINY_RUN, "optimizer.lr=1e-3,1e-2", f"data.cache_dir='{folder / 'cache'}'", "hydra.sweep.dir=sweep"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-m", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "sweep"


@pytest.fixture(scope="module")
def tensorboard(sweep: Path) -> Iterator[str]:
    """The address of a TensorBoard that shows the sweep."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(sweep), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        yield next(found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    """A headless Chromium."""
    with playwright.sync_playwright() as driver:
        path = next(found for name in BROWSERS if (found := shutil.which(name)))
        started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: "playwright.Browser") -> Iterator["playwright.Page"]:
    """A page as wide as a laptop."""
    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    opened.set_default_timeout(60_000)
    yield opened
    opened.close()


def test_both_losses_are_in_one_chart(page: "playwright.Page", tensorboard: str) -> None:
    page.goto(f"{tensorboard}#custom_scalars")
    for title in ("train and validation", "every eval_freq steps", "by tokens seen"):
        page.get_by_text(title, exact=True).wait_for()
    chart = page.locator("tf-custom-scalar-multi-line-chart-card").first
    chart.get_by_text(re.compile(r"Matches \(4\)")).wait_for()  # two tags of two runs
    chart.locator("svg").first.wait_for()


def test_each_metric_has_a_card_by_steps_and_by_tokens(page: "playwright.Page", tensorboard: str) -> None:
    page.goto(f"{tensorboard}#timeseries&tagFilter=val%2Floss")
    for tag in ("val/loss", "tokens_seen/val/loss"):
        page.get_by_text(tag, exact=True).first.wait_for()
    for run in ("optimizer.lr=0.001", "optimizer.lr=0.01"):
        page.get_by_text(run, exact=True).first.wait_for()


def test_samples_are_a_table_that_grows(page: "playwright.Page", tensorboard: str) -> None:
    page.goto(f"{tensorboard}#text")
    page.get_by_text("samples over time/text_summary").first.wait_for()
    rows = page.locator("table", has_text="memorised").first.locator("tbody tr")
    assert rows.count() == 2, "one an epoch"
    assert SAMPLE in rows.first.inner_text()


def test_the_loss_figure_is_a_picture(page: "playwright.Page", tensorboard: str) -> None:
    page.goto(f"{tensorboard}#images")
    page.get_by_text("losses", exact=True).first.wait_for()


def test_hparams_compare_the_runs(page: "playwright.Page", tensorboard: str) -> None:
    page.goto(f"{tensorboard}#hparams")
    frame = page.locator("tf-hparams-table-view")
    for head in ("optimizer.lr", "val/best_loss", "eval/train_loss"):
        frame.get_by_text(head, exact=True).first.wait_for()
    for lr in ("0.0010000", "0.010000"):
        frame.get_by_text(lr, exact=True).first.wait_for()
    assert len(set(re.findall(r"\b[2-5]\.\d{4}\b", frame.inner_text()))) >= 2, "losses of both runs"
