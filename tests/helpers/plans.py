"""The plan of a run from its settings, for the tests of plans and checks."""

from __future__ import annotations

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.training.planning.plan import TrainingPlan, make_plan
from gpt_pretrain.training.run_tokenizer import find_tokenizer
from gpt_pretrain.training.start.starting_point import StartingPoint


def plan_run(settings: TrainSettings) -> tuple[TextDataModule, GPTConfig, TrainingPlan]:
    """Prepare the data of a run and return it with the model's architecture and the plan."""
    tokenizer = find_tokenizer(settings, StartingPoint(), set())
    data = TextDataModule(
        settings.data,
        tokenizer,
        context_length=settings.model.context_length,
        seed=settings.seed,
        world_size=int(settings.trainer.devices),
    )
    data.prepare_data()
    config = GPTConfig(vocab_size=tokenizer.vocab_size, **vars(settings.model))
    return data, config, make_plan(settings, data, config)
