"""The settings of `gpt-pretrain prepare`, `tokenizer`, `export`, `report`, `compare` and `leaderboard`, as typed dataclasses.

The help texts of the commands explain them. These are the docstrings of the modules in commands/.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class ExportSettings:
    """All settings of `gpt-pretrain export`."""

    out: str = MISSING  # folder to write
    checkpoint: str = "latest"  # run folder, checkpoint file or other weights; latest: the newest run
    weights: str = "trained"  # trained, ema or average
    n_heads: int | None = None  # attention heads of a bare state dict
    tokenizer: str | None = None  # for weights that do not bring theirs


@dataclass
class InputSettings:
    """The settings of all commands that read a corpus of text."""

    out: str = MISSING  # folder to write
    inputs: list[str] = field(default_factory=list)  # files, directories and globs
    dataset: str | None = None  # instead of inputs: a name or path for the package datasets
    dataset_config: str | None = None  # configuration of the dataset
    dataset_split: str = "train"  # split of the dataset
    text_field: str = "text"  # field or column that holds the text
    as_text: bool = False  # read tables, JSON and HTML as plain text
    document_separator: str | None = None  # between documents of a text file; null: each file is one document
    max_rejected: float = 0.001  # largest fraction of unusable records
    val_fraction: float = 0.01  # fraction of the documents for validation


@dataclass
class VocabularySettings(InputSettings):
    """All settings of `gpt-pretrain tokenizer`."""

    vocab_size: int = 4096  # tokens, with the 256 bytes and the special tokens
    pattern: str = "cl100k"  # how a text is divided into words: as by cl100k_base, or by gpt2
    special_tokens: str = ""  # names of further special tokens, separated by commas
    sample_bytes: int = 50_000_000  # size of the text to train on
    trial: str | None = None  # settings of train.py of the model to find the best size for; null: no trainings
    trial_minutes: float = 10.0  # time for these trainings, in minutes


@dataclass
class PrepareSettings(InputSettings):
    """All settings of `gpt-pretrain prepare`."""

    tokenizer: str = "gpt2"  # gpt2, byte, an encoding of tiktoken, a folder or file with a vocabulary, or a hub model
    shard_tokens: int = 100_000_000  # maximum number of tokens per shard
    val_tokens: int | None = None  # minimum number of tokens for validation, instead of val_fraction
    dedup: str = "none"  # none; exact: drop repeated documents
    max_failed_files: int = 0  # files that may fail before their end; their text is missing then
    workers: int | None = None  # worker processes, per task with an executor; null: one per core
    executor: str | None = None  # datatrove's executor: local, slurm or ray; null: this process and its workers
    tasks: int | None = None  # tasks for the executor; null: one for each file
    slurm_partition: str | None = None  # partition, for executor=slurm
    slurm_time: str = "20:00:00"  # time limit of a task, such as 20h or HH:MM:SS
    report: bool = False  # print statistics and examples
    overwrite: bool = False  # delete the corpus in out first


@dataclass
class ReportSettings:
    """All settings of `gpt-pretrain report`."""

    folders: list[str] = field(default_factory=lambda: ["latest"])  # run or sweep directories


@dataclass
class CompareSettings:
    """All settings of `gpt-pretrain compare`."""

    runs: list[str] = field(default_factory=list)  # run folders, checkpoints in them, or latest
    out: str = "compare.png"  # picture to write: .png, .pdf or .svg


@dataclass
class LeaderboardSettings:
    """All settings of `gpt-pretrain leaderboard`."""

    sources: list[str] = field(default_factory=list)  # results files and folders of runs, in addition to outputs/
    out: str | None = None  # results file to write: .json
