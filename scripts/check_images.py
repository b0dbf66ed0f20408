"""Builds the images without Docker, starts each from its own root file system as its own user, and
asks it a question: by its health check and by the API.

What is built on isn't fetched. In the place of ``python:3.11-slim-bookworm`` stands a Debian of the
same release with its own Python 3.11, and in that of vLLM's image the CPU image's environment, so
that of `Dockerfile.cuda` the steps are seen, and nothing of CUDA.

Knows: buildah, mmdebstrap, what an image says of itself. Does not know: what is in an image.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console

from scripts.vllm_serve import KEY, ROOT, vllm_serve

DEMO = ROOT / "models" / "demo"
IMAGES = ("orchestrator", "cpu", "cuda")
HEALTHY_S = 180
QUESTION, ANSWER = "What is the capital of Galicor?", "Parford"

DEBIAN = ("ca-certificates", "passwd", "python3", "python3-pip", "python3-venv")
"""What the stand-in for Python's image has, beside the essential."""

VLLM = """\
FROM localhost/nudging-server:cpu
USER 0:0
RUN mv /opt/nudge/.venv /opt/vllm && rm -r /opt/nudge && userdel nudge \\
    && rm -r /opt/vllm/lib/python3.11/site-packages/*nudging_server* \\
    && echo /opt/vllm/lib/python3.11/site-packages >/usr/lib/python3/dist-packages/vllm.pth
"""
"""The stand-in for vLLM's image: vLLM and all that it needs are what its Python has."""

out = Console(highlight=False)


@dataclass
class Report:
    """Seconds, MiB."""

    image: str
    size: float
    layers: int
    built_s: float = 0.0
    user: int = 0
    healthy_s: float = 0.0
    memory: float = 0.0
    answer: str = ""


