"""Choose the precision, and compile the model, as the machine allows."""

from __future__ import annotations

import logging

import torch

from gpt_pretrain.config.schema import TrainerSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.custom import CustomModel
from gpt_pretrain.model.kernels.matmul_speed import MIN_BF16_SPEEDUP, cpu_bf16_speedup
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.system.environment import use_own_compile_cache
from gpt_pretrain.training.distributed.ranks import broadcast

log = logging.getLogger(__name__)


def pick_precision(settings: TrainerSettings, device: torch.device) -> str:
    """Choose the precision to train in, the same on all ranks, and log it with the reason."""
    precision: str
    precision, reason = broadcast(precision_for(settings.precision, device, deterministic=settings.deterministic))
    log.info("precision %s (%s)", precision, reason)
    return precision


def precision_for(requested: str, device: torch.device, *, deterministic: bool = False) -> tuple[str, str]:
    """Return Lightning's name of the precision to train in, and the reason for it.

    "auto" is bf16-mixed if matrix products are clearly faster in bf16 than in fp32. A CPU's feature flags do not show this, so
    the first start on a CPU takes a short measurement. A deterministic run takes none, since its result may vary.

    Raises:
        UserError: If the device cannot train in the precision.
    """
    if requested == "16-mixed" and device.type != "cuda":
        raise UserError(f"trainer.precision=16-mixed is not possible on {device.type}. Choose auto, 32-true or bf16-mixed.")
    if requested != "auto":
        return requested, "as configured"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "this GPU computes in bf16"
        return "32-true", "this GPU has no bf16"
    if device.type == "cpu" and deterministic:
        return "32-true", "trainer.deterministic=true rules out a measurement"
    if device.type == "cpu":
        faster = (times := cpu_bf16_speedup()) >= MIN_BF16_SPEEDUP
        reason = f"bf16 matrix products are {times:g} times as fast as fp32 on this CPU"
        return ("bf16-mixed", reason) if faster else ("32-true", f"{reason}; bf16-mixed needs {MIN_BF16_SPEEDUP:g}")
    return "32-true", f"the safe choice on {device.type}"


def compile_model(model: LanguageModel, requested: bool | str, device: torch.device) -> tuple[bool, str]:
    """Compile the blocks of a model in place, if the settings ask for it and this machine can.

    Returns:
        Whether they are compiled, and the reason.
    """
    if requested is False:
        return False, "as configured"
    own = isinstance(model, CustomModel)
    if requested == "auto" and (own or device.type != "cuda"):
        return False, "auto leaves your own model as it is" if own else "auto compiles on CUDA only"
    use_own_compile_cache()
    try:
        probe = torch.compile(lambda x: (x + 1).sum())
        probe(torch.ones(8, device=device))
    except Exception as error:  # a C++ compiler, Triton or Python's headers may be missing
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
        log.warning(
            "compile=%s is not possible on this machine, so the model is not compiled (%s)", str(requested).lower(), reason
        )
        return False, "not possible here"
    for block in [model.custom] if isinstance(model, CustomModel) else model.trf_blocks:
        block.compile()
    return True, "as configured" if requested is True else "auto on CUDA"
