"""The images and compose files: what they name is there, and fits together.

No Docker is needed. What an engine or a registry would say is not looked at here.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from server import config
from server.engines.remote.backend import RemoteSettings
from server.engines.remote.probe import PLUGIN
from server.engines.vllm import build
from tests.conftest import ROOT

DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))
COMPOSE = sorted(DOCKER.glob("compose*.yaml"))
BASES = ("compose.yaml", "compose.cpu.yaml", "compose.remote.yaml")
OVERLAYS = ("compose.split.yaml", "compose.webui.yaml", "compose.monitoring.yaml")
STACKS = [
    (base, *chosen)
    for base in BASES
    for count in range(len(OVERLAYS) + 1)
    for chosen in itertools.combinations(OVERLAYS, count)
    if base == "compose.yaml" or "compose.split.yaml" not in chosen
]
VARIABLE = re.compile(r"\$\{(\w+)(?::[-?]([^}]*))?\}")


class _Override:
    """What Compose's ``!override`` puts in the place of what was there."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor(
    "!override", lambda loader, node: _Override(loader.construct_sequence(node, deep=True))
)


def read(path: Path) -> dict[str, Any]:
    content = yaml.load(path.read_text("utf-8"), _Loader)
    assert isinstance(content, dict)
    return content


def merged(under: Any, over: Any) -> Any:
    """As Compose merges: mappings key by key, volumes by where they go, other lists appended."""
    if isinstance(over, _Override):
        return over.value
    if isinstance(under, dict) and isinstance(over, dict):
        both = {key: merged(under[key], over[key]) if key in under else over[key] for key in over}
        return {key: _plain(value) for key, value in {**under, **both}.items()}
    if isinstance(under, list) and isinstance(over, list):
        places = {place(each): each for each in [*under, *over]}
        return list(places.values())
    return over


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, _Override) else value


def place(mount: Any) -> str:
    """Where a volume goes in the container; anything else is its own place."""
    text = filled(mount) if isinstance(mount, str) else json.dumps(mount)
    return text.split(":")[1] if text.count(":") in (1, 2) and "/" in text else text


def filled(text: str) -> str:
    """With the defaults of its variables."""
    return VARIABLE.sub(lambda match: match[2] or "", text)


def stack(names: tuple[str, ...]) -> dict[str, Any]:
    whole: Any = {}
    for name in names:
        whole = merged(whole, read(DOCKER / name))
    assert isinstance(whole, dict)
    return whole


@pytest.fixture(params=STACKS, ids="+".join)
def services(request: pytest.FixtureRequest) -> dict[str, Any]:
    found = stack(request.param)["services"]
    assert isinstance(found, dict)
    return found


# -- compose --------------------------------------------------------------------------------------


def test_every_file_is_in_a_stack():
    assert {path.name for path in COMPOSE} == {*BASES, *OVERLAYS}


def test_compose_takes_every_stack():
    """By Compose itself, where it is installed."""
    command = shutil.which("docker-compose")
    if command is None:
        pytest.skip("there is no docker-compose")
    needed = ("NUDGE_API_KEY", "NUDGE_ENGINE_KEY", "WEBUI_SECRET_KEY", "GRAFANA_PASSWORD")
    env = dict.fromkeys(needed, "x")
    for names in STACKS:
        files = [part for name in names for part in ("-f", str(DOCKER / name))]
        done = subprocess.run(
            [command, *files, "config", "--format", "json"],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)["services"]
        own = stack(names)["services"]
        assert told.keys() == own.keys()
        for name, service in told.items():
            targets = [place(volume) for volume in own[name]["volumes"]]
            assert sorted(volume["target"] for volume in service["volumes"]) == sorted(targets)
            gpus = [
                device.get("count") or str(device["device_ids"])
                for each in (own[name], service)
                for device in each.get("deploy", {})
                .get("resources", {})
                .get("reservations", {})
                .get("devices", [])
            ]
            assert len(set(gpus)) <= 1


def test_what_is_mounted_from_here_is_here(services: dict[str, Any]):
    for service in services.values():
        for volume in service["volumes"]:
            source, target, *_ = filled(volume).split(":")
            assert target.startswith("/")
            if source.startswith("."):
                assert (DOCKER / source).exists(), volume


def test_every_named_volume_is_declared_and_every_service_it_waits_for_exists():
    for names in STACKS:
        whole = stack(names)
        for service in whole["services"].values():
            for volume in service["volumes"]:
                source = filled(volume).split(":")[0]
                assert source.startswith(".") or source in whole["volumes"]
            assert set(service.get("depends_on", [])) <= whole["services"].keys()


def test_ports_are_published_on_this_machine_alone_and_none_twice(services: dict[str, Any]):
    published = [filled(port) for service in services.values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in published)
    numbers = [port.split(":")[1] for port in published]
    assert len(set(numbers)) == len(numbers)


