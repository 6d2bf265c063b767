"""The settings that are made from frozen dataclasses, and the conversion of composed configs."""

import dataclasses
import pickle

import pytest
from omegaconf import OmegaConf

from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.overrides import find_override
from gpt_pretrain.config.schema import ModelSettings, SamplerSettings, TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.model.config import GPTConfig

SAMPLER = {"max_new_tokens": 5, "temperature": 0.5, "top_k": None, "top_p": 0.9}


def field_names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def test_the_model_settings_are_the_architecture_without_the_vocabulary() -> None:
    assert ["vocab_size", *field_names(ModelSettings)] == field_names(GPTConfig)
    optional = {"gelu_approximate", "kind", "n_kv_heads", "value_embeddings", "bigram_rows"}
    assert OmegaConf.missing_keys(OmegaConf.structured(ModelSettings)) == set(field_names(ModelSettings)) - optional


def test_the_sampler_settings_become_a_sampler_config() -> None:
    settings = to_settings(OmegaConf.create(SAMPLER), SamplerSettings)
    assert SamplerConfig(**vars(settings)) == SamplerConfig(**SAMPLER)  # type: ignore[arg-type]


def test_settings_can_be_sent_to_another_process() -> None:
    settings = to_settings(OmegaConf.create(SAMPLER), SamplerSettings)
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"n_heads": "many"}}, "model.n_heads=many: must be a whole number, such as 10"),
        ({"model": {"vocab_size": 97}}, "model.vocab_size: there is no such setting"),
        ({"sampler": {"top_k": 1.5}}, "sampler.top_k=1.5: must be a whole number, such as 10, or null"),
        ({"data": {"remote": {"speed": 1}}}, "data.remote.speed: there is no such setting"),
        ({"callbacks": {"doctor": {"mood": 1}}}, "callbacks.doctor.mood: there is no such setting"),
    ],
)
def test_unknown_keys_and_wrong_types_are_refused(content: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_settings(OmegaConf.create(content), TrainSettings)


def test_the_last_override_of_a_setting_counts() -> None:
    overrides = ["seed=1", "++resume=a", "-m", "resume=b=c"]
    assert find_override(overrides, "resume") == "b=c"
    assert find_override(overrides, "plan") is None
