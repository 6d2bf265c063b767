"""Weights of other programs whose objects share their parts, so that a small file stands for far more than it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pretrain.checkpoints.formats.layouts import from_hf_config
from gpt_pretrain.checkpoints.formats.nanochat_layout import from_nanochat_config
from gpt_pretrain.checkpoints.recognition import file_content
from gpt_pretrain.checkpoints.recognition.file_content import AmbiguousWeightsError, find_weights, read_weights
from gpt_pretrain.system.pickle_rules import InertObject
from tests.helpers.resource_limits import within

WEIGHT = {"wte.weight": torch.zeros(2, 4)}


def module(parts: dict[str, Any], tensors: dict[str, Any], name: str = "net.GPT", **attributes: Any) -> InertObject:
    return InertObject(name, state={"_modules": parts, "_parameters": tensors} | attributes)


def test_modules_that_share_their_parts_are_not_searched_for_all_of_them() -> None:
    parts: dict[str, Any] = {}
    modules = [module(parts, WEIGHT) for _ in range(500)]
    parts |= {str(number): modules[number % 500] for number in range(5000)}
    with within(1, 50):
        assert find_weights(modules[0]) is None


def test_modules_that_share_their_tensors_have_no_names_for_all_of_them() -> None:
    tensors = WEIGHT | {str(number): WEIGHT["wte.weight"] for number in range(5000)}
    modules = {str(number): module({}, tensors) for number in range(500)}
    with within(1, 50):
        assert find_weights(module(modules, tensors)) is None
    found = find_weights(module({"0": modules["0"]}, WEIGHT))
    assert found is not None and len(found.tensors) == 5002


def test_attributes_that_objects_share_are_read_once() -> None:
    settings = {f"setting_{number}": number for number in range(3000)} | {"n_head": 4}
    with within(1, 50):
        found = find_weights({"model": WEIGHT, "more": [InertObject("a.Config", state=settings) for _ in range(2000)]})
    assert found is not None and found.likely_heads == 4


def test_a_list_of_classes_that_settings_share_is_read_to_a_limit() -> None:
    fields = {"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"] * 100_000}
    assert len(from_hf_config(fields)[1]) == 10


@pytest.mark.parametrize("part", ["a", ["a"]])
def test_a_size_that_is_no_number_is_not_repeated_by_another_one(part: Any) -> None:
    with within(0.5, 50):
        _, problems = from_nanochat_config({"hidden_size": 8, "num_attention_heads": 100_000_000, "head_dim": part})
    assert any("head_dim=" in problem for problem in problems)


def test_a_class_with_a_long_name_is_looked_at_once() -> None:
    parts = [InertObject(f"net.{'a' * 900}ReLU{'b' * 900}", state={"eps": 1.0}) for _ in range(5000)]
    with within(1.5, 50):
        found = find_weights(module({}, WEIGHT, more=[*parts, InertObject("net.ReLU")]))
    assert found is not None and found.problems == ["its module has ReLU, but GPT-2 has GELU."]


def test_no_value_of_an_attribute_is_written_out() -> None:
    value: Any = []
    for _ in range(60):
        value = [value, value]
    found = find_weights(module({}, WEIGHT, gelu=InertObject("torch.nn.modules.activation.GELU", state={"approximate": value})))
    assert found is not None and len(found.told["gelu_approximate"]) < 100


def test_the_names_around_many_values_are_not_repeated_for_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_content, "MAX_NAMES", 2_000_000)
    names = [f"{'k' * 200}{number}" for number in range(10)]
    values: Any = dict.fromkeys(map(str, range(9000)), 0)
    tensors = module({}, dict.fromkeys(map(str, range(9000)), WEIGHT["wte.weight"]))
    torch.save(values, tmp_path / "flat.pth")
    assert find_weights(module({"a": tensors}, WEIGHT)) is not None and len(read_weights(tmp_path / "flat.pth").tensors) == 9000
    for name in names:
        values, tensors = {name: values}, module({name: tensors}, {})
    torch.save(values, tmp_path / "nested.pth")
    with within(1, 15):
        assert not read_weights(tmp_path / "nested.pth").tensors
        assert find_weights([module({str(number): tensors}, WEIGHT) for number in range(20)]) is None


@pytest.mark.parametrize("key", ["ema." * 300_000, b"x" * 1_000_000])
def test_a_long_key_is_not_read_for_each_value_below_it(key: str | bytes, tmp_path: Path) -> None:
    torch.save({"a": {key: dict.fromkeys(map(str, range(3000)), 0)}}, tmp_path / "a.pth")
    with within(1.5, 50):
        assert len(read_weights(tmp_path / "a.pth").tensors) == 3000
    with within(1, 50), pytest.raises(AmbiguousWeightsError, match="holds 100 models"):
        find_weights({key: {str(number): WEIGHT | {str(number): 0} for number in range(100)}})
