"""Read the model files of llm.c: a header of 256 integers, then all tensors in a fixed order without names.

Its models compute GPT-2's form of GELU and store linear layers as (out, in).

Source: `write_model` and `write_tensors` in llm.c's train_gpt2.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt_pretrain.checkpoints.serialization.tensor_files import StoredTensor
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import open_regular

MAGIC = 20240326
OTHER_MAGICS = {
    20240327: "the inputs and gradients of a test of llm.c, not a model",
    20240328: "the tokenizer of llm.c, not a model",
    20240520: "token ids of llm.c, not a model",
    20240522: "questions of an evaluation of llm.c, not a model",
    20240527: "the optimizer's state of llm.c, not a model. Name the model_*.bin beside it",
    20240803: "a Llama 3 of llm.c. Only GPT-2 models can be read",
}
HEADER_BYTES = 1024
DTYPES = {1: torch.float32, 3: torch.float32, 5: torch.bfloat16}  # by version; version 1 does not pad the vocabulary
MAX_LAYERS = 1000
# The tensors of all blocks, in the order of the file, with their shapes in multiples of emb_dim.
BLOCK_TENSORS = {
    "ln_1.weight": (1,),
    "ln_1.bias": (1,),
    "attn.c_attn.weight": (3, 1),
    "attn.c_attn.bias": (3,),
    "attn.c_proj.weight": (1, 1),
    "attn.c_proj.bias": (1,),
    "ln_2.weight": (1,),
    "ln_2.bias": (1,),
    "mlp.c_fc.weight": (4, 1),
    "mlp.c_fc.bias": (4,),
    "mlp.c_proj.weight": (1, 4),
    "mlp.c_proj.bias": (1,),
}


def is_llmc_file(path: Path) -> bool:
    """Return whether a file begins with one of llm.c's numbers.

    Raises:
        OSError: If the file cannot be read.
    """
    with open_regular(path) as stream:
        return int.from_bytes(stream.read(4), "little") in {MAGIC, *OTHER_MAGICS}


def read_llmc_model(path: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Return the tensors of a model under nanoGPT's names, mapped from the file, and the fields of `GPTConfig`.

    Raises:
        UserError: If the file is something else of llm.c's, or its size is not what the header says.
    """
    with open(path, "rb") as stream:
        header = np.frombuffer(stream.read(HEADER_BYTES).ljust(HEADER_BYTES, b"\0"), dtype="<i4")
    magic, version, context_length, vocab_size, n_layers, n_heads, emb_dim, padded = map(int, header[:8])
    if magic != MAGIC:
        raise UserError(f"{path} holds {OTHER_MAGICS[magic]}.")
    if version not in DTYPES:
        raise UserError(f"{path} is a model of llm.c in version {version} of its format. Versions 1, 3 and 5 can be read.")
    shapes = _shapes(context_length, max(padded, vocab_size), emb_dim, n_layers)
    dtype, sizes = DTYPES[version], [math.prod(shape) for _, shape in shapes]
    size, expected = path.stat().st_size, HEADER_BYTES + sum(sizes) * DTYPES[version].itemsize
    if min(context_length, vocab_size, emb_dim, n_layers, n_heads) < 1 or n_layers > MAX_LAYERS or size != expected:
        raise UserError(
            f"{path} is damaged: by its header, this model of llm.c has {expected:,} bytes, but the file has {size:,}."
        )
    whole = torch.UntypedStorage.from_file(str(path), False, size)
    tensors, offset = {}, HEADER_BYTES
    for (name, shape), count in zip(shapes, sizes, strict=True):
        end = offset + count * dtype.itemsize
        tensor = torch.empty(0, dtype=dtype).set_(whole[offset:end], 0, shape)  # type: ignore[call-overload]
        tensor = tensor[:vocab_size] if name == "wte.weight" else tensor
        tensors[name] = StoredTensor(name, tuple(tensor.shape), dtype, tensor.detach)
        offset = end
    declared = {"context_length": context_length, "vocab_size": vocab_size, "n_layers": n_layers, "n_heads": n_heads}
    return tensors, declared | {"emb_dim": emb_dim, "gelu_approximate": "tanh", "qkv_bias": True, "tie_embeddings": True}


def _shapes(context_length: int, rows: int, emb_dim: int, n_layers: int) -> list[tuple[str, tuple[int, ...]]]:
    """Return the names and shapes of all tensors in the order of the file."""
    blocks = range(min(max(n_layers, 0), MAX_LAYERS))
    return [
        ("wte.weight", (rows, emb_dim)),
        ("wpe.weight", (context_length, emb_dim)),
        *(
            (f"h.{layer}.{name}", tuple(multiple * emb_dim for multiple in shape))
            for name, shape in BLOCK_TENSORS.items()
            for layer in blocks
        ),
        ("ln_f.weight", (emb_dim,)),
        ("ln_f.bias", (emb_dim,)),
    ]
