#!/usr/bin/env python3
"""Measures how fast `sluice serve` loads a model and what memory it takes, beside the limits.

    load_memory.py PROGRAM [--type F16|Q8_0|Q4_0] [--megabytes 500] [--repetitions 5] [--flags "--mlock"] [--json FILE]

Makes a Llama of random weights of about that size, reads it once so that it lies in the page cache, and starts the server on
it several times. Prints the time from the start of the process to its ready line (self-check included), the largest and
the steady resident memory, and the limits: 1.5 s for 500 MB, and tensor bytes x 1.25 + KV memory + 200 MB. Exit code 1
beyond one of them. Standard library only.
"""

import argparse
import datetime
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time

TYPES = {"F16": (1, 1, 2), "Q8_0": (8, 32, 34), "Q4_0": (2, 32, 18)}  # the format's number, values and bytes of a block
WIDTH, FFN, HEADS, KV_HEADS, VOCABULARY, CONTEXT = 1024, 2816, 16, 8, 32000, 2048
KV_MEMORY = "64M"
SECONDS_FOR_500_MB = 1.5
ALIGNMENT = 32
BUSY_LIMIT = 0.05  # figures taken while others used more of the machine are not worth recording


def small_numbers(count, spread=random.Random(1)):
    """F16 values between 0.0001 and 0.03 of either sign: random bytes, with exponents from a table."""
    table = bytes((byte & 0x83) | 0x10 | (byte & 0x0C) for byte in range(256))
    words = bytearray(2 * count)
    words[0::2] = spread.randbytes(count)
    words[1::2] = spread.randbytes(count).translate(table)
    return bytes(words)


def matrix(kind, rows, cols):
    if kind == "F16":
        return small_numbers(rows * cols)
    _, values, size = TYPES[kind]
    blocks = rows * cols // values
    stored = bytearray(random.Random(2).randbytes(blocks * size))
    scales = small_numbers(blocks)
    stored[0::size], stored[1::size] = scales[0::2], bytes(byte & 0x87 for byte in scales[1::2])
    return bytes(stored)


