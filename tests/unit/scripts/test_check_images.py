"""What a build is told of pip on this machine."""

from __future__ import annotations

import configparser
from pathlib import Path

from scripts.check_images import IMAGES, dockerfile, pip_settings
from tests.conftest import ROOT


def test_pips_settings_and_the_files_that_they_name_are_in_a_build(tmp_path: Path):
    for name in ("wheels", "index/simple", "index/files", "build"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "certificates.pem").touch()
    listed = (
        f"global.cert='{tmp_path}/no.pem'\n"
        f"global.extra-index-url='file://{tmp_path}/index/simple https://example.org/simple'\n"
        f"global.find-links='{tmp_path}/wheels {tmp_path}/absent'\n"
        f":env:.cert='{tmp_path}/certificates.pem'\n"
        ":env:.timeout='180'\n"
    )
    volumes = pip_settings(listed, tmp_path / "build")
    here = {each.split(":")[0]: each.split(":")[1] for each in volumes}
    told = configparser.ConfigParser()
    told.read(next(path for path, there in here.items() if there == "/etc/pip.conf"))
    assert told["global"]["cert"] == f"{tmp_path}/certificates.pem"  # the environment's wins
    assert told["global"]["timeout"] == "180"
    assert told["global"]["extra-index-url"].endswith(" https://example.org/simple")
    kept = {path for path, there in here.items() if path == there}
    assert kept == {f"{tmp_path}/{name}" for name in ("certificates.pem", "index", "wheels")}
    assert all(each.endswith(":ro") for each in volumes)


def test_every_image_is_checked():
    assert {dockerfile(each) for each in IMAGES} == set((ROOT / "docker").glob("Dockerfile.*"))
