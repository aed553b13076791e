"""docs/ops.md is what the rule tables say."""

from __future__ import annotations

from make_ops_doc import PAGE, page

from prunec.ir.ops import OPS


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/make_ops_doc.py"


def test_the_page_lists_every_op_once() -> None:
    tables = page().partition("## From PyTorch")[0]
    rows = [line.split("|")[1] for line in tables.splitlines() if line.startswith("| `")]
    listed = [op.strip().strip("`") for row in rows for op in row.split(",")]
    assert sorted(listed) == sorted(OPS)
