"""The engine continues many texts at once: each step adds a token to every text, and new texts join at the next step.

A text depends only on its own request, and not on other texts. It has its own keys and values and its own random numbers, and the
rows of matrix products do not influence each other (see `PackedLinear`).

Shapes: B texts in a step, V vocab_size.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.continued_text import ContinuedText
from gpt_pretrain.generation.prompts import TextModel
from gpt_pretrain.generation.sampling import sample_next, tokens_seen
from gpt_pretrain.generation.token_scores import TokenScore, score_tokens
from gpt_pretrain.model.kv_cache import KVCache, RowCaches
from gpt_pretrain.serving.compute_thread import ComputeThread
from gpt_pretrain.serving.requests import (
    OUT_OF_TIME,
    STOPPED,
    CompletionRequest,
    QueuedText,
    QueueFullError,
    ServingLimits,
    SharedPrompt,
    Update,
)

FAILED = "The server could not continue this text."

log = logging.getLogger(__name__)


class TextRow:
    """A text that is being continued.

    Args:
        job: Its job.
        cache: Keys and values of its tokens except the last one; None for a model without a cache.
        logits: The logits for its next token, (1, V).
    """

    def __init__(self, job: QueuedText, cache: KVCache | None, logits: Tensor) -> None:
        request = job.request
        self.job, self.cache, self.logits = job, cache, logits
        self.made = ContinuedText(job.model.tokenizer, max_new_tokens=request.sampler.max_new_tokens, stop=request.stop)
        self.prompt = torch.tensor([request.prompt_ids], device=job.model.device)
        self.seen = None
        if request.sampler.repetition_penalty != 1:
            self.seen = tokens_seen(self.prompt, job.model.decoder.config.vocab_size)
        self.scores: list[TokenScore] = []
        self.n_reported = 0
        self.prompt_scores = job.prompt.scores

    @property
    def is_over(self) -> bool:
        """True if the text is complete or cancelled."""
        return self.made.finish_reason is not None or self.job.is_cancelled

    def add_token(self) -> None:
        """Choose the next token from the logits, and report the text that can no longer change."""
        job, made = self.job, self.made
        text = ""
        if made.finish_reason is None:
            banned = job.model.banned
            allowed = self.logits.index_fill(-1, banned, float("-inf")) if len(banned) else self.logits
            new = sample_next(allowed, job.request.sampler, seen=self.seen, generator=job.generator)  # (1,)
            if self.seen is not None:
                self.seen.scatter_(1, new[:, None], True)
            if job.request.logprobs is not None:
                self.scores += score_tokens(self.logits, new.tolist(), count=job.request.logprobs, banned=banned)
            text = made.add(int(new))
        self._report(text)

    def next_input(self) -> Tensor:
        """Return the model's next input: the last token, (1, 1), or the whole text, (1, T), for a model without a cache."""
        device = self.prompt.device
        if self.cache is None:
            return torch.cat([self.prompt, torch.tensor([self.made.token_ids], device=device)], dim=1)
        return torch.tensor([[self.made.token_ids[-1]]], device=device)

    def _report(self, text: str) -> None:
        shown = self.made.n_shown if self.scores else 0
        first, self.n_reported = self.n_reported, shown
        if not (text or self.prompt_scores or self.made.finish_reason or shown > first):
            return
        update = Update(
            text,
            tuple(self.scores[first:shown]),
            tuple(self.made.offsets[first:shown]),
            self.prompt_scores,
            self.made.finish_reason,
            len(self.made.token_ids),
        )
        self.prompt_scores = ()
        self.job.listener(update)


