#!/usr/bin/env python3
"""Makes tests/golden/quantize: values, and the blocks that the gguf package (gguf.quants, numpy) makes of them.

    python3 -m venv venv && venv/bin/pip install gguf==0.19.0 numpy
    venv/bin/python tests/golden/quantize/make_blocks.py tests/golden/quantize

values.f32 holds blocks of 32 values, all finite and of a scale that a half holds; TYPE.bin what a file of that type stores of
them. Left out are blocks whose scale is so small that its inverse is infinite, where the format's reference is undefined, and
blocks of zeros of both signs, where numpy and the reference in C differ in the sign of the scale.
"""

import pathlib
import sys

import gguf
import numpy as np

TYPES = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


def blocks():
    rng = np.random.default_rng(20)
    for scale in (1e-3, 0.02, 1.0, 300.0):
        for _ in range(8):
            yield rng.normal(0, scale, 32)
    for _ in range(8):
        yield rng.standard_t(2, 32)
    for exponent in range(-35, 5, 2):
        yield rng.normal(0, 1, 32) * 10.0 ** exponent
    for value in (0.0, 1.0, -1.0, 0.1, -65504.0, 65504.0, 1e-7, 6e-8, -5e-7):
        yield np.full(32, value)
    yield -np.abs(rng.normal(0, 1, 32))
    yield np.abs(rng.normal(0, 1, 32)) + 10
    yield np.arange(32) - 16.0
    yield (np.arange(32) - 15.5) * 2  # halves between quants
    yield np.where(np.arange(32) % 2 == 0, 4.0, -4.0)  # equal magnitudes: the first decides
    yield np.where(np.arange(32) % 2 == 0, -4.0, 4.0)
    yield np.where(np.arange(32) == 5, 60000.0, 1e-40)  # subnormal values beside a large one
    yield np.where(np.arange(32) == 31, -1.0, 0.0)
    for step in (127.0, 8.0, 16.0, 15.0, 31.0):  # multiples of half a quant of each type
        yield np.concatenate([[step], np.arange(31) / 2 - 7.5])
        yield np.concatenate([[-step], np.arange(31) / 2 - 7.5])


def main(out):
    values = np.stack([np.asarray(block, dtype=np.float32) for block in blocks()])
    assert np.isfinite(values).all()
    values.tofile(out / "values.f32")
    for name in TYPES:
        stored = gguf.quants.quantize(values, getattr(gguf.GGMLQuantizationType, name))
        assert np.isfinite(gguf.quants.dequantize(stored, getattr(gguf.GGMLQuantizationType, name))).all(), name
        stored.tofile(out / f"{name}.bin")
    print(f"{len(values)} blocks")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
