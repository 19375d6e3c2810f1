"""Dockerfile and YAML files have no faults that hadolint and yamllint know."""

import pathlib
import subprocess
import sysconfig

import promql
import pytest
from yamllint import config, linter

HADOLINT = pathlib.Path(sysconfig.get_path("scripts")) / "hadolint"
DOCKERFILE = promql.ROOT / "Dockerfile"
# Rules of both that are not asked of the files would be named here and in yamllint.yaml, with the reason. hadolint's all are.
IGNORED = {}
YAML_RULES = config.YamlLintConfig((promql.ROOT / "tests" / "chart" / "yamllint.yaml").read_text())
YAML_FILES = sorted([*promql.ROOT.glob("deploy/**/*.yaml"), *promql.ROOT.glob("helm/sluice/files/*.yaml")])


def hadolint(text):
    """What hadolint says, a line a finding."""
    ignored = [part for rule in IGNORED for part in ("--ignore", rule)]
    done = subprocess.run([HADOLINT, "--no-color", "--failure-threshold", "style", *ignored, "-"], input=text, capture_output=True,
                          text=True, timeout=60)
    assert (done.returncode == 0) == (done.stdout == ""), done.stdout + done.stderr
    return done.stdout.splitlines()


def test_hadolint_finds_nothing():
    assert hadolint(DOCKERFILE.read_text()) == []


@pytest.mark.parametrize("rule, was, becomes", [
    ("DL3006", "FROM ${BASE}\n", "FROM debian\n"),
    ("DL3008", "COPY . .\n", "COPY . .\nRUN apt-get install -y --no-install-recommends gdb\n"),
    ("DL3025", 'ENTRYPOINT ["/opt/sluice/sluice"]', "ENTRYPOINT /opt/sluice/sluice"),
    ("DL3002", "USER 65532:65532\n", "USER root\n"),
    ("DL4006", "/out\n\nFROM", "/out | cat\n\nFROM"),
    ("SC2046", "COPY . .\n", "COPY . .\nRUN rm $(find . -empty)\n"),
])
def test_hadolint_finds_faults(rule, was, becomes):
    text = DOCKERFILE.read_text()
    assert text.count(was) == 1
    assert [line for line in hadolint(text.replace(was, becomes)) if rule in line]


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: str(file.relative_to(promql.ROOT)))
def test_yamllint_finds_nothing(file):
    problems = [f"{problem.line}: {problem.desc}" for problem in linter.run(file.read_text(), YAML_RULES)]
    assert not problems, "\n".join(problems)


def test_yamllint_has_files_and_finds_faults():
    assert len(YAML_FILES) >= 4
    assert list(linter.run(YAML_FILES[0].read_text() + "services: \n", YAML_RULES))
