"""The LM Evaluation Harness gets the same answers from this program's models as from their exports to transformers."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pretrain.checkpoints.export.huggingface import export
from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.errors import UserError
from tests.conftest import tiny_model
from tests.evaluation.test_tasks import DEFINITIONS, make_items, task_definitions, write_lines

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow  # Importing the harness takes many seconds.


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for GPT-2's vocabulary, and the folder `exported` beside them."""
    folder = tmp_path_factory.mktemp("weights")
    model = tiny_model(vocab_size=50257, context_length=64, emb_dim=16, n_layers=1, drop_rate=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # so that predictions are distinct
    torch.save(model.state_dict(), folder / "model.pth")
    export(open_weights(folder / "model.pth", n_heads=4), folder / "exported", tokenizer="gpt2")
    return folder / "model.pth"


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=one, idx=index) for index, one in enumerate(arguments)]


def test_answers_are_those_of_the_export(weights: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from gpt_pretrain.evaluation.harness_model import HarnessModel

    ours = HarnessModel(pretrained=str(weights), n_heads=4, device="cpu", batch_size=1)
    theirs = HFLM(pretrained=str(weights.parent / "exported"), device="cpu", batch_size=1, dtype="float32")
    texts = [str(item["goal"]) for item in make_items("piqa")]
    pairs = [(text, f" {end}") for text in (*texts, "") for end in ("yes it is", "no", "the river ran")]
    asked = instances("loglikelihood", pairs)
    found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], rel=1e-4)
    assert [top for _, top in found] == [top for _, top in expected]
    asked = instances("loglikelihood_rolling", [(text,) for text in (*texts, " ".join(texts), "")])
    found_sums = ours.loglikelihood_rolling(asked)
    assert found_sums == pytest.approx(theirs.loglikelihood_rolling(asked, disable_tqdm=True), rel=1e-4)
    # A prompt and its continuation fit into the context, as transformers needs it.
    settings = {"until": ["\n", " the"], "max_gen_toks": 12, "do_sample": False}
    asked = instances("generate_until", [(text, settings) for text in texts])
    assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)


def test_the_command_of_the_harness_knows_the_model(
    script: Callable[..., "subprocess.CompletedProcess[str]"], weights: Path, tmp_path: Path
) -> None:
    for name in DEFINITIONS:
        write_lines(tmp_path / f"{name}.jsonl", make_items(name))
    task_definitions(tmp_path)
    given = f"pretrained={weights},n_heads=4"
    done = script(
        *("-m", "gpt_pretrain", "lm_eval", "--model", "gpt_pretrain", "--model_args", given, "--tasks", "copa_here,lambada_here"),
        *("--include_path", "definitions", "--device", "cpu"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "copa_here" in done.stdout
    assert "perplexity" in done.stdout


def test_mistakes_are_explained(weights: Path) -> None:
    from gpt_pretrain.evaluation.harness_model import HarnessModel

    with pytest.raises(
        UserError, match=r"^--model_args chekpoint=: there is no such setting of gpt_pretrain\. It has checkpoint"
    ):
        HarnessModel(chekpoint="latest")
    model = HarnessModel(pretrained=str(weights), n_heads=4, device="cpu")
    ended = HarnessModel(pretrained=str(weights), n_heads=4, device="cpu", tokenizer="ids:50257")
    with pytest.raises(UserError, match=r"its tokenizer has no end-of-text token, which this task needs\."):
        ended.eot_token_id  # noqa: B018
    with pytest.raises(UserError, match="a continuation has 65 tokens, but must have 1 to 64"):
        model._loglikelihood_tokens([(None, [1], [2] * 65)])
    with pytest.raises(UserError, match="a continuation has 0 tokens"):
        model._loglikelihood_tokens([(None, [1], [])])