def test_every_variable_is_in_the_example_with_its_default():
    example = (DOCKER / ".env.example").read_text("utf-8")
    set_there = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", example, re.MULTILINE))
    used: dict[str, set[str | None]] = {}
    for path in COMPOSE:
        for match in VARIABLE.finditer(path.read_text("utf-8")):
            default = None if ":?" in match[0] else match[2]
            used.setdefault(match[1], set()).add(default)
    assert used.keys() == set_there.keys()
    for name, defaults in used.items():
        line = re.search(rf"^(#?){name}=(.*)$", example, re.MULTILINE)
        assert line is not None
        required = defaults == {None}
        assert (line[1] == "") == required, (
            f"{name} is to be filled in exactly where it must be set"
        )
        if not required and name != "NUDGE_CONFIG":  # each base has its own configuration
            assert defaults == {line[2]}, name


def test_no_secret_is_in_a_file():
    for path in (*COMPOSE, *DOCKERFILES, DOCKER / ".env.example"):
        for name in ("API_KEY", "TOKEN", "SECRET_KEY", "PASSWORD"):
            for line in re.findall(
                rf"^\s*#?\w*{name}S?[=:] ?(.*)$", path.read_text(), re.MULTILINE
            ):
                assert VARIABLE.sub("", line).strip("'\"[]") == "", (path.name, line)


def test_images_are_pinned(services: dict[str, Any]):
    for service in services.values():
        name, _, tag = service["image"].rpartition(":")
        assert name
        assert "build" in service or re.fullmatch(r"v?\d+\.\d+\.\d+", tag)


def test_the_server_can_write_to_its_cache_and_tmp_alone_and_has_time_to_drain(
    services: dict[str, Any],
):
    server = services["nudge"]
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert server["init"] is True
    grace = int(server["stop_grace_period"].removesuffix("s"))
    assert grace > config.ServerSettings().drain_s + 10
    writable = [volume for volume in server["volumes"] if not volume.endswith(":ro")]
    assert writable == ["cache:/cache"]


