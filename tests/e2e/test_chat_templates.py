"""The interpreter of chat templates against Python's jinja2: known templates, and random ones."""

import json
import os
import pathlib
import random
import re
import subprocess

import chat_reference
import jinja2
import pytest
from chat_conversations import CONVERSATIONS
from chat_random import RandomTemplate, VARIABLES

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "tests/chat/templates").glob("*.jinja"))
NOW = 1764350000
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


class Renderer:
    """The test program chat_render, which takes one template a line."""

    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def render(self, source, variables):
        job = {"template": source, "variables": json.dumps(variables), "now": NOW}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "chat_render died on:\n" + source
        return json.loads(answer)


@pytest.fixture(scope="module")
def renderer(request):
    program = pathlib.Path(request.config.getoption("--chat-render"))
    assert program.exists(), f"{program} is not built"
    renderer = Renderer(program)
    yield renderer
    renderer.process.stdin.close()
    assert renderer.process.wait(30) == 0


def message_of(answer):
    return re.sub(r"^line \d+: ", "", answer["error"])


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_known_templates_render_as_in_jinja2(renderer, path):
    source = path.read_text()
    rendered = 0
    for name, conversation in CONVERSATIONS.items():
        variables = {"add_generation_prompt": True, **TOKENS, **conversation}
        expected, error = chat_reference.render(source, variables, NOW)
        answer = renderer.render(source, variables)
        if error is None:
            assert answer.get("text") == expected, (name, answer.get("error"))
            rendered += 1
        else:
            assert "error" in answer, (name, error, answer)
            assert re.match(r"line \d+: ", answer["error"]), (name, answer)
            if type(error) is jinja2.exceptions.TemplateError:  # raise_exception
                assert message_of(answer) == str(error), name
    assert rendered >= 4


def test_there_are_enough_of_them():
    assert len(TEMPLATES) >= 25
    assert len(CONVERSATIONS) >= 12


# One template a line; all render the same, or fail both.
PIECES = (pathlib.Path(__file__).parent / "chat_pieces.txt").read_text().splitlines()


@pytest.mark.parametrize("source", [line for line in PIECES if line and not line.startswith("##")])
def test_pieces_of_the_language_render_as_in_jinja2(renderer, source):
    source = source.replace("⏎", "\n")
    expected, error = chat_reference.render(source, VARIABLES, NOW)
    answer = renderer.render(source, VARIABLES)
    if error is None:
        assert answer.get("text") == expected, answer
    else:
        assert "error" in answer, (error, answer)


# What the interpreter says when it stops at a limit of its own, or lacks something that jinja2 has.
OURS = re.compile(r"beyond 64 bits|not supported|out of range|more than \d+ (steps|bytes|items)|a range of|nested deeper|"
                  r"a float|cannot be sliced|too large|precision must be")
# Text that depends on where Python keeps an object.
ADDRESS = re.compile(r"<(generator|built-in|bound|function|list_reverse|reversed|Macro|class|jinja2|LoopContext|.* object at)")


def test_random_templates_render_as_in_jinja2(renderer, request):
    seed = int(os.environ.get("SLUICE_SEED", 4268403420))  # SLUICE_SEED=... draws others
    count = int(os.environ.get("SLUICE_RANDOM_TEMPLATES", 1500))
    print(f"seed {seed}, {count} templates")
    source_of = RandomTemplate(random.Random(seed))
    equal, failed, skipped, wrong = 0, 0, 0, []
    for _ in range(count):
        source = source_of.template()
        expected, error = chat_reference.render(source, VARIABLES, NOW)
        if expected is not None and (ADDRESS.search(expected) or len(expected) > 100_000):
            skipped += 1
            continue
        answer = renderer.render(source, VARIABLES)
        if "error" in answer and OURS.search(answer["error"]):
            skipped += 1
        elif error is not None and "error" in answer:
            failed += 1
        elif error is None and answer.get("text") == expected:
            equal += 1
        else:
            wrong.append((source, expected if error is None else repr(error), answer))
    summary = f"seed {seed}: {equal} equal, {failed} fail both, {skipped} skipped, {len(wrong)} differ"
    print(summary)
    assert not wrong, summary + "".join(f"\n{source}\n  jinja2: {expected!r}\n  ours: {answer}"
                                        for source, expected, answer in wrong[:12])
    assert equal > count / 5
