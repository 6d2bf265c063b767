"""Let the LM Evaluation Harness evaluate any weights that this program reads: `--model gpt_pretrain --model_args checkpoint=...`.

Source: the interface of models in lm-eval 0.4.13, and the treatment of long texts by its model for transformers.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from gpt_pretrain.checkpoints.pretrained import open_checkpoint, open_weights
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.packing import ScoreRequest
from gpt_pretrain.evaluation.scoring import Scorer, pick_scoring_precision
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.decoding import decoding_model
from gpt_pretrain.generation.prompts import PromptOptions, TextModel, continue_ids
from gpt_pretrain.system.devices import pick_device, prepare_computing
from gpt_pretrain.tokenizers.base import END_OF_TEXT
from gpt_pretrain.tokenizers.splitting import encode_whole

SAMPLED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # settings of generation that are honored

log = logging.getLogger(__name__)

TokenPair = tuple[tuple[str, str] | None, list[int], list[int]]  # the texts; tokens of context and continuation


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A model for the harness.

    Args:
        checkpoint: A run, a checkpoint, or "latest".
        pretrained: Instead of checkpoint, a model on the hub, a folder or a file of weights.
        weights: Of a checkpoint: trained, ema or average.
        n_heads: Number of heads of a bare state dict without one of GPT-2's sizes.
        tokenizer: A name, folder or file; None uses the tokenizer of the weights.
        precision: auto, 32-true or bf16-mixed.
        batch_tokens: Tokens of a batch; None takes a number that suits the device.
        device: auto, cpu, cuda or mps; the harness may name a GPU by its number.
        ignored: The harness's batch sizes in sequences; batch_tokens replaces them.
    """

    def __init__(
        self,
        checkpoint: str = "latest",
        pretrained: str | None = None,
        weights: str = "trained",
        n_heads: int | None = None,
        tokenizer: str | None = None,
        precision: str = "auto",
        batch_tokens: int | None = None,
        device: str | None = None,
        **ignored: Any,
    ) -> None:
        super().__init__()
        if unknown := ignored.keys() - {"batch_size", "max_batch_size"}:
            raise UserError(
                f"--model_args {min(unknown)}=: there is no such setting of gpt_pretrain. It has checkpoint, pretrained,"
                " weights, n_heads, tokenizer, precision, batch_tokens and device."
            )
        prepare_computing()
        if pretrained is not None:
            found = open_weights(pretrained, n_heads=n_heads, kind=weights)
        else:
            found = open_checkpoint(checkpoint, kind=weights)
        self._tokenizer = found.build_tokenizer(tokenizer)
        model = found.build(device=pick_device((device or "auto").partition(":")[0]))
        picked, _ = pick_scoring_precision(precision, model)
        self.scorer = Scorer(model, name=found.name, precision=picked, batch_tokens=batch_tokens)
        self._generator = torch.Generator(device=self.scorer.device).manual_seed(0)
        self._text_model: TextModel | None = None

    @property
    def eot_token_id(self) -> int:
        """The id of the end of text. It is put before a text without a context."""
        if self._tokenizer.eos_id is None:
            raise UserError(f"{self.scorer.name}: its tokenizer has no end-of-text token, which this task needs.")
        return self._tokenizer.eos_id

    @property
    def max_length(self) -> int:
        """The most tokens that the model reads at a time."""
        return self.scorer.context_length

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer, for the caches of the harness."""
        return self._tokenizer.name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the token ids of a text, without any added token."""
        return encode_whole(string, self._tokenizer)

    def _loglikelihood_tokens(self, requests: Sequence[TokenPair], **_: Any) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = []
        for scores in self.scorer.score_groups(self._groups(requests)):
            for one in scores:
                texts = requests[len(answers)][0]
                answers.append((-float(one.losses.sum(dtype=np.float64)), bool(one.is_top.all())))
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, answers[-1])
        return answers

    def _groups(self, requests: Sequence[TokenPair]) -> Iterator[list[ScoreRequest]]:
        """Yield consecutive requests with the same context together, so that the model reads the context once."""
        for _, group in itertools.groupby(requests, key=lambda request: request[1]):
            scored = []
            for _, before, after in group:
                if not 0 < len(after) <= self.max_length:
                    raise UserError(
                        f"{self.scorer.name}: a continuation has {len(after):,} tokens, but must have 1 to {self.max_length:,}."
                    )
                token_ids = np.array((before + after)[-(self.max_length + 1) :], dtype=np.int64)
                scored.append(ScoreRequest(token_ids, len(after)))
            yield scored

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text. Every token is predicted once."""
        pairs: list[TokenPair] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), prefix_token=self.eot_token_id, max_seq_len=self.max_length, context_len=1
            )
            for window in windows:
                pairs.append((None, *make_disjoint_window(window)))
                owners.append(index)
        sums = [0.0] * len(requests)
        for owner, (log_probability, _) in zip(owners, self._loglikelihood_tokens(pairs), strict=True):
            sums[owner] += log_probability
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return a continuation of each text up to one of its stop strings."""
        if self._text_model is None:
            dtype = torch.bfloat16 if self.scorer.precision == "bf16-mixed" else torch.float32
            self._text_model = TextModel(decoding_model(self.scorer.model, dtype=dtype), self._tokenizer)
        texts = []
        for context, settings in (request.args for request in requests):
            chosen = normalize_gen_kwargs(settings)
            stop = handle_stop_sequences(chosen.get("until"), eos=None if self._tokenizer.eos_id is None else END_OF_TEXT)
            sampler = _sampler(chosen)
            prompt_ids = self.tok_encode(context)[-max(1, self.max_length - sampler.max_new_tokens) :] or [self.eot_token_id]
            options = PromptOptions(n_samples=1, seed=0, stop=stop)
            made = continue_ids(self._text_model, prompt_ids, sampler, options, generator=self._generator)
            texts.append(made.text)
            self.cache_hook.add_partial("generate_until", (context, settings), made.text)
        return texts


def _sampler(settings: dict[str, Any]) -> SamplerConfig:
    """Return the sampler for the harness's settings of generation."""
    known = {"until", "max_gen_toks", "do_sample", *SAMPLED}
    if unknown := settings.keys() - known:
        log.warning("%s of this task has no effect on gpt_pretrain.", ", ".join(sorted(unknown)))
    kept = {name: settings[name] for name in SAMPLED if settings.get(name) is not None}
    return SamplerConfig(settings["max_gen_toks"], **(kept if settings.get("do_sample") else {}))
