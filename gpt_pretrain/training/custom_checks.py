"""Check the user's own model, optimizer and schedule before a run."""

from __future__ import annotations

from gpt_pretrain.checkpoints.custom_model import check_model_class
from gpt_pretrain.config.custom_parts import TARGET
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import CUSTOM_KIND
from gpt_pretrain.training.optimization.custom_optimizer import check_optimizer_class
from gpt_pretrain.training.optimization.custom_schedule import check_scheduler_class


def check_custom_model(settings: TrainSettings) -> None:
    """Check the user's own model, and the settings that it does not support. Take the context of its class if none is typed.

    Raises:
        UserError: If the class cannot be used here, or settings ask for what it does not support.
    """
    own = settings.custom.get("model")
    if own is None:
        if settings.model.kind == CUSTOM_KIND and settings.init_from is None:
            raise UserError(
                f"model.kind={CUSTOM_KIND}: this is your own class, which has no name. Add model._target_=package.Class"
            )
        return
    context_length = check_model_class(own)
    if "context_length" not in own and context_length is not None:
        vars(settings.model).update(context_length=context_length)
    refused = {
        "trainer.strategy=fsdp": settings.trainer.strategy == "fsdp" and "whose blocks this program would shard",
        "trainer.activation_checkpointing=true": settings.trainer.activation_checkpointing and "whose blocks would be recomputed",
        "data.respect_documents=true": settings.data.respect_documents and "which gets token ids only, and no positions",
        "export=true": settings.export and "for which transformers has no class",
    }
    if problems := [
        f"{setting} is not possible with your own model, {reason}. Leave it out." for setting, reason in refused.items() if reason
    ]:
        raise UserError(problems)


def check_custom_optimizer(settings: TrainSettings) -> None:
    """Check the user's own optimizer, and note its default learning rate if none is typed.

    Raises:
        UserError: If it cannot be used here.
    """
    if (own := settings.custom.get("optimizer")) is None:
        return
    lr = check_optimizer_class(own)
    if settings.trainer.strategy == "fsdp":
        raise UserError(
            f"optimizer._target_={own[TARGET]}: your own optimizer cannot train a model that is spread over devices, since its "
            "state may not have the shapes of the weights. Choose trainer=ddp."
        )
    if "lr" not in own and lr is not None:
        settings.optimizer.lr = lr


def check_custom_scheduler(settings: TrainSettings) -> None:
    """Check the user's own schedule.

    Raises:
        UserError: If it cannot be used here.
    """
    if (own := settings.custom.get("scheduler")) is not None:
        check_scheduler_class(own)
