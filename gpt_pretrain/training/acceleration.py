"""Choices that depend on the machine, each made once and with its reason."""

from __future__ import annotations

import logging

import torch

from gpt_pretrain.config.schema import TrainerSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.model.kernels.matmul_speed import cpu_bf16_is_faster, cpu_bf16_time_ratio
from gpt_pretrain.training.distributed.ranks import broadcast

log = logging.getLogger(__name__)


def pick_precision(settings: TrainerSettings, device: torch.device) -> str:
    """Lightning's name of the precision to train in, the same on all ranks; said with its reason."""
    precision, reason = broadcast(precision_for(settings.precision, device, deterministic=settings.deterministic))
    log.info("precision %s (%s)", precision, reason)
    return precision


def precision_for(wanted: str, device: torch.device, *, deterministic: bool = False) -> tuple[str, str]:
    """Lightning's name of the precision to train in, and why it was chosen.

    "auto" means bf16-mixed where bf16 matrix products are clearly faster than fp32's, which on a CPU is measured in a moment,
    since the processor's feature flags do not tell. A deterministic run does not go by what a clock said.
    """
    if wanted == "16-mixed" and device.type != "cuda":
        raise UserError(f"trainer.precision=16-mixed: {device.type} cannot train in fp16. Choose auto, 32-true or bf16-mixed.")
    if wanted != "auto":
        return wanted, "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "this GPU computes in bf16"
        return "32-true", "this GPU has no bf16"
    if device.type == "cpu" and deterministic:
        return "32-true", "trainer.deterministic=true, so nothing is measured"
    if device.type == "cpu":
        reason = f"bf16 products take {cpu_bf16_time_ratio():.2f} of fp32's time on this CPU"
        return ("bf16-mixed" if cpu_bf16_is_faster() else "32-true"), reason
    return "32-true", f"the safe choice on {device.type}"


def compile_model(model: GPTModel, wanted: bool | str, device: torch.device) -> tuple[bool, str]:
    """Compile a model's blocks in place if that is wanted and possible here.

    Returns:
        Whether they are compiled, and why.
    """
    if wanted is False:
        return False, "as asked"
    if wanted == "auto" and device.type != "cuda":
        return False, "auto compiles on CUDA only"
    try:
        probe = torch.compile(lambda x: (x + 1).sum())
        probe(torch.ones(8, device=device))
    except Exception as error:  # whatever the compiler lacks here: a C++ compiler, Triton, Python's headers
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
        log.warning("compile=%s is impossible here, so training runs uncompiled (%s)", str(wanted).lower(), reason)
        return False, "impossible here"
    for block in model.trf_blocks:
        block.compile()
    return True, "as asked" if wanted is True else "auto on CUDA"
