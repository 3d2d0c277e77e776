#!/usr/bin/env python3
"""Makes tests/golden/base/quant.json: blocks of every quantisation and the SHA-256 of what gguf-py makes of them.

usage: golden_quant.py      (pip install gguf==0.19.0 numpy)

The bytes of the blocks are random; the f16 scales among them are finite, one of each kind of them is subnormal. Run by hand
when a type is added; the file is committed.
"""
import hashlib
import json
import os

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize

SCALES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2],
          "Q6_K": [208]}  # where the f16 of a block are
BLOCKS = 4
OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "golden", "base", "quant.json")

rng = np.random.default_rng(1)
golden = {}
for name, at in SCALES.items():
    kind = Type[name]
    values, size = GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    for i in at:
        scale = (rng.normal(size=BLOCKS) * 0.1).astype(np.float16)
        scale[0] = 3e-6
        raw[:, i:i + 2] = scale.view(np.uint8).reshape(BLOCKS, 2)
    out = dequantize(raw, kind).astype("<f4").ravel()
    assert out.size == BLOCKS * values and np.isfinite(out).all()
    golden[name] = {"type": int(kind), "values": out.size, "bytes": raw.tobytes().hex(),
                    "sha256": hashlib.sha256(out.tobytes()).hexdigest()}
with open(OUT, "w") as f:
    json.dump(golden, f, indent=1)
    f.write("\n")
