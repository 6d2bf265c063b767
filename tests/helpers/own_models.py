"""Models of a user's own, as the tests of custom models name them."""

from typing import Any

import torch
from torch import Tensor, nn

MARK = torch.zeros(1)


class Recurrent(nn.Module):
    """An embedding, a recurrent network and an output layer, which starts at zero."""

    def __init__(self, vocab_size: int, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocab_size)
        nn.init.zeros_(self.head.weight)

    def forward(self, token_ids: Tensor) -> Tensor:
        hidden, _ = self.rnn(self.embed(token_ids))
        logits: Tensor = self.head(self.drop(hidden))
        return logits


class Encoder(nn.Module):
    """Layers of torch with learned positions, a tied head, a buffer of integers, and rotations that it keeps once computed."""

    def __init__(
        self, vocab_size: int, context_length: int = 32, width: int = 16, causal: bool = True, first: bool = True
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(context_length, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.1, batch_first=first, norm_first=True)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("numbers", torch.arange(3))
        self.causal, self.kept = causal, None

    def forward(self, ids: Tensor) -> Tensor:
        if self.kept is None:  # in whatever mode this is called first
            self.kept = self.positions.weight.detach() * 0 + 1
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]] * self.kept[: ids.shape[1]]
        mask = torch.full((ids.shape[1],) * 2, -torch.inf, device=ids.device).triu(1) if self.causal else None
        logits: Tensor = self.head(self.layer(x, src_mask=mask, is_causal=self.causal))
        return logits


class Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class WithLogits(Recurrent):
    """Returns an object, as the models of transformers do."""

    def forward(self, input_ids: Tensor) -> Any:
        return Output(super().forward(input_ids))


class Padded(Recurrent):
    """Rounds the vocabulary up, as for faster products."""

    def __init__(self, vocab_size: int, width: int = 16) -> None:
        super().__init__(-(-vocab_size // 64) * 64, width)


class Unused(Recurrent):
    """Has a layer that has no part in the logits."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.unused = nn.Linear(4, 4)


class LastOnly(Recurrent):
    """Returns the logits of the last position, as some models do without targets."""

    def forward(self, token_ids: Tensor) -> Tensor:
        return super().forward(token_ids)[:, -1:]


class Pair(Recurrent):
    def forward(self, token_ids: Tensor) -> Any:
        return super().forward(token_ids), None


class Small(Recurrent):
    def __init__(self) -> None:
        super().__init__(100)


class Failing(Recurrent):
    def forward(self, token_ids: Tensor) -> Tensor:
        raise ValueError("no logits today")


class Random(Recurrent):
    """Adds a random number in eval mode, too."""

    def forward(self, token_ids: Tensor) -> Tensor:
        return super().forward(token_ids) + torch.rand(1)


class Probabilities(Recurrent):
    def forward(self, token_ids: Tensor) -> Tensor:
        return super().forward(token_ids).softmax(-1)


class Undefined(Recurrent):
    def forward(self, token_ids: Tensor) -> Tensor:
        return super().forward(token_ids) * torch.nan


class Changing(Recurrent):
    """Writes into the token ids that it is given."""

    def forward(self, token_ids: Tensor) -> Tensor:
        token_ids[token_ids == 3] = 4
        return super().forward(token_ids)


class Future(Recurrent):
    """Has logits of minus infinity, and sees the tokens that it is to predict."""

    def forward(self, token_ids: Tensor) -> Tensor:
        logits = super().forward(token_ids.flip(1)).flip(1)
        logits[:, :, 0] = -torch.inf
        return logits


class Extra(Recurrent):
    """Keeps a number beside its tensors."""

    def get_extra_state(self) -> int:
        return 7

    def set_extra_state(self, state: int) -> None: ...


def two_layers(vocab_size: int) -> nn.Module:
    return nn.Sequential(nn.Embedding(vocab_size, 8), nn.Linear(8, vocab_size))


def nothing(vocab_size: int) -> None:
    return None
