"""Compute the tables of docs/scale.md from the cost formulas: python -m benchmarks.scale [--update-docs]."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from omegaconf import OmegaConf

from gpt_pretrain.model import cluster_costs, costs
from gpt_pretrain.model.cluster_costs import Cluster
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import Parallelism
from gpt_pretrain.tokenizers.base import token_itemsize

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- written by python -m benchmarks.scale --update-docs -->", "<!-- end -->"
MODELS = ("124m", "355m", "774m", "1558m")
DEVICES = (1, 8, 64, 512)
TOKENS = (10**9, 10**10, 10**11, 10**12)
PRECISION = "bf16-mixed"
# H100 SXM in NVIDIA's data sheet (dense bf16; NVLink's 900 GB/s are 450 in each direction), and 400 Gbit/s of InfiniBand per GPU.
H100 = Cluster(flops_per_second=989e12, mfu=0.4, memory=80e9, link=450e9, network=50e9, gpus_per_machine=8)
CONTEXT = 1024  # GPT-2's context_length; conf/ has a shorter one for laptops
# 0.5 million tokens per step, as in GPT-3's smaller models: Brown et al. 2020, arXiv:2005.14165, table 2.1.
STEP_SEQUENCES = 512
MAX_BATCH_SIZE = 16  # sequences; a GPU reaches larger steps by gradient accumulation
WRITE_RATE = 1e9  # bytes/s that one device writes to the file system

Table = list[list[str]]


def model(name: str) -> GPTConfig:
    """Return a model of conf/ with GPT-2's vocabulary and context, without dropout."""
    fields = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "model" / f"gpt2_{name}.yaml"))
    assert isinstance(fields, dict)
    known = {field.name for field in dataclasses.fields(GPTConfig)}
    sizes = {str(key): value for key, value in fields.items() if key in known}
    return GPTConfig(**(sizes | {"vocab_size": 50257, "context_length": CONTEXT, "drop_rate": 0.0}))


