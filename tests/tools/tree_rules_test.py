#!/usr/bin/env python3
"""Each rule of tree_rules.py goes red on a tree that breaks it, and stays green on one that does not."""

import contextlib
import io
import pathlib
import tempfile
import unittest

import tree_rules

GOOD = {
    "cli/a.cc": '#include <string>\n#include "CLI/CLI.hpp"\n#include "engine/engine.h"\n#include "server/server.h"\n',
    "cli/tokenize.cc": '#include "engine/model_file/model_file.h"\n#include "engine/tokenizer/tokenizer.h"\n',
    "server/a.cc": '#include "grpcpp/grpcpp.h"\n#include "sluice/v1/inference.pb.h"\n#include "engine/base/mutex.h"\n',
    "engine/model_runner.cc": '#include "engine/step_plan.h"\n#include "kernels/ops.h"\n#include "kernels/core/exec.h"\n',
    "engine/scheduler.cc": '#include "engine/step_plan.h"\n#include "engine/kv/page_table.h"\n',
    "kernels/cpu/a.cc": '#include "kernels/core/dtype.h"\n' + "\n" * 599,
    "kernels/cuda/a.cc": "#include <cuda_runtime.h>\n",
    "kernels/cuda/a.cu": "__global__ void f() {}\nconst KernelModule kModule(f);\n",
    "tests/engine/long_test.cc": "\n" * 2000,
}
BAD = {
    "cli sees the model": ("cli/a.cc", '#include "engine/model/model_config.h"\n'),
    "cli sees kernels": ("cli/a.cc", '#include "kernels/ops.h"\n'),
    "cli sees the inside of the server": ("cli/a.cc", '#include "server/delivery.h"\n'),
    "server sees files": ("server/a.cc", '#include "engine/model_file/model_file.h"\n'),
    "server sees the scheduler": ("server/a.cc", '#include "engine/scheduler.h"\n'),
    "engine sees a backend": ("engine/a.cc", '#include "kernels/cpu/cpu_ops.h"\n'),
    "engine sees the server": ("engine/a.cc", '#include "server/server.h"\n'),
    "kernels see the engine": ("kernels/a.cc", '#include "engine/base/status.h"\n'),
    "scheduler sees the model": ("engine/scheduler.cc", '#include "engine/model/weights.h"\n'),
    "sequence sees kernels": ("engine/sequence.h", '#pragma once\n#include "kernels/core/tensor.h"\n'),
    "runner sees sequences": ("engine/model_runner.cc", '#include "engine/sequence.h"\n'),
    "gRPC in the engine": ("engine/a.cc", "#include <grpcpp/grpcpp.h>\n"),
    "CUDA outside its folder": ("engine/a.cc", "#include <cuda_runtime.h>\n"),
    "std::regex": ("server/a.cc", "#include <regex>\n"),
    "501 lines": ("engine/a.cc", "\n" * 501),
    "601 lines of a kernel": ("kernels/cpu/a.cc", "\n" * 601),
    "101 columns": ("cli/a.cc", "x" * 101 + "\n"),
    "header without guard": ("engine/a.h", "int a;\n"),
    "kernels that nobody loads": ("kernels/cuda/a.cu", "__global__ void f() {}\n"),
    "environment variable": ("engine/a.cc", 'const char* a = getenv("A");\n'),
}


def breaches(files):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        with contextlib.redirect_stdout(io.StringIO()):
            code = tree_rules.main(root)
        return tree_rules.check_tree(root)[0], code


class TreeRulesTest(unittest.TestCase):
    def test_good_tree_is_green(self):
        self.assertEqual(breaches(GOOD), ([], 0))

    def test_each_breach_is_red(self):
        for name, (path, text) in BAD.items():
            with self.subTest(name):
                found, code = breaches({**GOOD, path: text})
                self.assertEqual(len(found), 1, found)
                self.assertTrue(found[0].startswith(path + ":"), found)
                self.assertEqual(code, 1)

    def test_empty_tree_is_red(self):
        self.assertEqual(breaches({}), ([], 1))


if __name__ == "__main__":
    unittest.main()
