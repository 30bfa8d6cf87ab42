#!/usr/bin/env python3
"""Makes the test vectors in tests/io/data/ with gguf-py, an implementation that is not ours.

    python3 -m venv v && v/bin/pip install gguf==0.19.0 safetensors numpy && v/bin/python tests/io/make_vectors.py

ggml_vectors.safetensors  TYPE.raw U8 [rows, bytes] and TYPE.f32 F32 [rows, weights] for every type that
                          rapt reads: random bytes with scales of ordinary size, some of them negative
                          or subnormal.
metadata.gguf             one metadata value of every type, arrays of each kind, and small
                          tensors of several types and ranks.
"""
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

here = pathlib.Path(__file__).parent / "data"
here.mkdir(exist_ok=True)
random = np.random.default_rng(20261123)

# Where the half-precision scales of a block lie: byte offsets.
SCALES = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
    Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}


def scale(i):
    if i % 7 == 5:
        return np.float16(random.integers(1, 1024) * 2.0**-24)  # subnormal
    return np.float16(random.normal() * 2.0 ** random.integers(-10, 2))


tensors = {}
for kind, offsets in SCALES.items():
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = 1024 // weights
    raw = random.integers(0, 256, (blocks, size), dtype=np.uint8)
    for i in range(blocks):
        for at in offsets:
            raw[i, at : at + 2] = np.frombuffer(scale(i).tobytes(), np.uint8)
    raw = raw.reshape(2, -1)
    tensors[f"{kind.name}.raw"] = raw
    tensors[f"{kind.name}.f32"] = gguf.dequantize(raw, kind).astype(np.float32)
for kind in (Type.F16, Type.BF16):
    raw = random.integers(0, 256, (2, 128), dtype=np.uint8)
    values = gguf.dequantize(raw.view(np.float16) if kind == Type.F16 else raw, kind).astype(np.float32)
    values = np.where(np.isnan(values), np.float32(0), values)
    raw = np.where(np.repeat(values == 0, 2, axis=1), np.uint8(0), raw)
    tensors[f"{kind.name}.raw"] = raw
    tensors[f"{kind.name}.f32"] = values
save_file(tensors, here / "ggml_vectors.safetensors")

writer = gguf.GGUFWriter(here / "metadata.gguf", "llama")
writer.add_uint8("test.u8", 200)
writer.add_int8("test.i8", -100)
writer.add_uint16("test.u16", 60000)
writer.add_int16("test.i16", -30000)
writer.add_uint32("test.u32", 4000000000)
writer.add_int32("test.i32", -2000000000)
writer.add_uint64("test.u64", 2**63 + 5)
writer.add_int64("test.i64", -(2**62))
writer.add_float32("test.f32", 0.5)
writer.add_float64("test.f64", 1e-300)
writer.add_bool("test.bool", True)
writer.add_string("test.string", "grüße\n\u4f60")
writer.add_array("test.strings", ["a", "", "gr\u00fc\u00dfe"])
writer.add_array("test.i32s", [1, -2, 3])
writer.add_array("test.f32s", [0.25, -1.5])
writer.add_array("test.bools", [True, False])
writer.add_tensor("matrix", np.arange(6, dtype=np.float32).reshape(2, 3))
writer.add_tensor("cube", np.arange(24, dtype=np.float16).reshape(2, 3, 4))
writer.add_tensor("vector", np.array([1.5, -2.5], dtype=np.float64))
writer.add_tensor("integers", np.array([[1, -1], [7, 300]], dtype=np.int32))
q8 = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
writer.add_tensor("quantised", gguf.quantize(q8, Type.Q8_0), raw_dtype=Type.Q8_0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
