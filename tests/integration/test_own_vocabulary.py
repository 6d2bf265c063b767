"""From a raw text in any language to a folder that transformers opens, by way of a vocabulary of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Script = Callable[..., "subprocess.CompletedProcess[str]"]

# Name of a text: some different sentences of it, and the beginning of the text to generate.
TEXTS = {
    "russian": (
        "Утром он вышел из дома и пошёл к реке. Вода была холодная, но {n} лодок уже стояли рядом. «Привет!» — сказал рыбак.\n",
        "Утром он",
    ),
    "japanese": ("朝、彼は家を出て川へ歩いた。水は冷たかったが、{n}隻の舟が岸にあった。「おはよう」と漁師が言った。\n", "朝、彼"),
    "german": ("Früh am Morgen ging er zum Fluß. Das Wasser war kühl, doch {n} Boote lagen am Ufer. »Grüß Gott!«\n", "Früh am"),
    "code": (
        "def boats(count: int = {n}) -> list[str]:\n\treturn [f'boat {{i}}' for i in range(count)]  # Größe, naïve\n\n",
        "def boats",
    ),
}
RUN = ["trainer.max_steps=40", "data.batch_size=16", "optimizer.lr=1e-2", "callbacks=minimal", "logger=none", "compile=false"]
N_TOKENS = 12


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("russian", "tiny"),
        ("japanese", "modern_tiny"),
        pytest.param("german", "modern_tiny", marks=pytest.mark.slow),
        pytest.param("code", "tiny", marks=pytest.mark.slow),
    ],
)
def test_transformers_continues_a_text_in_its_own_vocabulary_alike(script: Script, tmp_path: Path, text: str, model: str) -> None:
    sentence, prompt = TEXTS[text]
    (tmp_path / "text.txt").write_text("".join(sentence.format(n=n * n % 97) for n in range(300)), encoding="utf-8")
    small = [f"model={model}", "model.emb_dim=32", "model.n_layers=2", "model.n_heads=2", "model.context_length=32"]
    cpu = ["trainer.accelerator=cpu", "trainer.precision=32-true"]
    for command in (
        ("-m", "gpt_pretrain", "tokenizer", "text.txt", "out=own", "vocab_size=400"),
        ("train.py", *small, *cpu, *RUN, "data=text", "data.path=text.txt", "tokenizer=own", "hydra.run.dir=run"),
        ("-m", "gpt_pretrain", "export", "checkpoint=run", "out=exported"),
    ):
        done = script(*command)
        assert done.returncode == 0, done.stderr
    greedy = ["sampler=greedy", f"sampler.max_new_tokens={N_TOKENS}", "precision=32-true", "device=cpu"]
    texts = {
        source: script("generate.py", source, f"prompt={prompt}", *greedy).stdout
        for source in ("checkpoint=run", "pretrained=exported")
    }
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported", local_files_only=True)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", local_files_only=True).eval()
    token_ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    continued = theirs.generate(token_ids, attention_mask=torch.ones_like(token_ids), max_new_tokens=N_TOKENS, do_sample=False)
    expected = tokenizer.decode(continued[0], clean_up_tokenization_spaces=False)
    assert texts == dict.fromkeys(texts, f"{expected}\n")
    assert expected.startswith(prompt) and len(set(continued[0].tolist())) > 4
