"""Small files that would fill the disk, the memory or the day: what they may take follows from their size."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.encoded_batch import LONGEST_DETAIL, MAX_LISTED
from tests.helpers import corpora

GOOD = b'{"text": "hello there"}\n'


def write_bad_records(path: Path, *, lines: int) -> Path:
    """Write an archive of a few kilobytes with thousands of records on each line, none of which has a text."""
    path.write_bytes(gzip.compress(GOOD * 10 + (b"{}" * 9000 + b"\n") * lines))
    assert path.stat().st_size < 2000
    return path


def test_the_list_of_rejected_records_ends_where_it_serves_nobody(tmp_path: Path) -> None:
    file, out = write_bad_records(tmp_path / "a.jsonl.gz", lines=2), tmp_path / "out"
    manifest = corpora.prepare(file, out=out, max_rejected=1.0, val_fraction=0.0)
    assert manifest["rejected"] == {"records": 18_000, "by_reason": {"field missing": 18_000}}
    assert len((out / "rejected.jsonl").read_bytes().splitlines()) == MAX_LISTED == 10_000


def test_a_message_says_how_many_rejected_records_are_listed(tmp_path: Path) -> None:
    file = write_bad_records(tmp_path / "a.jsonl.gz", lines=2)
    with pytest.raises(UserError, match=r"18,000 of 18,010 records .*rejected\.jsonl lists the first 10,000\. "):
        corpora.prepare(file, out=tmp_path / "out", max_rejected=0.1)


def test_a_record_with_half_a_surrogate_pair_in_a_name_is_listed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        GOOD * 10 + b'{"\\ud800": 1}\n' + b"{" + b", ".join(b'"%d%s": 1' % (n, b"x" * 200) for n in range(20)) + b"}\n"
    )
    corpora.prepare(tmp_path / "a.jsonl", out=tmp_path / "out", max_rejected=1.0, val_fraction=0.0)
    first, second = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_bytes().splitlines())
    assert first["detail"].endswith("an object with \ud800") and len(second["detail"]) == LONGEST_DETAIL