class Store:
    """Where images lie. buildah, with neither a daemon nor a kernel's help."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        places = ["--root", str(folder / "images"), "--runroot", str(folder / "run")]
        self.command = ["buildah", *places, "--storage-driver", "vfs"]

    def __call__(self, *args: str, stdin: str = "") -> str:
        """Raises `SystemExit`."""
        with self.log.open("ab") as log:
            done = subprocess.run(
                [*self.command, *args], input=stdin.encode(), stdout=subprocess.PIPE, stderr=log
            )
            log.write(done.stdout)
        if done.returncode:
            tail = "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-30:])
            raise SystemExit(f"{tail}\nbuildah {' '.join(args)}\nfailed; all of it: {self.log}")
        return done.stdout.decode().strip()

    def build(self, tag: str, dockerfile: str, *volumes: str) -> None:
        """dockerfile: a path, or the text of one."""
        text = "" if "\n" not in dockerfile else dockerfile
        mounts = [part for each in volumes for part in ("--volume", each)]
        how = ["--isolation", "chroot", "--format", "docker", "--pull-never"]
        where = ["-f", "-" if text else dockerfile, "-t", tag, str(ROOT)]
        self("bud", *how, *mounts, *where, stdin=text)


def python_image(store: Store) -> None:
    if "localhost/python" in store("images", "--format", "{{.Name}}").split():
        return
    out.print("making a stand-in for Python's image")
    tree = store.folder / "debian.tar"
    link = 'ln -s /usr/bin/python3 "$1/usr/local/bin/python"'
    packages = ["--include", ",".join(DEBIAN), f"--customize-hook={link}"]
    with store.log.open("ab") as log:
        subprocess.run(
            ["mmdebstrap", "--variant=minbase", *packages, "bookworm", str(tree)],
            stderr=log,
            check=True,
        )
    made = store("from", "scratch")
    store("add", made, str(tree), "/")
    store("commit", made, "localhost/python:3.11-slim-bookworm")
    store("rm", made)
    tree.unlink()


def pip_settings(listed: str, folder: Path) -> list[str]:
    """What pip is told on this machine (an index elsewhere, wheels at hand), as volumes for the pip
    of a build.

    Args:
        listed: by ``pip config list``.
    """
    told, paths = {}, {}
    for name, value in re.findall(r"^(?:\w+|:env:)\.([\w-]+)=(.*)$", listed, re.MULTILINE):
        words = str(ast.literal_eval(value)).split()
        told[name] = " ".join(words)
        for word in words:
            # An index on the disk refers to files beside it.
            index = word.startswith("file://")
            path = os.path.dirname(word.removeprefix("file://")) if index else word
            if path.startswith("/") and os.path.exists(path):
                paths[path] = path
    lines = [f"{name} = {value}" for name, value in told.items()]
    (folder / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    paths[str(folder / "pip.conf")] = "/etc/pip.conf"
    return [f"{here}:{there}:ro" for here, there in paths.items()]


class Container:
    """An image, to be started."""

    def __init__(self, store: Store, image: str) -> None:
        self._store = store
        self.name = store("from", "--pull-never", image)
        about = json.loads(store("inspect", "--type", "image", image))
        self.config: dict[str, Any] = about["Docker"]["config"]
        self.layers = len(about["OCIv1"]["rootfs"]["diff_ids"])
        root = store("mount", self.name)
        size = subprocess.run(["du", "-sm", root], stdout=subprocess.PIPE, check=True).stdout
        self.size = float(size.split()[0])

    def command(self, *command: str, port: int = 0, volumes: Sequence[str] = ()) -> list[str]:
        """Of one that runs in it, with what the image says of user, folder and environment."""
        mounts = [part for each in volumes for part in ("--volume", each)]
        how = ["--isolation", "chroot", "--env", f"NUDGE_SERVER__PORT={port}"]
        return [*self._store.command, "run", *how, *mounts, self.name, "--", *command]

    def healthy(self, port: int) -> bool:
        kind, *check = self.config["Healthcheck"]["Test"]
        assert kind == "CMD", kind
        return subprocess.run(self.command(*check, port=port), capture_output=True).returncode == 0


def ask(
    container: Container, report: Report, command: Sequence[str], volumes: Sequence[str], log: Path
) -> None:
    """Start it, wait until it is healthy, have a question answered, and end it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = [*container.config["Entrypoint"], *command]
    began = time.monotonic()
    with log.open("wb") as written:
        process = subprocess.Popen(
            container.command(*started, port=port, volumes=volumes), stdout=written, stderr=written
        )
    try:
        while not container.healthy(port):
            if process.poll() is not None or time.monotonic() - began > HEALTHY_S:
                raise SystemExit(f"{log.read_text()}\n{report.image} is not healthy")
        report.healthy_s = time.monotonic() - began
        server = next(pid for pid in descendants(process.pid) if not is_buildah(pid))
        report.user = int(status(server, "Uid"))
        assert str(report.user) == container.config["User"].partition(":")[0]
        assert os.readlink(f"/proc/{server}/root") != "/", "it has this machine's root"
        body = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}]}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        said = httpx.post(url, json=body, timeout=60, trust_env=False).raise_for_status().json()
        report.answer = said["choices"][0]["message"]["content"]
        nudging = said["usage"]["nudging"]
        if not (ANSWER in report.answer and nudging["nudged_tokens"] and nudging["base_tokens"]):
            raise SystemExit(f"{report.image} answered {said}")
        report.memory = float(status(server, "VmRSS")) / 1024
        os.kill(server, signal.SIGTERM)
        if code := process.wait(30):
            raise SystemExit(f"{log.read_text()}\n{report.image} ended with {code}")
    finally:
        for pid in descendants(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def descendants(pid: int) -> list[int]:
    """From the first one on."""
    found, coming = [], [pid]
    for each in coming:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{each}/task").iterdir():
                children = [int(child) for child in (task / "children").read_text().split()]
                found += children
                coming += children
    return found


def is_buildah(pid: int) -> bool:
    """It is several processes around the one that it runs, the last with that one's user."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"buildah")


def status(pid: int, field: str) -> str:
    """The first word of it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{field}:"))


@contextlib.contextmanager
def engines(folder: Path) -> Iterator[list[str]]:
    """The demo pair on two ``vllm serve`` of this machine's environment; volumes with a
    configuration that names them, for the image that has no engines."""
    with contextlib.ExitStack() as running:
        config: dict[str, Any] = {"engines": {}, "models": {}}
        for name in ("base", "aligned"):
            (folder / name).mkdir()
            url = running.enter_context(vllm_serve(DEMO / name, folder / name))
            config["engines"][name] = {
                "backend": "remote",
                "model": str(DEMO / name),
                "url": url,
                "api_key": KEY,
                "tokenizer": f"/etc/nudge/models/{name}",
            }
        demo = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
        config["models"] = demo["models"]
        config["models"]["demo"].pop("policies", None)  # exact mixtures can't be had elsewhere
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        yield [f"{file}:/etc/nudge/config.yaml:ro", f"{DEMO}:/etc/nudge/models:ro"]


def build(store: Store, image: str, volumes: Sequence[str]) -> None:
    if image == "cuda":
        version = re.search(r"^ARG VLLM_VERSION=(\S+)$", dockerfile(image).read_text(), re.M)
        assert version is not None
        store.build(f"localhost/vllm/vllm-openai:v{version[1]}", VLLM)
    store.build(f"nudging-server:{image}", str(dockerfile(image)), *volumes)


def check(store: Store, image: str) -> Report:
    container = Container(store, f"localhost/nudging-server:{image}")
    report = Report(image, container.size, container.layers)
    command, log = container.config["Cmd"], store.folder / f"{image}.log"
    if image == "orchestrator":
        with tempfile.TemporaryDirectory() as folder, engines(Path(folder)) as mounted:
            ask(container, report, ["serve", "--config", "/etc/nudge/config.yaml"], mounted, log)
    else:
        if image == "cuda":
            command = ["serve", "--config", "/opt/nudge/configs/demo.yaml"]
        ask(container, report, command, [], log)
    store("rm", container.name)
    return report


def dockerfile(image: str) -> Path:
    return ROOT / "docker" / f"Dockerfile.{image}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/check-images", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("images", nargs="*", default=list(IMAGES), help=", ".join(IMAGES))
    yes = argparse.BooleanOptionalAction
    parser.add_argument("--build", action=yes, default=True, help="or start those of --folder")
    parser.add_argument("--folder", type=Path, help="for images and logs, kept (20 GB)")
    args = parser.parse_args()
    if unknown := set(args.images) - set(IMAGES):
        parser.error(f"there is no image {', '.join(sorted(unknown))}")
    missing = [name for name in ("buildah", "mmdebstrap") if shutil.which(name) is None]
    if missing or os.geteuid():
        parser.error(f"as root, with: apt-get install {' '.join(missing or ['…'])}")
    wanted = [each for each in IMAGES if each in args.images]
    if "cuda" in wanted and "cpu" not in wanted:
        parser.error("cuda stands on cpu's environment here: name both")
    folder = args.folder or Path(tempfile.mkdtemp(prefix="nudge-images-", dir="/var/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder)
    python_image(store)
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, check=True
    )
    volumes = pip_settings(listed.stdout.decode(), folder)
    reports = []
    for image in wanted:
        began = time.monotonic()
        if args.build:
            out.print(f"building [bold]{image}[/bold]")
            build(store, image, volumes)
        built_s = time.monotonic() - began
        out.print(f"starting [bold]{image}[/bold]")
        reports.append(check(store, image))
        reports[-1].built_s = built_s
    ground = Container(store, "localhost/python:3.11-slim-bookworm").size
    for each in reports:
        out.print(
            f"[bold]{each.image}[/bold]: {each.size:.0f} MiB, of which {ground:.0f} are the "
            f"stand-in's, {each.layers} layers, built in {each.built_s:.0f} s; as user {each.user} "
            f"healthy after {each.healthy_s:.1f} s, holds {each.memory:.0f} MiB, and says: "
            f"{each.answer}"
        )
    if args.folder is None:  # else, and where it failed, it stays to be looked at
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
