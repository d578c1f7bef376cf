#!/usr/bin/env python3
"""Writes what the Python package `gguf` says about its format: `gguf/types.tsv` and `gguf/sample.gguf`.

    pip install gguf==0.19.0 && testdata/make_gguf.py
"""

from pathlib import Path

import gguf
import numpy as np

OUT = Path(__file__).resolve().parent / "gguf"

rows = [f"{kind.value}\t{kind.name}\t{block}\t{size}" for kind, (block, size) in gguf.GGML_QUANT_SIZES.items()]
(OUT / "types.tsv").write_text("\n".join(rows) + "\n")

writer = gguf.GGUFWriter(OUT / "sample.gguf", "llama4")
writer.add_uint8("a.u8", 200)
writer.add_int8("a.i8", -5)
writer.add_uint16("a.u16", 60000)
writer.add_int16("a.i16", -30000)
writer.add_uint32("a.u32", 4000000000)
writer.add_int32("a.i32", -2000000000)
writer.add_uint64("a.u64", 2**63 + 5)
writer.add_int64("a.i64", -(2**62))
writer.add_float32("a.f32", 0.5)
writer.add_float64("a.f64", -0.1)
writer.add_bool("a.bool", True)
writer.add_string("a.string", "größer")
writer.add_array("a.strings", ["one", "", "drei"])
writer.add_array("a.numbers", [1, 2, 3])
writer.add_tensor("first", np.arange(6, dtype=np.float32).reshape(2, 3))
writer.add_tensor("second", np.arange(5, dtype=np.float16))
blocks = np.zeros((4, 68), dtype=np.uint8)  # 4 rows of 64 values in Q8_0
writer.add_tensor("third", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
