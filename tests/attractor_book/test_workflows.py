"""The GitHub workflows: valid by GitHub's schema, each step a command that can be run by hand, no
more rights than needed.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import attractor_lib

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WRITES = {("publish", "deploy"): {"pages", "id-token"}}  # the only rights to write


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request):
    return yaml.safe_load(request.param.read_text())


def test_they_are_valid():
    assert len(WORKFLOWS) >= 4
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.github-workflows",
            *WORKFLOWS,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_each_step_is_a_make_target_or_an_action_at_a_major_version(workflow):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            if "run" in step:
                make, target, *_ = step["run"].split()
                assert make == "make" and target in targets, step["run"]
            else:
                assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])


def test_rights_are_minimal_and_runs_are_bounded(workflow):
    assert workflow["permissions"] == {"contents": "read"} and workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        rights = job.get("permissions", {})
        assert {right for right, value in rights.items() if value == "write"} == WRITES.get(
            (workflow["name"], name), set()
        )
        assert job["timeout-minutes"] <= 240


def test_only_our_own_code_reaches_a_runner_of_our_own(workflow):
    triggers = workflow[True]  # YAML 1.1 reads the key `on` as a boolean
    if any("self-hosted" in job["runs-on"] for job in workflow["jobs"].values()):
        assert set(triggers) == {"workflow_dispatch", "schedule"}


def test_conda_and_binder_install_what_make_installs():
    *_, of_pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (installs,) = re.findall(r"pip install (--constraint.*)", (ROOT / "Makefile").read_text())
    assert " ".join(of_pip["pip"]) == installs.replace("'", "")


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    version = {"attr": "attractor_lib.__version__"}
    assert project["tool"]["setuptools"]["dynamic"]["version"] == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == attractor_lib.__version__
    assert f"\n## {attractor_lib.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2409.16112"
