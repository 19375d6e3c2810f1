#!/usr/bin/env python3
"""Checks that the tree keeps the rules of docs/architecture.md: file lengths, line lengths and who may include whom.

    tree_rules.py ROOT

Prints each breach as FILE:LINE: what; exit code 1 when there is one.
"""

import fnmatch
import pathlib
import re
import sys

ROOMS = ("bench", "cli", "engine", "kernels", "server", "tests")
SOURCES = (".cc", ".h", ".cu", ".cuh")
MAX_COLUMNS = 100
MAX_LINES = {"kernels": 600, "tests": None}  # of a file; None: free
MAX_LINES_ELSEWHERE = 500

# What the front ends see of the engine.
ENGINE_FRONT = (
    "engine/engine.h", "engine/request.h", "engine/stats.h", "engine/inspect.h", "engine/verify.h",
    "engine/file_diff.h", "engine/quantize.h", "engine/mailbox.h", "engine/resume.h",
    "engine/chat/conversation.h", "engine/chat/chat_encoder.h", "engine/tokenizer/*", "engine/base/*", "engine/sampling/sampling_params.h",
)
# First pattern that fits a file decides which of our headers it may include.
MAY_INCLUDE = (
    ("cli/*", ("cli/*", "server/server.h", "engine/model_file/model_file.h") + ENGINE_FRONT),
    ("server/*", ("server/*",) + ENGINE_FRONT),
    ("engine/*", ("engine/*", "kernels/ops.h", "kernels/core/*")),
    ("kernels/*", ("kernels/*",)),
)
# Scheduling and computing meet only in engine/step_plan.h.
MAY_NOT_INCLUDE = (
    (("engine/scheduler*", "engine/sequence*", "engine/kv/page_*"), ("engine/model/*", "kernels/*")),
    (("engine/model_runner*", "engine/device_runner*", "engine/batch*", "engine/model/*"),
     ("engine/scheduler*", "engine/sequence*")),
)
# Headers of others, and the files that may have them.
CONFINED = (
    (r"(cuda.*|cub/.*|cublas.*|nccl.*)", ("kernels/cuda/*", "bench/*.cu", "tests/kernels/cuda_*")),
    (r"(grpc.*|google/.*|sluice/v1/.*|.*\.pb\.h)",
     ("server/*", "cli/chat_remote.cc", "cli/ctl.cc", "cli/generate_remote.cc", "cli/load_client.cc", "cli/remote.*", "cli/resuming_stream.*", "tests/server/*", "tests/fuzz/request_fuzzer.cc", "bench/*")),
    (r"(regex|ranges|source_location)", ()),
)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
FORBIDDEN_WORDS = re.compile(r"\b(getenv|thread_local|absl::optional)\b")


def fits(path, patterns):
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def check_include(path, header, quoted):
    """What is wrong with `path` including `header`, or None."""
    for pattern, places in CONFINED:
        if re.fullmatch(pattern, header) and not fits(path, places):
            return f"{header} belongs to {', '.join(places) or 'no file'}"
    if not quoted or header.split("/")[0] not in ROOMS:
        return None
    for files, headers in MAY_NOT_INCLUDE:
        if fits(path, files) and fits(header, headers):
            return f"{header}: scheduling and computing meet only in engine/step_plan.h"
    for files, headers in MAY_INCLUDE:
        if fits(path, (files,)) and not fits(header, headers):
            return f"{header} is not for {files}"
    return None


def check_file(path, text):
    """Breaches of one file as (line, what)."""
    room = path.split("/")[0]
    lines = text.splitlines()
    most = MAX_LINES.get(room, MAX_LINES_ELSEWHERE)
    if most is not None and len(lines) > most:
        yield len(lines), f"{len(lines)} lines; at most {most}: split it by noun"
    if path.endswith((".h", ".cuh")) and "#pragma once" not in lines:
        yield 1, "no #pragma once"
    if fnmatch.fnmatchcase(path, "kernels/*.cu") and "KernelModule " not in text:
        yield 1, "no KernelModule: its kernels would be loaded while serving (kernels/cuda/kernel_module.h)"
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_COLUMNS:
            yield number, f"{len(line)} columns; at most {MAX_COLUMNS}"
        include = INCLUDE.match(line)
        if include:
            what = check_include(path, include[2], include[1] == '"')
            if what:
                yield number, what
        elif room != "tests":
            word = FORBIDDEN_WORDS.search(line.split("//")[0])
            if word:
                yield number, f"{word[0]} is not used here"


def check_tree(root):
    """All breaches as text, and the number of files looked at."""
    breaches, count = [], 0
    for room in ROOMS:
        for file in sorted((root / room).rglob("*")):
            if file.suffix not in SOURCES or not file.is_file():
                continue
            path = file.relative_to(root).as_posix()
            count += 1
            breaches += [f"{path}:{line}: {what}" for line, what in check_file(path, file.read_text())]
    return breaches, count


def main(root):
    breaches, count = check_tree(root)
    for breach in breaches:
        print(breach)
    print(f"{count} files, {len(breaches)} breaches")
    return 1 if breaches or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
