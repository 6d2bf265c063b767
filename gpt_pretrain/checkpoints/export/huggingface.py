"""Export a model as a folder that transformers opens, and verify it before it appears."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file

from gpt_pretrain.checkpoints.export.export_folder import check_export_folder, check_exportable
from gpt_pretrain.checkpoints.export.model_card import model_card
from gpt_pretrain.checkpoints.export.tokenizer_files import write_tokenizer
from gpt_pretrain.checkpoints.formats.layouts import SAFETENSORS_FILE, gpt2_name, is_linear, to_hf_config
from gpt_pretrain.checkpoints.formats.nanochat_layout import to_nanochat_config, to_nanochat_tensors
from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.checkpoints.weights import Weights
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import num_parameters
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.runs.folder import EXPORTED, display_path
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.files import replacing
from gpt_pretrain.system.formatting import format_si
from gpt_pretrain.system.resources import free_disk

MAX_DIFFERENCE = 1e-4  # between logits
MAX_COMPARED = 1 << 25  # logits; a model of a few bytes for each token may have millions of tokens

log = logging.getLogger(__name__)


def export(weights: Weights, out: Path, *, tokenizer: str | None = None, name: str | None = None) -> float:
    """Write weights as a Hugging Face folder, open it with transformers and compare the logits.

    Args:
        out: The folder, which appears complete or not at all. An earlier export there is replaced.
        tokenizer: The tokenizer's name; None takes the weights' own.
        name: The model's name on its card; None takes the folder's.

    Returns:
        The largest difference between the logits, in fp32.

    Raises:
        UserError: If GPT-2's layout cannot express the model, `out` holds other files, or the logits differ.
    """
    check_exportable(weights.config)
    out = user_path(out).resolve()
    if out == Path.cwd():
        raise UserError(f"{out} is the current folder. An export needs a folder of its own.")
    check_export_folder(out)
    try:
        with replacing(out) as scratch:
            scratch.mkdir(parents=True)
            model = weights.build()
            _write(weights, model, scratch, name=name if name is not None else out.name, tokenizer=tokenizer)
            difference = _compare(model, scratch)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out} cannot be written: {_explain_error(error, weights.config, out)}.") from error
    return difference


def _explain_error(error: OSError | SafetensorError, config: GPTConfig, out: Path) -> str:
    """Return the reason why an export failed. If the disk is full, add the space that the weights need in fp32."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    if (no_space := os.strerror(errno.ENOSPC)) not in reason:
        return reason
    needed, free = (format_si(size, "B") for size in (4 * num_parameters(config), free_disk(out)))
    return f"{no_space}. {SAFETENSORS_FILE} needs about {needed}, and {free} are free there"


def export_run(run_dir: Path) -> None:
    """Export a run's last weights to a folder in the run folder."""
    folder = run_dir / EXPORTED
    difference = export(open_weights(run_dir), folder, name=run_dir.name)
    log.info("Exported to %s: transformers opens it, and its logits differ by at most %.1g", display_path(folder), difference)


def _write(weights: Weights, model: LanguageModel, folder: Path, *, name: str, tokenizer: str | None) -> None:
    """Write all files into an empty folder."""
    config = model.config
    modern = config.kind == "modern"
    state = to_nanochat_tensors(model.state_dict(), config) if modern else _gpt2_tensors(model)
    save_file(state, folder / SAFETENSORS_FILE, metadata={"format": "pt"})
    known = None
    if tokenizer is None and not weights.has_likely_tokenizer:
        log.warning("%s does not name a tokenizer, so the export has none. Add one with tokenizer=FOLDER.", weights.name)
    else:
        known = weights.build_tokenizer(tokenizer)
        write_tokenizer(known, folder, context_length=config.context_length)
    token_name, eos_id = (None, None) if known is None else (known.name, known.eos_id)
    stored: transformers.PreTrainedConfig = (
        transformers.NanoChatConfig(**to_nanochat_config(config, tokenizer=token_name, eos_id=eos_id))
        if modern
        else transformers.GPT2Config(**to_hf_config(config, tokenizer=token_name, eos_id=eos_id))
    )
    stored.save_pretrained(folder)
    transformers.GenerationConfig(bos_token_id=eos_id, eos_token_id=eos_id, pad_token_id=eos_id).save_pretrained(folder)
    card = model_card(config, name=name, n_parameters=model.num_parameters(), tokenizer=token_name, training=weights.content)
    (folder / "README.md").write_text(card, encoding="utf-8")
    # safetensors makes its files readable by their owner only.
    shutil.copymode(folder / "README.md", folder / SAFETENSORS_FILE)


def _gpt2_tensors(model: LanguageModel) -> dict[str, torch.Tensor]:
    """Return the tensors of a GPTModel under the names of GPT2LMHeadModel, which always has biases."""
    config = model.config
    state = {gpt2_name(name): (value.T if is_linear(name) else value).contiguous() for name, value in model.state_dict().items()}
    if not config.qkv_bias:
        zeros = {f"transformer.h.{layer}.attn.c_attn.bias": torch.zeros(3 * config.emb_dim) for layer in range(config.n_layers)}
        state |= zeros
    return state


def _compare(model: LanguageModel, folder: Path) -> float:
    """Return the largest difference between the logits of a model and of its export, on a fixed batch in fp32.

    If the logits are large, rounding alone can exceed MAX_DIFFERENCE. In that case the decision is made in fp64.

    Raises:
        UserError: If the difference is larger than rounding explains.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    generator = torch.Generator().manual_seed(0)
    length = min(model.config.context_length, 64, max(1, MAX_COMPARED // (2 * model.config.vocab_size)))
    token_ids = torch.randint(0, model.config.vocab_size, (2, length), generator=generator)  # (B, T)
    with torch.no_grad():
        difference = exact = float((model(token_ids) - theirs(token_ids).logits).abs().max())
        if not difference <= MAX_DIFFERENCE:
            exact = float((model.double()(token_ids) - theirs.double()(token_ids).logits).abs().max())
    if not exact <= MAX_DIFFERENCE:
        raise UserError(
            f"transformers computes different logits from the exported folder: they differ by up to {difference:.2g}, and "
            f"{MAX_DIFFERENCE:g} is allowed. The export was discarded."
        )
    return difference