@pytest.mark.parametrize("name", ["nudge.yaml", "nudge.split.yaml"])
def test_the_configurations_load_and_their_gpus_are_reserved(name: str):
    settings = config.load(DOCKER / name)
    split = "split" in name
    gpus = {gpu for engine in settings.engines.values() for gpu in engine.gpus()}
    assert gpus == ({"0", "1"} if split else {"0"})
    names = ("compose.yaml", "compose.split.yaml") if split else ("compose.yaml",)
    server = stack(names)["services"]["nudge"]
    (devices,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert devices["count"] == len(gpus)
    assert any(f"{name}:" in filled(volume) or f"/{name}" in filled(volume)
               for volume in server["volumes"])  # fmt: skip
    web = read(DOCKER / "compose.webui.yaml")["services"]["webui"]["environment"]
    assert filled(web["DEFAULT_MODELS"]) in settings.models
    assert filled(web["TASK_MODEL_EXTERNAL"]).removesuffix(":aligned") in settings.models
    # Open WebUI offers some with every chat.
    assert all(model.tools == "auto" for model in settings.models.values())
    assert all(engine.engine_args().keys() <= build.engine_args()
               for engine in settings.engines.values())  # fmt: skip


def test_what_compose_sets_is_a_setting(monkeypatch: pytest.MonkeyPatch):
    for base in BASES:
        name = "nudge.remote.yaml" if "remote" in base else "nudge.yaml"
        with monkeypatch.context() as environment:
            for key, value in read(DOCKER / base)["services"]["nudge"]["environment"].items():
                environment.setenv(key, VARIABLE.sub("secret", value))
            settings = config.load(DOCKER / name)
        assert [key.get_secret_value() for key in settings.server.api_keys] == ["secret"]


def test_the_engines_elsewhere_are_those_that_are_started_beside_it(monkeypatch):
    services = stack(("compose.remote.yaml",))["services"]
    for key, value in services["nudge"]["environment"].items():
        monkeypatch.setenv(key, VARIABLE.sub("secret", value))
    settings = config.load(DOCKER / "nudge.remote.yaml")
    assert services.keys() == {"nudge", *settings.engines}
    assert filled(services["nudge"]["volumes"][0]).startswith("./nudge.remote.yaml:")
    gpus = []
    for name, engine in settings.engines.items():
        assert isinstance(engine, RemoteSettings)
        service = services[name]
        assert engine.all_urls == (f"http://{name}:8000",)
        assert engine.all_headers() == {"Authorization": "Bearer secret"}
        assert "NUDGE_ENGINE_KEY" in service["environment"]["VLLM_API_KEY"]
        model, *arguments = service["command"]
        assert model == engine.model
        assert " ".join(arguments).endswith(PLUGIN)
        (mount,) = [each for each in service["volumes"] if each.startswith("../server:")]
        inside = Path(mount.split(":")[1])
        assert service["environment"]["PYTHONPATH"] == str(inside.parent)
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        gpus += device["device_ids"]
    assert len(set(gpus)) == len(settings.engines)
    web = read(DOCKER / "compose.webui.yaml")["services"]["webui"]["environment"]
    assert filled(web["DEFAULT_MODELS"]) in settings.models
    module, _, name = PLUGIN.split()[1].partition(":")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8"))
    assert name in [each.name for each in tree.body if isinstance(each, ast.ClassDef)]


def test_the_stop_processor_needs_nothing_that_vllm_does_not_bring():
    """Its modules are mounted into vLLM's image, or installed there without what they depend on."""
    brought = {"vllm", "torch", "numpy", "tokenizers", "transformers", "llguidance"}
    module = PLUGIN.split()[1].partition(":")[0]
    seen: set[str] = set()
    coming = [module]
    while coming:
        name = coming.pop()
        path = ROOT / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            found = []
            if isinstance(node, ast.Import):
                found = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found = [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
            for each in found:
                top = each.partition(".")[0]
                coming += [each] if top == "server" else []
                assert top in {"server", *brought, *sys.stdlib_module_names}, (name, each)
    assert "server.text.tokenizer" in seen


def test_the_web_ui_has_the_servers_key_and_address():
    whole = stack(("compose.yaml", "compose.webui.yaml"))["services"]
    web = whole["webui"]["environment"]
    assert web["OPENAI_API_KEYS"] in whole["nudge"]["environment"]["NUDGE_SERVER__API_KEYS"]
    assert web["OPENAI_API_BASE_URLS"] == "http://nudge:8000/v1"


def test_grafana_is_given_the_dashboard_and_prometheus_the_server():
    whole = stack(("compose.yaml", "compose.monitoring.yaml"))["services"]
    mounts = dict(volume.split(":")[:2] for volume in whole["grafana"]["volumes"])
    (provider,) = yaml.safe_load((DOCKER / "grafana" / "dashboards.yaml").read_text())["providers"]
    dashboard = Path(mounts["./grafana/nudge.json"])
    assert str(dashboard.parent) == provider["options"]["path"]
    (source,) = yaml.safe_load((DOCKER / "grafana" / "datasources.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    prometheus = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["nudge:8000"]}]
    assert {each.split(":")[0] for each in whole["prometheus"]["volumes"]} >= {
        f"./prometheus/{name}" for name in ("prometheus.yaml", *prometheus["rule_files"])
    }


# -- images ---------------------------------------------------------------------------------------


def instructions(path: Path) -> Iterator[tuple[str, str]]:
    """(instruction, the rest of it), with continued lines joined."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    for line in re.split(r"(?<!\\)\n", "\n".join(lines)):
        name, _, rest = re.sub(r"\\\n\s*", " ", line).partition(" ")
        if name:
            yield name, rest


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_an_image_copies_is_here_and_not_ignored(path: Path):
    sent = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    for name, rest in instructions(path):
        if name == "COPY" and "--from" not in rest:
            *sources, _ = shlex.split(rest)
            for source in sources:
                assert (ROOT / source).exists(), source
                assert source in sent, f".dockerignore keeps {source} away"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_runs_the_server_without_a_shell_and_without_root(path: Path):
    parts = dict(instructions(path))
    assert json.loads(parts["ENTRYPOINT"]) == ["nudge"]
    command = json.loads(parts["CMD"])
    assert command[:2] == ["serve", "--config"]
    assert parts["USER"] == "10001:10001"
    assert parts["STOPSIGNAL"] == "SIGTERM"
    assert f"useradd --uid {parts['USER'].split(':')[0]} " in parts["RUN"]
    check = json.loads(parts["HEALTHCHECK"].partition("CMD ")[2])
    assert check == ["python", "/opt/nudge/healthcheck.py"]
    assert [rest for name, rest in instructions(path) if name == "FROM"][-1].count(":") == 1


def test_the_cuda_image_has_a_vllm_that_the_project_takes():
    from packaging.requirements import Requirement

    text = (DOCKER / "Dockerfile.cuda").read_text()
    version = re.search(r"^ARG VLLM_VERSION=(\S+)$", text, re.MULTILINE)
    assert version is not None
    extra = re.search(r'^cuda = \["(.*)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extra is not None
    assert version[1] in Requirement(extra[1]).specifier


def test_the_cpu_images_demo_is_where_its_configuration_says():
    """As it lies in the image: the configuration beside the models, not beside the code's."""
    command = json.loads(dict(instructions(DOCKER / "Dockerfile.cpu"))["CMD"])
    inside = Path(command[-1]).relative_to("/opt/nudge")
    settings = config.load(ROOT / inside)
    copied = {shlex.split(rest)[0] for name, rest in instructions(DOCKER / "Dockerfile.cpu")
              if name == "COPY" and "--from" not in rest}  # fmt: skip
    for engine in settings.engines.values():
        assert Path(engine.model).relative_to(ROOT).parts[0] in copied


def test_the_health_check_needs_nothing_but_python():
    checked = runpy.run_path(str(DOCKER / "healthcheck.py"))
    assert checked["ready"](1) is False
    source = (DOCKER / "healthcheck.py").read_text()
    imported = re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)
    assert set(imported) - {"__future__"} <= set(sys.stdlib_module_names)