class Engine:
    """Continues texts in a thread of its own.

    Args:
        models: The models by name.
        limits: Limits on the number of texts.
        thread: The thread that loaded the models. None starts a new one.

    Attributes:
        counts: Totals since the start: texts finished, failed and cancelled, and tokens read and generated.
    """

    def __init__(self, models: Mapping[str, TextModel], limits: ServingLimits, *, thread: ComputeThread | None = None) -> None:
        self.models, self.limits = models, limits
        self.counts = dict.fromkeys(("finished", "failed", "cancelled", "rejected", "prompt_tokens", "new_tokens", "steps"), 0)
        self._waiting: deque[QueuedText] = deque()
        self._rows: list[TextRow] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = thread or ComputeThread()
        self._running: Future[None] | None = None

    def start(self) -> None:
        """Begin to continue texts."""
        self._running = self._thread.submit(self._run)
        self._running.add_done_callback(_report_failure)

    def stop(self) -> None:
        """End after the current step, and notify all clients."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._running is not None:
            wait([self._running])

    @property
    def load(self) -> tuple[int, int]:
        """The number of texts that are being continued, and the number of waiting texts."""
        return len(self._rows), len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """True while texts are being continued."""
        return self._running is not None and not self._running.done() and not self._stopping

    def submit(self, requests: Sequence[CompletionRequest], listeners: Sequence[Callable[[Update], None]]) -> list[QueuedText]:
        """Queue all texts, or none of them.

        Args:
            requests: The texts. Consecutive requests with the same prompt and model share its computation.
            listeners: A listener for each request.

        Raises:
            QueueFullError: If they do not fit into the queue.
        """
        jobs: list[QueuedText] = []
        pairs = zip(requests, listeners, strict=True)
        for _, same in groupby(pairs, key=lambda pair: (pair[0].model, pair[0].prompt_ids, pair[0].scores_prompt)):
            group = list(same)
            prompt = SharedPrompt(uses=len(group))
            jobs += [
                QueuedText(one, self.models[one.model], prompt, listener, seconds=self.limits.seconds) for one, listener in group
            ]
        with self._changed:
            free = self.limits.rows + self.limits.queue - len(self._rows) - len(self._waiting)
            if self._stopping or len(jobs) > free:
                self.counts["rejected"] += 1
                raise QueueFullError
            self._waiting += jobs
            self._changed.notify()
        return jobs

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping or self._waiting or self._rows)
                    if self._stopping:
                        break
                self._step()
        for job in [*(row.job for row in self._rows), *self._waiting]:
            job.listener(Update(error=STOPPED))

    def _step(self) -> None:
        self._drop_ended()
        while len(self._rows) < self.limits.rows and (job := self._next_job()) is not None:
            self._guarded([job], partial(self._begin, job))
            if self._rows[:-1]:  # After each prompt, the other texts get their next token.
                break
        for _, same in groupby(sorted(self._rows, key=lambda row: row.job.request.model), lambda row: row.job.request.model):
            rows = [row for row in same if not row.is_over and row.made.token_ids]
            if rows:
                self._guarded([row.job for row in rows], partial(self._advance, rows))
        self._drop_ended()

    def _next_job(self) -> QueuedText | None:
        with self._changed:
            return self._waiting.popleft() if self._waiting else None

    def _begin(self, job: QueuedText) -> None:
        """Read a prompt, and add the first token."""
        prompt, request, decoder = job.prompt, job.request, job.model.decoder
        if prompt.logits is None:
            token_ids = torch.tensor([request.prompt_ids], device=job.model.device)
            capacity = len(request.prompt_ids) + request.sampler.max_new_tokens
            prompt.cache = decoder.new_cache(1, capacity=capacity) if decoder.has_cache else None
            if request.scores_prompt:
                prompt.scores, prompt.logits = self._score_prompt(job, token_ids, prompt.cache)
            else:
                prompt.logits = decoder.next_logits(token_ids, cache=prompt.cache)
            self.counts["prompt_tokens"] += len(request.prompt_ids)
        prompt.uses -= 1
        cache = prompt.cache if prompt.cache is None or prompt.uses == 0 else prompt.cache.copy()
        row = TextRow(job, cache, prompt.logits)
        self._rows.append(row)
        row.add_token()
        self.counts["new_tokens"] += len(row.made.token_ids)

    def _score_prompt(self, job: QueuedText, token_ids: Tensor, cache: KVCache | None) -> tuple[tuple[TokenScore, ...], Tensor]:
        ids, count = job.request.prompt_ids, job.request.logprobs or 0
        scores = [TokenScore(ids[0], None)]
        for logits in job.model.decoder.prompt_logits(token_ids, cache=cache):
            if targets := ids[len(scores) : len(scores) + len(logits)]:
                scores += score_tokens(logits, targets, count=count, banned=job.model.banned)
        return tuple(scores), logits

    def _advance(self, rows: list[TextRow]) -> None:
        """Add a token to each of some texts of the same model."""
        decoder = rows[0].job.model.decoder
        caches = [row.cache for row in rows if row.cache is not None]
        if len(caches) == len(rows):
            logits = decoder.next_logits(torch.cat([row.next_input() for row in rows]), cache=RowCaches(caches))  # (B, V)
        else:
            logits = torch.cat([decoder.next_logits(row.next_input()) for row in rows])
        for row, own in zip(rows, logits.tensor_split(len(rows)), strict=True):
            row.logits = own
            self._guarded([row.job], row.add_token)
        self.counts["new_tokens"] += len(rows)
        self.counts["steps"] += 1

    def _drop_ended(self) -> None:
        """Remove the texts that are complete, cancelled or out of time, from the rows and from the queue."""
        now = time.monotonic()
        with self._changed:
            jobs = [*(row.job for row in self._rows if row.made.finish_reason is None), *self._waiting]
            late = [job for job in jobs if now > job.deadline and not job.is_cancelled]
        for job in late:
            self._fail(job, OUT_OF_TIME)
        with self._changed:
            self.counts["finished"] += sum(row.made.finish_reason is not None for row in self._rows)
            self.counts["cancelled"] += sum(job.is_cancelled and not job.has_failed for job in jobs)
            self._rows = [row for row in self._rows if not row.is_over]
            self._waiting = deque(job for job in self._waiting if not job.is_cancelled)

    def _guarded(self, jobs: Sequence[QueuedText], work: Callable[[], None]) -> None:
        """Do some work for jobs. If it fails, the jobs end with an error."""
        try:
            work()
        except UserError as error:
            for job in jobs:
                self._fail(job, " ".join(error.problems))
        except Exception:  # The other texts must go on, whatever has failed.
            log.exception("A step of the server failed.")
            for job in jobs:
                self._fail(job, FAILED)

    def _fail(self, job: QueuedText, error: str) -> None:
        if not job.is_cancelled:
            job.is_cancelled = job.has_failed = True
            self.counts["failed"] += 1
            job.listener(Update(error=error))


def _report_failure(running: Future[None]) -> None:
    if (error := running.exception()) is not None:
        log.error("The server cannot continue texts any more.", exc_info=error)
