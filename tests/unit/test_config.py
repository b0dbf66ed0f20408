"""Settings from file, environment and flags; the shipped files; the two commands that read them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server import config
from server.cli import app
from server.core import ConfigError
from server.engines.backends import BACKENDS
from server.engines.vllm.backend import OWN, VllmSettings
from server.engines.vllm.build import engine_args

CONFIGS = config.DEFAULT_CONFIG.parent
SHIPPED = sorted(CONFIGS.glob("*.yaml"))

GOOD = """\
engines:
  big: {model: org/big, device: "0"}
  small: {model: org/small, device: "1"}
models:
  pair: {base: big, aligned: small}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A config file in a folder of its own."""

    def make(text: str = GOOD) -> Path:
        path = tmp_path / "nudge.yaml"
        path.write_text(text, "utf-8")
        return path

    return make


def two_engines(big: str, small: str) -> str:
    return (
        f"engines:\n  big: {{model: b, {big}}}\n  small: {{model: s, {small}}}\n"
        "models:\n  pair: {base: big, aligned: small}\n"
    )


# -- the shipped files --------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_each_shipped_config_loads_and_is_consistent(path: Path) -> None:
    settings = config.load(path)
    assert path.stem in settings.models, "the file serves a model of its own name"
    for model in settings.models.values():
        base, aligned = settings.engines[model.base], settings.engines[model.aligned]
        assert model.base != model.aligned
        assert base.max_model_len == aligned.max_model_len
        assert model.sampling.temperature == 0
    shares: dict[str, float] = {}
    for engine in settings.engines.values():
        for gpu in engine.gpus():
            shares[gpu] = shares.get(gpu, 0) + (engine.gpu_memory_utilization or 0)
    assert all(share <= 0.95 + 1e-9 for share in shares.values())


def test_the_papers_thresholds_are_the_papers() -> None:
    """0.4 for Llama-2, 0.3 for Gemma-2 and OLMo."""
    wanted = {
        "llama-2-70b": 0.4,
        "gemma-2-27b": 0.3,
        "olmo-7b": 0.3,
        "gemma-2-27b--llama-2-7b-chat": 0.3,
    }
    for name, gamma in wanted.items():
        assert config.load(CONFIGS / f"{name}.yaml").models[name].nudging.gamma == gamma


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_each_engine_argument_is_one_of_vllm(path: Path) -> None:
    for engine in config.load(path).engines.values():
        if isinstance(engine, VllmSettings):
            assert engine.engine_args().keys() <= engine_args()


def test_every_engine_setting_is_an_argument_of_vllm() -> None:
    assert VllmSettings.model_fields.keys() - OWN <= engine_args()
    assert "modle" not in engine_args()


# -- precedence ---------------------------------------------------------------------------------


def test_a_flag_wins_over_environment_over_file_over_default(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config.load(write()).server.port == 8000
    path = write(GOOD + "server: {port: 1001, host: 0.0.0.0}\n")
    assert config.load(path, server__port=None).server.port == 1001
    monkeypatch.setenv("NUDGE_SERVER__PORT", "1002")
    assert config.load(path).server.port == 1002
    settings = config.load(path, server__port=1003)
    assert settings.server.port == 1003
    assert settings.server.host == "0.0.0.0", "what a source doesn't name, the next one gives"


def test_the_environment_reaches_into_engines_and_models(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUDGE_MODELS__PAIR__NUDGING__GAMMA", "0.25")
    monkeypatch.setenv("NUDGE_ENGINES__BIG__MAX_MODEL_LEN", "512")
    monkeypatch.setenv("NUDGE_ENGINES__SMALL__ARGS", '{"max_num_seqs": 8}')
    settings = config.load(write())
    assert settings.models["pair"].nudging.config().gamma == 0.25
    assert settings.engines["big"].engine_args() == {"model": "org/big", "max_model_len": 512}
    assert settings.engines["small"].args == {"max_num_seqs": 8}


def test_the_environment_sets_the_backend_too(write: Write, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NUDGE_ENGINES__BIG__BACKEND", "scripted")
    monkeypatch.setenv("NUDGE_ENGINES__BIG__ARGS", '{"step_s": 1}')
    big = config.load(write(GOOD.replace(', device: "0"', ""))).engines["big"]
    assert (type(big), big.args) == (BACKENDS["scripted"].settings, {"step_s": 1})


def test_other_variables_of_the_environment_are_left_alone(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUDGE_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("SERVER__PORT", "1")
    assert config.load(write()).server.port == 8000


# -- what is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "must be a YAML mapping with engines: and models:"),
        ("- engines", "must be a YAML mapping with engines: and models:"),
        ("engines: [", "(?s)can't be read: .* line 1"),
        ("engines: {}\nmodels: {}", r"engines: .*at least 1 item"),
        (GOOD + "sevrer: {}\n", "sevrer: Extra inputs are not permitted"),
        (GOOD + "Server: {port: 1}\n", "Server: Extra inputs are not permitted"),
        (GOOD + "1: {}\n", "1: Extra inputs are not permitted"),
        (GOOD.replace("device", "devise", 1), "engines.big.devise: Extra inputs"),
        (GOOD.replace("{base", "{gama: 1, base"), "models.pair.gama: Extra inputs"),
        (GOOD.replace("base: big", "base: bigg"), r"models.pair.base: no engine is named 'bigg' "
         r"\(there are: big, small\); did you mean 'big'\?$"),
        (GOOD.replace("{model: org/big", "{backend: tgi, model: org/big"), "engines.big.backend: "
         "Input should be 'vllm' or 'remote' or 'scripted'"),
        (GOOD.replace("{model: org/big", "{backend: null, model: org/big"),
         "engines.big.backend: Input should be 'vllm' or 'remote' or 'scripted'"),
        (GOOD.replace("{model: org/big", "{backend: [vllm], model: org/big"),
         "engines.big.backend: Input should be 'vllm' or 'remote' or 'scripted'"),
        (GOOD.replace("{model: org/big", "{backend: scripted, model: org/big"),
         "engines.big.device: Extra inputs are not permitted"),
        (GOOD.replace("{model: org/big, device: \"0\"}", "org/big"), "engines.big: Input should be "
         "a valid dictionary"),
        (GOOD.replace("model: org/big, ", ""), "engines.big.model: Field required"),
        (GOOD + "server: {port: http}\n", "server.port: Input should be a valid integer"),
        (GOOD + "server: {port: 70000}\n", "server.port: .*less than or equal to 65535"),
        (GOOD.replace("{base", "{nudging: {gamma: -1}, base"), "models.pair.nudging.gamma: .*0"),
        (GOOD.replace("{base", "{nudging: {gamma: .inf}, base"), "models.pair.nudging.gamma: "),
        (GOOD.replace("{base", "{nudging: {gamma: 40}, base"), "models.pair.nudging.gamma: γ is a "
         "probability, and this is 40: set 0.4, or 1.01"),
        (GOOD.replace("{base", "{nudging: {gamma: 3}, base"), "set 0.3, or 1.01"),
        (GOOD.replace("{base", "{nudging: {gamma: 2.01}, base"), "this is 2.01"),
        (GOOD.replace("{base", "{nudging: {gamma: 400}, base"), "set 0.4, or 1.01"),
        (GOOD.replace("{base", '{stop: [""], base'), "models.pair.stop: a stop string must not be"),
        (GOOD.replace("{base", "{stop: x, base"), "models.pair.stop: .*valid tuple"),
        (GOOD.replace("{base", f"{{stop: {list('abcdefghijklmnopq')}, base"), "models.pair.stop: "
         ".*at most 16 items"),
        (GOOD + "  pair: {base: small, aligned: big}\n", r"can't be read: line 6: 'pair' is there "
         r"twice \(first in line 5\)"),
        (GOOD + "models: {}\n", "line 6: 'models' is there twice"),
        (GOOD.replace("{base", "{base: small, base"), "line 5: 'base' is there twice"),
        (GOOD.replace("{base", "{nudging: {policy: magic}, base"), "models.pair.nudging.policy: "),
        (GOOD.replace("{base", "{sampling: {temperature: hot}, base"), "sampling.temperature: "),
        (GOOD.replace("  pair", "  a@b"), "models.a@b: "),
        (GOOD.replace("org/big,", "org/big, args: {dtype: auto},"), "engines.big: dtype: set it "
         "beside args"),
        (GOOD.replace('"0"', '"0,1"'), r"engines.big: device names 2 GPUs \(0,1\)"),
        (GOOD.replace('"0"', '"0", tensor_parallel_size: 2'), "engines.big: device names 1 GPUs"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_in_a_line_that_names_it(write: Write, text: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        config.load(write(text))
    assert "nudge.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("sevrer: {}", "sevrer: .*; did you mean 'server'?"),
        ("port: 1", "port: .*; did you mean 'server.port'?"),
        ("server: {prot: 1}", "server.prot: .*; did you mean 'port'?"),
        ("server: {max_runing: 1}", "server.max_runing: .*; did you mean 'max_running'?"),
    ],
)
def test_an_unknown_key_is_told_with_what_was_perhaps_meant(write: Write, wrong: str, meant: str):
    with pytest.raises(ConfigError, match=meant.replace("?", r"\?$")):
        config.load(write(f"{GOOD}{wrong}\n"))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("alinged: small", "alinged: .*; did you mean 'aligned'?"),
        ("gama: 1", "gama: .*; did you mean 'nudging.gamma'?"),
        ("nudging: {gama: 1}", "nudging.gama: .*; did you mean 'gamma'?"),
        ("sampling: {temprature: 1}", "sampling.temprature: .*; did you mean 'temperature'?"),
        ("temperature: 0", "temperature: .*; did you mean 'sampling.temperature'?"),
        ("zzz: 0", "zzz: Extra inputs are not permitted"),
    ],
)
def test_so_is_one_of_a_model(write: Write, key: str, meant: str):
    with pytest.raises(ConfigError, match=f"models.pair.{meant}".replace("?", r"\?") + "$"):
        config.load(write(GOOD.replace("{base", f"{{{key}, base")))


def test_an_empty_aligned_system_would_say_nothing(write: Write):
    with pytest.raises(ConfigError, match=r"models.pair.aligned_system: .*at least 1 character"):
        config.load(write(GOOD.replace("{base", "{aligned_system: '', base")))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("devise: 1", "devise: .*; did you mean 'device'?"),
        ("max_len: 16", "max_len: .*; did you mean 'max_model_len'?"),
        ("max_num_seqs: 1", "max_num_seqs: .*; what else its engine takes goes under args"),
    ],
)
def test_so_is_one_of_an_engine(write: Write, key: str, meant: str):
    with pytest.raises(ConfigError, match=f"engines.big.{meant}".replace("?", r"\?") + "$"):
        config.load(write(GOOD.replace("{model: org/big", f"{{{key}, model: org/big")))


@pytest.mark.parametrize("gamma", [0, 0.4, 1, 1.01, 2])
def test_a_threshold_that_can_be_meant_is_taken(write: Write, gamma: float):
    path = write(GOOD.replace("{base", f"{{nudging: {{gamma: {gamma}}}, base"))
    assert config.load(path).models["pair"].nudging.gamma == gamma


def test_a_key_may_be_set_anew_over_an_anchor(write: Write):
    text = GOOD.replace("big: {model", "big: &big {model").replace(
        'small: {model: org/small, device: "1"}', 'small: {<<: *big, model: org/small, device: "1"}'
    )
    assert config.load(write(text)).engines["small"].model == "org/small"


def test_all_mistakes_are_told_at_once(write: Write) -> None:
    text = GOOD.replace("device", "devise") + "server: {port: -1}\n"
    with pytest.raises(ConfigError) as caught:
        config.load(write(text))
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("nudge.yaml:")
    assert [line.split(":")[0].strip() for line in lines] == [
        "engines.big.devise",
        "engines.small.devise",
        "server.port",
    ]


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("NUDGE_SERVER__PROT", "1", "Extra inputs are not permitted; did you mean 'port'?"),
        ("NUDGE_SERVERS__PORT", "1", "sets nothing"),
        ("NUDGE_SERVER", "{", "must be a list or a mapping, written as JSON"),
        ("NUDGE_SERVER__API_KEYS", "key", "must be a list or a mapping, written as JSON"),
        ("NUDGE_SERVER", '{"prot": 1}', "prot: Extra inputs are not permitted; did you mean"),
        ("NUDGE_SERVER__API_KEYS", "[[]]", "0: Input should be"),
        ("NUDGE_ENGINES__BIG__MAX_MODEL_LEN", "long", "Input should be a valid integer"),
        ("NUDGE_MODELS__PAIR__NUDGING__GAMMA", "40", "γ is a probability"),
        ("NUDGE_MODELS__PAIR__BASE", "bigg", "no engine is named 'bigg'"),
    ],
)
def test_mistakes_in_the_environment_are_told_with_the_variable(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    monkeypatch.setenv(name, value)
    path = write()
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    told = str(caught.value)
    assert told.startswith(f"{name} in the environment")
    assert line in told
    assert str(path) not in told


def test_each_mistake_is_told_with_what_made_it(write: Write, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NUDGE_SERVER", '{"drain_s": 5}')
    monkeypatch.setenv("NUDGE_SERVER__MAX_N", "0")
    path = write(GOOD + "server: {drain_s: 1, log_level: loud}\n")
    with pytest.raises(ConfigError) as caught:
        config.load(path, server__port=-1)
    file, *others = str(caught.value).splitlines()
    assert file == f"{path}:"
    assert [line.split(": ")[0] for line in others] == [
        "  server.log_level",
        "--port",
        "NUDGE_SERVER__MAX_N in the environment",
    ]
    assert "port: " not in others[1].removeprefix("--port")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no config file .*nothing\.yaml"):
        config.load(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="can't be read"):
        config.load(tmp_path)


# -- memory shares --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("big", "small", "told"),
    [
        ("gpu_memory_utilization: 0.7", "gpu_memory_utilization: 0.4",
         r"GPU 0 .* big 0.7 \+ small 0.4 = 1.1"),
        ("dtype: auto", "gpu_memory_utilization: 0.2", r"big 0.92 \+ small 0.2"),  # the default
        ('device: "0"', "dtype: auto", "GPU 0"),  # unset is the first
        ("tensor_parallel_size: 2", 'device: "1"', "GPU 1"),  # unset: the first two
        ('device: "2, 3", tensor_parallel_size: 2', 'device: "3"', "GPU 3"),
        ("args: {pipeline_parallel_size: 3}", 'device: "2"', "GPU 2"),
    ],
)  # fmt: skip
def test_engines_that_ask_for_more_than_a_gpu_are_refused(
    write: Write, big: str, small: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        config.load(write(two_engines(big, small)))


@pytest.mark.parametrize(
    ("big", "small"),
    [
        ("gpu_memory_utilization: 0.7", "gpu_memory_utilization: 0.3"),
        ('device: "0"', 'device: "1"'),
        ("device: 0", "device: 1"),
        ("tensor_parallel_size: 2", 'device: "2"'),
        ("kv_cache_memory_bytes: 1GiB", "gpu_memory_utilization: 0.9"),
        ("kv_cache_memory_bytes: 1GiB", "kv_cache_memory_bytes: 256MiB"),
        ("device: cpu", "device: cpu"),
        ("backend: scripted", "dtype: auto"),
    ],
)
def test_engines_that_fit_are_taken(write: Write, big: str, small: str) -> None:
    assert set(config.load(write(two_engines(big, small))).engines) == {"big", "small"}


def test_a_cache_size_reaches_vllm_in_bytes(write: Write) -> None:
    path = write(two_engines("kv_cache_memory_bytes: 1GiB", 'device: "1"'))
    args = config.load(path).engines["big"].engine_args()
    assert args["kv_cache_memory_bytes"] == 2**30
    assert type(args["kv_cache_memory_bytes"]) is int


# -- model folders ------------------------------------------------------------------------------


def test_a_relative_model_folder_is_looked_up_beside_the_file(write: Write) -> None:
    path = write(GOOD.replace("org/big", "here, tokenizer: ../other/tok"))
    assert config.load(path).engines["big"].model == "here", "a hub name stays one"
    folder = path.parent / "here"
    folder.mkdir()
    engine = config.load(path).engines["big"]
    assert engine.model == str(folder.resolve())
    assert engine.tokenizer == str((path.parent / "../other/tok").resolve())


# -- the command line -----------------------------------------------------------------------------


def test_check_config_shows_what_is_served() -> None:
    result = CliRunner().invoke(app, ["check-config", str(CONFIGS / "llama-2-70b.yaml")])
    assert result.exit_code == 0, result.output
    for shown in ("served as", "llama-2-70b", "0.4", "ok"):
        assert shown in result.stdout
    assert result.stderr == ""


def test_check_config_says_what_is_wrong(write: Write) -> None:
    path = write(GOOD.replace("base: big", "base: bigg"))
    result = CliRunner().invoke(app, ["check-config", str(path)])
    assert result.exit_code != 0
    assert result.stderr.count("error") == 1
    assert "models.pair.base: no engine is named 'bigg'" in result.stderr
    assert "Traceback" not in result.output


def test_check_config_names_arguments_that_vllm_lacks(write: Write) -> None:
    path = write(GOOD.replace("org/big,", "org/big, args: {max_seqs: 1},"))
    result = CliRunner().invoke(app, ["check-config", str(path)])
    assert result.exit_code == 1
    assert (
        "engines.big.args: vLLM has no engine argument 'max_seqs'; did you mean 'max_num_seqs'?"
    ) in result.stderr


@pytest.mark.parametrize("command", [["serve", "--config"], ["check-config"]])
def test_a_missing_file_is_one_clear_message(tmp_path: Path, command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, str(tmp_path / "nothing.yaml")])
    assert result.exit_code == 2
    assert result.stderr.startswith("error there is no config file ")
    assert "nothing.yaml" in result.stderr
    assert "Traceback" not in result.output


def test_engines_on_the_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    base = config.load(config.DEFAULT_CONFIG).engines["base"]
    assert [base.threads(sharing) for sharing in (1, 2, 3)] == [7, 3, 2]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert base.threads(2) == 1
    own = config.load(config.DEFAULT_CONFIG, engines__base__cpu_threads=5)
    assert own.engines["base"].threads(2) == 5
