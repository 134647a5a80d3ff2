"""What `deployments/` and `prefect.yaml` say must be so.

A typing error there shows only when somebody deploys, on a bad day.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import subprocess
import sys
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from prefect import Flow
from prefect.utilities.importtools import import_object

from prefect_claim_dispatch.processors import registry
from prefect_claim_dispatch.schema import actions_table
from prefect_claim_dispatch.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments"
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?P<rest>[^}]*)\}")
EXAMPLES = {
    "flows.processors.email_welcome": "email.welcome",
    "flows.processors.webhook_deliver": "webhook.deliver",
    "flows.processors.report_generate": "report.generate",
}


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def services() -> dict[str, Any]:
    return loaded(DEPLOYMENTS / "compose.yaml")["services"]


def deployment(path: str) -> dict[str, Any]:
    (only,) = loaded(ROOT / path)["deployments"]
    return only


PREFECT_FILES = ("prefect.yaml", "deployments/from-package.yaml")


@pytest.mark.parametrize("path", PREFECT_FILES)
def test_entrypoint_is_the_claim_flow(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imported as the worker does it; both files deploy the one flow, so that one replaces the other."""
    monkeypatch.chdir(ROOT)

    claim = import_object(deployment(path)["entrypoint"])

    assert isinstance(claim, Flow)
    assert claim.name == "claim-dispatch"