def split_step(devices: int) -> tuple[int, int]:
    """Return the batch size of each device and its batches per step."""
    sequences = STEP_SEQUENCES // devices
    batches = -(-sequences // MAX_BATCH_SIZE)
    return sequences // batches, batches


def times() -> Table:
    """Return the table of training times."""
    rows = [["model", "GPUs", "tokens/s", *(f"10^{len(str(tokens)) - 1} tokens" for tokens in TOKENS)]]
    for name in MODELS:
        second = 1 / cluster_costs.compute_seconds(model(name), H100, tokens=1)
        for devices in DEVICES:
            days = [tokens / (second * devices) / cluster_costs.SECONDS_PER_DAY for tokens in TOKENS]
            rows.append([name, str(devices), f"{second * devices:,.0f}", *map(_format_days, days)])
    return rows


def memory() -> Table:
    """Return the table of each GPU's peak memory for a step of STEP_SEQUENCES sequences, by strategy."""
    strategies = [
        Parallelism(devices=devices, activation_checkpointing=recompute) for devices in (1, 8) for recompute in (False, True)
    ]
    strategies += [
        Parallelism(devices=devices, fsdp=True, activation_checkpointing=recompute)
        for recompute in (False, True)
        for devices in DEVICES[1:]
    ]
    strategies = [
        dataclasses.replace(strategy, accumulate_grad_batches=split_step(strategy.devices)[1]) for strategy in strategies
    ]
    names = [strategy.name + (f", {strategy.devices}" if strategy.fsdp else "") for strategy in strategies]
    rows = [["model", *(name.replace("recomputation", "rec.") for name in names)]]
    for name in MODELS:
        peaks = [
            costs.training_memory(
                model(name), batch_size=split_step(strategy.devices)[0], precision=PRECISION, device="cuda", parallelism=strategy
            ).peak
            for strategy in strategies
        ]
        rows.append([name, *(f"{peak / 1e9:.1f}" + "!" * (peak > H100.memory) for peak in peaks)])
    return rows


def steps() -> Table:
    """Return the table of compute and traffic for a step of STEP_SEQUENCES sequences."""
    rows = [
        [
            "model",
            "GPUs",
            "sequences per GPU",
            "compute",
            "DDP traffic",
            "time",
            "of compute",
            "FSDP traffic",
            "time",
            "of compute",
        ]
    ]
    for name in MODELS:
        config = model(name)
        for devices in DEVICES[1:]:
            batch_size, batches = split_step(devices)
            seconds = cluster_costs.compute_seconds(config, H100, tokens=batch_size * batches * config.context_length)
            row = [name, str(devices), f"{batch_size}" + f" x {batches}" * (batches > 1), _format_step_time(seconds)]
            for fsdp in (False, True):
                parallelism = Parallelism(devices=devices, fsdp=fsdp, accumulate_grad_batches=batches)
                sent = cluster_costs.step_traffic(config, precision=PRECISION, parallelism=parallelism).total
                sending = cluster_costs.traffic_seconds(config, H100, precision=PRECISION, parallelism=parallelism)
                row += [f"{sent / 1e9:.1f} GB", _format_step_time(sending), f"{sending / seconds:.0%}"]
            rows.append(row)
    return rows


def checkpoints() -> Table:
    """Return the table of save intervals and their cost if one device writes for all."""
    rows = [
        [
            "model",
            "size",
            "write",
            *(f"{what}, {devices} GPUs" for devices in DEVICES[1:] for what in ("interval", "per hour", "lost")),
        ]
    ]
    for name in MODELS:
        size = costs.checkpoint_bytes(model(name), precision=PRECISION)
        seconds = size / WRITE_RATE
        row = [name, f"{size / 1e9:.1f} GB", f"{seconds:.1f} s"]
        for devices in DEVICES[1:]:
            interval = cluster_costs.best_save_interval(devices, save_seconds=seconds)
            row += [f"{interval / 60:.0f} min", f"{size * 3600 / interval / 1e9:.1f} GB"]
            row += [f"{cluster_costs.lost_time_fraction(devices, save_seconds=seconds):.2%}"]
        rows.append(row)
    return rows


def reading() -> tuple[Table, Table]:
    """Return the rows for the size of the text on disk, and the rows for its read rate."""
    rows = [["", *(f"10^{len(str(tokens)) - 1} tokens" for tokens in TOKENS)]]
    size = token_itemsize(50257)
    rows.append(["on disk", *(f"{tokens * size / 1e9:,.0f} GB" for tokens in TOKENS)])
    for name in MODELS:
        parameters = costs.num_parameters(model(name))
        rows.append(
            [
                f"tokens per parameter, {name}",
                *(
                    f"{tokens / parameters:,.2g}" if tokens / parameters < 10 else f"{tokens / parameters:,.0f}"
                    for tokens in TOKENS
                ),
            ]
        )
    rates = [["", *(f"{devices} GPU{'s' * (devices > 1)}" for devices in DEVICES)]]
    for name in MODELS:
        second = size / cluster_costs.compute_seconds(model(name), H100, tokens=1)
        rates.append([f"read rate, {name}", *(f"{second * devices / 1e6:,.1f} MB/s" for devices in DEVICES)])
    return rows, rates


def _format_days(days: float) -> str:
    if days >= 365:
        return f"{days / 365:.1f} years"
    return f"{days:.1f} days" if days >= 1 else f"{days * 24:.1f} h" if days * 24 >= 1 else f"{days * 1440:.2g} min"


def _format_step_time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def grid(rows: Table) -> str:
    """Format a table as Markdown."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def tables() -> str:
    """Return all tables in the form for docs/scale.md."""
    text, read_rates = reading()
    parts = {
        "Time": times(),
        "Memory of each GPU, GB": memory(),
        "A step": steps(),
        "Checkpoints": checkpoints(),
        "Text": text,
        "Reading": read_rates,
    }
    return "\n\n".join(f"### {title}\n\n{grid(rows)}" for title, rows in parts.items())


def main() -> None:
    """Print the tables, or write them to the page."""
    if "--update-docs" not in sys.argv[1:]:
        print(tables())
        return
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{tables()}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