def key(name, kind, payload):
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + payload


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def write_model(stream, kind, megabytes):
    """A GGUF file of version 3. Returns the bytes of all tensors."""
    number, values, size = TYPES[kind]
    head_size = WIDTH // HEADS
    layer = {"attn_q": (WIDTH, WIDTH), "attn_k": (KV_HEADS * head_size, WIDTH), "attn_v": (KV_HEADS * head_size, WIDTH),
             "attn_output": (WIDTH, WIDTH), "ffn_gate": (FFN, WIDTH), "ffn_up": (FFN, WIDTH), "ffn_down": (WIDTH, FFN)}
    of_layer = sum(rows * cols for rows, cols in layer.values()) * size // values
    of_embedding = VOCABULARY * WIDTH * size // values
    layers = max(1, round((megabytes * 1e6 - of_embedding) / of_layer))
    keys = [key("general.architecture", 8, text("llama"))]
    for name, count in (("context_length", CONTEXT), ("embedding_length", WIDTH), ("block_count", layers), ("feed_forward_length", FFN),
                        ("attention.head_count", HEADS), ("attention.head_count_kv", KV_HEADS), ("rope.dimension_count", head_size)):
        keys.append(key("llama." + name, 4, struct.pack("<I", count)))
    keys.append(key("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)))
    tensors = [("token_embd.weight", (VOCABULARY, WIDTH))]
    for i in range(layers):
        tensors.append((f"blk.{i}.attn_norm.weight", (WIDTH,)))
        tensors.append((f"blk.{i}.ffn_norm.weight", (WIDTH,)))
        tensors += [(f"blk.{i}.{name}.weight", shape) for name, shape in layer.items()]
    tensors.append(("output_norm.weight", (WIDTH,)))
    ones = struct.pack("<f", 1.0) * WIDTH
    made = {shape: matrix(kind, *shape) for _, shape in tensors if len(shape) == 2}
    records, offset = b"", 0
    for name, shape in tensors:
        bytes_ = len(ones if len(shape) == 1 else made[shape])
        records += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        records += struct.pack("<IQ", 0 if len(shape) == 1 else number, offset)
        offset += -(-bytes_ // ALIGNMENT) * ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + records
    stream.write(head + bytes(-len(head) % ALIGNMENT))
    total = 0
    for name, shape in tensors:
        stored = ones if len(shape) == 1 else made[shape]
        stream.write(stored + bytes(-len(stored) % ALIGNMENT))
        total += len(stored)
    stream.flush()
    return total


def resident(pid):
    """Largest and current resident bytes, and seconds of processor time."""
    with open(f"/proc/{pid}/status") as status:
        values = dict(line.split(":", 1) for line in status)
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(") ", 1)[1].split()
    processor = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return *(int(values[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS")), processor


def ticks_of_all():
    with open("/proc/stat") as stat:
        fields = [int(field) for field in stat.readline().split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


def start_once(program, path, flags):
    busy, all_ = ticks_of_all()
    start = time.monotonic()
    server = subprocess.Popen([program, "serve", "--model", path, "--listen", "127.0.0.1:0", "--kv-memory", KV_MEMORY,
                               "--log-level", "error", *flags], stdout=subprocess.PIPE, text=True)
    line = server.stdout.readline()
    seconds = time.monotonic() - start
    if not line.startswith("ready"):
        server.wait()
        sys.exit(f"the server did not become ready: {line}")
    peak, steady, processor = resident(server.pid)
    busy_after, all_after = ticks_of_all()
    ticks = processor * os.sysconf("SC_CLK_TCK")
    others = max(0.0, busy_after - busy - ticks) / max(1, all_after - all_)
    server.terminate()
    server.wait()
    number, unit = re.search(r"tokens \(([\d.]+) (B|[KMG]iB)\)", line).groups()
    kv_bytes = float(number) * 1024 ** {"B": 0, "KiB": 1, "MiB": 2, "GiB": 3}[unit]
    return {"seconds": seconds, "peak": peak, "steady": steady, "kv": kv_bytes, "others": others, "processor": processor}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--type", choices=TYPES, default="F16")
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--flags", default="", help="further flags of the server, as one text")
    parser.add_argument("--json", help="append the figures to this file as one line")
    arguments = parser.parse_args()
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        tensor_bytes = write_model(file, arguments.type, arguments.megabytes)
        with open(file.name, "rb") as warm:
            while warm.read(1 << 24):
                pass
        runs = [start_once(arguments.program, file.name, arguments.flags.split()) for _ in range(arguments.repetitions)]
    best = min(runs, key=lambda run: run["seconds"])
    seconds_limit = SECONDS_FOR_500_MB * tensor_bytes / 500e6
    memory_limit = tensor_bytes * 1.25 + best["kv"] + 200e6
    peak, steady = max(run["peak"] for run in runs), max(run["steady"] for run in runs)
    print(f"{arguments.type}, {tensor_bytes / 1e6:.0f} MB of tensors, KV {best['kv'] / 1e6:.0f} MB {arguments.flags}")
    print("ready after " + ", ".join(f"{run['seconds']:.2f}" for run in runs) + f" s: best {best['seconds']:.2f} s, limit {seconds_limit:.2f} s "
          f"({best['processor']:.2f} s of processor time; others used {100 * best['others']:.0f} % of the machine)")
    print(f"resident: peak {peak / 1e6:.0f} MB, steady {steady / 1e6:.0f} MB, limit {memory_limit / 1e6:.0f} MB")
    if arguments.json and best["others"] > BUSY_LIMIT:
        print(f"not recorded: others used more than {100 * BUSY_LIMIT:.0f} % of the machine")
    elif arguments.json:
        with open(arguments.json, "a") as out:
            out.write(json.dumps({
                "date": datetime.date.today().isoformat(), "command": "load_memory.py " + " ".join(sys.argv[2:]), "type": arguments.type,
                "tensor_mb": round(tensor_bytes / 1e6), "kv_mb": round(best["kv"] / 1e6), "ready_s": [round(run["seconds"], 3) for run in runs],
                "limit_s": round(seconds_limit, 2), "processor_s": round(best["processor"], 2), "peak_mb": round(peak / 1e6), "steady_mb": round(steady / 1e6),
                "limit_mb": round(memory_limit / 1e6), "others_percent": round(100 * best["others"], 1)}) + "\n")
    return 1 if best["seconds"] > seconds_limit or peak > memory_limit else 0


if __name__ == "__main__":
    sys.exit(main())
