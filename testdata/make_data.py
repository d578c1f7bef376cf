#!/usr/bin/env python3
"""Writes `data/sample.parquet` as Hugging Face's `datasets` packs text: Snappy, dictionary pages, several row groups, nulls.

    pip install pyarrow==26.0.1 && testdata/make_data.py
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).resolve().parent / "data"
OUT.mkdir(exist_ok=True)
texts = [None if row % 7 == 3 else f"row {row} says größer {row * row}" for row in range(100)]
table = pa.table({"id": list(range(100)), "text": texts})
pq.write_table(table, OUT / "sample.parquet", compression="snappy", row_group_size=40)
pq.write_table(pa.table({"content": ["x"]}), OUT / "no-text.parquet", compression="snappy")
