"""Name the role of each parameter of a model. Optimizers choose the learning rate and the update by the role."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gpt_pretrain.model.custom import CustomModel
from gpt_pretrain.model.language_model import LanguageModel

ROLES = ("matrices", "embedding", "head", "vectors")


@dataclass(frozen=True)
class ParameterRole:
    """The role of a parameter.

    Args:
        name: "matrices" for the matrices in the blocks, "embedding", "head" for the output head (even if it is tied to the
            embedding), or "vectors" for biases and norms.
        parts: Rows of each matrix in the parameter. Queries, keys and values are stacked in one parameter.
    """

    name: str
    parts: tuple[int, ...] = ()


def parameter_roles(model: LanguageModel) -> dict[str, ParameterRole]:
    """Return the role of each parameter by the parameter's name, in the model's order."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if isinstance(model, CustomModel):
        return _custom_roles(model, embeddings)
    roles = {}
    for name, parameter in model.named_parameters():
        if parameter is model.head_weight:
            roles[name] = ParameterRole("head")
        elif id(parameter) in embeddings:
            roles[name] = ParameterRole("embedding")
        elif parameter.ndim < 2:
            roles[name] = ParameterRole("vectors")
        else:
            parts = model.config.qkv_rows if name.endswith(".qkv.weight") else (len(parameter),)
            roles[name] = ParameterRole("matrices", parts)
    return roles


def _custom_roles(model: CustomModel, embeddings: set[int]) -> dict[str, ParameterRole]:
    """Return the roles of the parameters of the user's own model.

    The head is the last linear layer with an output for each token. The embeddings are the weights of `nn.Embedding`. The
    matrices are all other parameters of two dimensions. Parameters of other dimensions are updated like vectors.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    head = [layer.weight for layer in linear if layer.out_features == model.config.vocab_size][-1:]
    stacked = {
        id(module.in_proj_weight): (module.embed_dim,) * 3
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None
    }
    roles = {}
    for name, parameter in model.named_parameters():
        if any(parameter is one for one in head):
            roles[name] = ParameterRole("head")
        elif id(parameter) in embeddings:
            roles[name] = ParameterRole("embedding")
        elif parameter.ndim != 2:
            roles[name] = ParameterRole("vectors")
        else:
            roles[name] = ParameterRole("matrices", stacked.get(id(parameter), (len(parameter),)))
    return roles