@pytest.mark.parametrize("path", PREFECT_FILES)
def test_parameters_are_those_of_the_flow(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter that was renamed would fail every scheduled run, once a minute."""
    monkeypatch.chdir(ROOT)
    wanted = deployment(path)

    claim = import_object(wanted["entrypoint"])

    assert set(wanted.get("parameters", {})) <= set(inspect.signature(claim.fn).parameters)


def test_both_files_deploy_the_same_thing() -> None:
    """They differ in where the code comes from and in nothing else."""
    checkout, package = (deployment(path) for path in PREFECT_FILES)

    for its_own in ("entrypoint", "parameters"):
        checkout.pop(its_own, None)
        package.pop(its_own, None)

    assert checkout == package
    assert package["work_pool"] == {"name": "claims"}


@pytest.mark.parametrize("path", PREFECT_FILES)
def test_claim_flow_is_deployed_without_a_concurrency_limit(path: str) -> None:
    """It needs none to be safe, and Prefect counts the runs of a lost machine: three losses would end it all."""
    assert "concurrency_limit" not in deployment(path)


def worker_commands() -> dict[str, str]:
    """How each of our ways to run it starts a worker."""
    started = re.compile(r"prefect\W+worker\W+start[^\n]*")
    return {
        name: found[0]
        for name in ("Dockerfile", "kubernetes.yaml", "local.sh", "README.md")
        if (found := started.findall((DEPLOYMENTS / name).read_text(encoding="utf-8")))
    }


def test_every_worker_bounds_its_own_processes() -> None:
    """What a deployment's limit would do, but counted by whoever has the processes, and gone with it."""
    limits = {name: re.findall(r"--limit\W+(\d+)", command) for name, command in worker_commands().items()}

    assert limits == {name: ["3"] for name in ("Dockerfile", "kubernetes.yaml", "local.sh", "README.md")}
    assert "command" not in services()["worker"], "the image's is the one with the limit"


def test_slots_of_concurrency_limits_outlive_the_server() -> None:
    """In memory, a restart forgets who holds them, and those who died with it hold them for ever."""
    setting, wanted = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "prefect.server.concurrency.lease_storage.filesystem"
    local = (DEPLOYMENTS / "local.sh").read_text(encoding="utf-8")
    server, home = services()["server"], "/home/worker/.prefect"

    assert hasattr(importlib.import_module(wanted), "ConcurrencyLeaseStorage")
    assert f"{setting}=${{{setting}:-{wanted}}}" in local
    assert re.search(rf"^export .*{setting}$", local, re.MULTILINE)
    assert server["environment"][setting] == wanted
    (volume,) = server["volumes"]
    assert volume.partition(":")[2] == home
    assert volume.partition(":")[0] in loaded(DEPLOYMENTS / "compose.yaml")["volumes"]
    assert f"--owner worker --group worker {home}" in (DEPLOYMENTS / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PREFECT_FILES)
def test_run_stays_until_the_next_has_taken_over(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a gap between two runs nobody is there to be woken; where they may not overlap there is one each minute."""
    monkeypatch.chdir(ROOT)
    wanted = deployment(path)
    claim = import_object(wanted["entrypoint"])

    stay = claim.validate_parameters(wanted["parameters"])["stay"]
    (schedule,) = wanted["schedules"]

    overlap = stay - timedelta(seconds=schedule["interval"])
    assert overlap >= timedelta(seconds=15), "a worker's look and the start of a flow run"
    most_at_once = math.ceil(stay / timedelta(seconds=schedule["interval"]))
    assert most_at_once < 3, "the worker's limit: one may be late with long work"


def test_checkout_is_found_by_a_template_and_the_package_by_nothing() -> None:
    """An absolute path would be that of whoever deployed; a `pull` that is left out makes Prefect write one."""
    checkout, package = (loaded(ROOT / path)["pull"] for path in PREFECT_FILES)

    (step,) = checkout
    assert step["prefect.deployments.steps.set_working_directory"]["directory"] == "{{ $CLAIM_DISPATCH_HOME }}"
    assert package == []


def test_deployed_processors_register_the_types_they_are_named_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """All the examples, and each in the file that a reader would look for."""
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])

    for module, type_ in EXAMPLES.items():
        importlib.import_module(module)
        processor = registry.match(type_)
        assert processor is not None
        assert processor.function.__module__ == module

    assert set(deployment("prefect.yaml")["parameters"]["processors"]) == set(EXAMPLES)


def test_compose_file_is_valid_by_the_compose_specification() -> None:
    """The schema is the specification's own, as check-jsonschema ships it."""
    schema = json.loads(
        files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text(encoding="utf-8")
    )

    Draft7Validator(schema).validate(  # pyright: ignore[reportUnknownMemberType] - its stubs leave a parameter open
        loaded(DEPLOYMENTS / "compose.yaml")
    )


def test_every_lasting_service_tells_its_health_and_every_condition_can_come_true() -> None:
    """Waiting for the health of a service without a check, or for the end of one that never ends, is for ever."""
    known = services()
    lasting = {name for name, service in known.items() if service["restart"] != "no"}

    waits = [
        (target, wait["condition"])
        for service in known.values()
        for target, wait in service.get("depends_on", {}).items()
    ]

    assert set(known) - lasting == {"setup"}
    assert all(known[name]["healthcheck"]["test"] for name in lasting)
    for target, condition in waits:
        assert condition == ("service_healthy" if target in lasting else "service_completed_successfully")


def test_every_variable_of_compose_is_in_the_example_and_the_other_way_round() -> None:
    """What a newcomer fills in is what is needed, all of it and no more."""
    example = (DEPLOYMENTS / ".env.example").read_text(encoding="utf-8")
    offered = set(re.findall(r"^(\w+)=", example, re.MULTILINE))

    wanted = {found["name"] for found in VARIABLE.finditer((DEPLOYMENTS / "compose.yaml").read_text(encoding="utf-8"))}

    assert wanted == offered


def test_no_secret_is_in_a_command_and_none_has_a_default() -> None:
    """Command lines are shown to everybody on the machine, and a default password is in every installation."""
    secrets = re.compile("PASSWORD|AUTH")

    for service in services().values():
        said = json.dumps([service.get("command"), service.get("healthcheck")])
        assert "$" not in said
        assert not secrets.search(said)

    example = (DEPLOYMENTS / ".env.example").read_text(encoding="utf-8")
    assert all(not value for name, value in re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE) if secrets.search(name))
    for found in VARIABLE.finditer((DEPLOYMENTS / "compose.yaml").read_text(encoding="utf-8")):
        assert not secrets.search(found["name"]) or found["rest"].startswith(":?")


def test_files_that_compose_mounts_and_builds_from_are_there() -> None:
    """Docker makes an empty directory of a mounted file that is missing.

    And PostgreSQL would start without its role.
    """
    known = services()
    mounted = [volume.split(":")[0] for service in known.values() for volume in service.get("volumes", ())]
    (build,) = {json.dumps(service["build"], sort_keys=True) for service in known.values() if "build" in service}
    context = DEPLOYMENTS / json.loads(build)["context"]

    assert all((DEPLOYMENTS / source).is_file() for source in mounted if source.startswith("."))
    assert (context / json.loads(build)["dockerfile"]).is_file()
    assert context.resolve() == ROOT


@pytest.mark.parametrize("path", ["compose.yaml", "kubernetes.yaml", "local.sh", "README.md", "from-package.yaml"])
def test_settings_that_deployments_name_exist(path: str) -> None:
    """A setting with a typing error is silently no setting."""
    fields = {name.upper().removesuffix("_NAME") for name in Settings.model_fields}
    known = {PREFIX + name for name in fields} | {f"{PREFIX}HOME", f"{PREFIX}PASSWORD"}

    named = set(re.findall(rf"\b{PREFIX}[A-Z_]+", (DEPLOYMENTS / path).read_text(encoding="utf-8")))

    assert named <= known


def test_kubernetes_file_is_valid_by_the_schemas_of_kubernetes() -> None:
    """Strictly, so that a misspelt field is an error and not ignored.

    The worker may neither be root nor write to its image.
    """
    validator = importlib.import_module("kubernetes_validate")
    (wanted,) = yaml.safe_load_all((DEPLOYMENTS / "kubernetes.yaml").read_text(encoding="utf-8"))

    validator.validate(wanted, desired_version="1.34", strict=True)

    pod = wanted["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["envFrom"] == [{"secretRef": {"name": "claim-dispatch"}}]


def test_local_script_is_a_shell_script_that_parses() -> None:
    """Under a plain POSIX shell, not only under bash."""
    script = DEPLOYMENTS / "local.sh"

    checked = subprocess.run(["sh", "-n", str(script)], capture_output=True, text=True, check=False)

    assert (checked.returncode, checked.stderr) == (0, "")
    assert script.stat().st_mode & 0o111


def test_grants_name_the_columns_of_the_table() -> None:
    """A column that was renamed makes the script fail half-way, at an administrator's desk."""
    columns = set(actions_table().columns.keys())
    text = re.sub(r"--.*", "", (DEPLOYMENTS / "grants.sql").read_text(encoding="utf-8"))

    granted = [
        re.split(r"[\s,]+", names.strip()) for names in re.findall(r"(?:INSERT|SELECT|UPDATE)\s*\(([^)]*)\)", text)
    ]

    assert len(granted) == 3
    assert all(set(names) <= columns for names in granted)
    # A dispatcher that could write these could change what was asked for.
    assert not {"id", "type", "payload", "created_at"} & set(granted[2])
