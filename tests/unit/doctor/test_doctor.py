"""The doctor: what is wrong is told once, clearly, before a weight is loaded."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import yaml
from typer.testing import CliRunner

from server import config, doctor
from server.cli import app
from server.cli.doctor import size
from server.engines import machine
from server.engines.machine import Machine, Memory
from server.engines.report import Finding
from server.engines.vllm import build, weights
from server.engines.vllm.build import Vllm
from tests.conftest import CONFIGS, DEMO, ROOT
from tests.unit.doctor.hub import hub

GIB = 2**30
INDEX = "model.safetensors.index.json"
CPU = Machine(Vllm("0.32.0", cpu=True), {}, Memory(24 * GIB, 20 * GIB))
GPU = Memory(24 * GIB, 24 * GIB)
ONE_GPU = Machine(Vllm("0.32.0", cpu=False), {"0": GPU}, Memory(64 * GIB))


@dataclass
class World:
    """A configuration with a pair of its own, to be broken."""

    base: Path
    aligned: Path
    content: dict[str, Any]
    path: Path

    def edit(self, folder: Path, name: str, **changes: object) -> None:
        """Set keys of a JSON file; None takes one away."""
        whole = json.loads((folder / name).read_text()) | changes
        kept = {key: value for key, value in whole.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    def engine(self, name: str = "base") -> dict[str, Any]:
        return self.content["engines"][name]

    def write(self) -> Path:
        self.path.write_text(yaml.safe_dump(self.content, sort_keys=False))
        return self.path

    def report(self, here: Machine = CPU, **options: int) -> doctor.Report:
        return doctor.examine(config.load(self.write()), here, **options)


@pytest.fixture
def world(tmp_path: Path) -> World:
    content = yaml.safe_load((CONFIGS / "demo.yaml").read_text())
    for name in ("base", "aligned"):
        shutil.copytree(DEMO / name, tmp_path / name)
        content["engines"][name]["model"] = f"./{name}"
    return World(tmp_path / "base", tmp_path / "aligned", content, tmp_path / "nudge.yaml")


def told(report: doctor.Report, level: str) -> list[str]:
    return [str(finding) for finding in report.findings if finding.level == level]


# -- what is right --------------------------------------------------------------------------------


def test_a_good_configuration_has_no_warning(world: World):
    report = world.report()
    assert report.ok
    assert told(report, "warning") == []
    text = "\n".join(map(str, report.findings))
    for part in (
        "engines.base: 3.7 M parameters, 7.1 MiB in 1 file",
        "a prompt begins with <|bos|>; ends at <|endoftext|>",
        "a prompt begins with nothing; ends at <|im_end|>",
        "one vocabulary (2114 tokens): handed over as tokens",
        "context of 2048 tokens",
        "takes a system message and several turns",
    ):
        assert part in text


def test_torch_and_vllm_are_not_imported_for_the_checks_that_need_no_tokenizer():
    code = (
        "import sys, server.cli, server.doctor\n"
        "from server.doctor import settings\n"
        "from server.engines import machine\n"
        "from server import config\n"
        "assert settings.problems(config.load(config.DEFAULT_CONFIG)) == []\n"
        "machine.look()\n"
        "print([name for name in ('torch', 'vllm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_engine_arguments_read_off_vllms_source_are_vllms():
    from vllm.engine.arg_utils import AsyncEngineArgs

    assert build.engine_args() == {each.name for each in fields(AsyncEngineArgs)}


def test_the_build_of_vllm_is_told_as_vllm_tells_it():
    from vllm.platforms import current_platform

    found = build.installed()
    assert found is not None
    assert found.cpu == current_platform.is_cpu()


# -- what is broken -------------------------------------------------------------------------------


def no_folder(world: World) -> None:
    world.engine()["model"] = "./nowhere"


def no_config(world: World) -> None:
    (world.base / "config.json").unlink()


def config_is_no_json(world: World) -> None:
    (world.base / "config.json").write_text('{"model_type": ')


def no_weights(world: World) -> None:
    (world.base / "model.safetensors").unlink()


def lfs_pointer(world: World) -> None:
    (world.base / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7381504\n"
    )


def cut_off(world: World) -> None:
    path = world.base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def not_safetensors(world: World) -> None:
    (world.base / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0this is no json!")


def missing_shard(world: World) -> None:
    (world.base / "model.safetensors").rename(world.base / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors",
                            "b": "model-00002-of-00002.safetensors"}}  # fmt: skip
    (world.base / INDEX).write_text(json.dumps(index))


def broken_index(world: World) -> None:
    (world.base / INDEX).write_text("[]")


def no_tokenizer(world: World) -> None:
    (world.base / "tokenizer.json").unlink()


def wordpiece(world: World) -> None:
    spec = json.loads((world.base / "tokenizer.json").read_text())
    spec["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (world.base / "tokenizer.json").write_text(json.dumps(spec))


def tokenizer_elsewhere_is_missing(world: World) -> None:
    world.engine()["tokenizer"] = "./elsewhere"


def no_template(world: World) -> None:
    world.edit(world.aligned, "tokenizer_config.json", chat_template=None)


def template_is_wrong(world: World) -> None:
    world.content["models"]["demo"]["chat_template"] = "{% for m in messages %}"


def base_prompt_is_wrong(world: World) -> None:
    world.content["models"]["demo"]["base_prompt"] = "{{ questoin }}"


def template_refuses_everything(world: World) -> None:
    world.content["models"]["demo"]["chat_template"] = "{{ raise_exception('no chats today') }}"


def no_end(world: World) -> None:
    world.edit(world.base, "tokenizer_config.json", eos_token=None)
    whole = json.loads((world.base / "config.json").read_text()) | {"eos_token_id": None}
    (world.base / "config.json").write_text(json.dumps(whole))
    world.edit(world.base, "generation_config.json", eos_token_id=None)


def too_long(world: World) -> None:
    world.engine()["max_model_len"] = 4096


def more_than_the_machine(world: World) -> None:
    world.engine()["kv_cache_memory_bytes"] = "23GiB"
    world.engine("aligned")["kv_cache_memory_bytes"] = "23GiB"


def placed_on_a_gpu(world: World) -> None:
    world.engine()["device"] = "0"


def argument_of_nobody(world: World) -> None:
    world.engine()["args"]["max_seqs"] = 3


def keys_file_missing(world: World) -> None:
    world.content["server"] = {"api_keys_file": "keys.txt"}


def scripted_without_tokenizer(world: World) -> None:
    world.content["engines"]["base"] = {"backend": "scripted", "model": "./nothing"}


def two_vocabularies(world: World, **settings: object) -> None:
    world.engine("aligned")["model"] = str(DEMO / "aligned-1k")
    world.content["models"]["demo"].update(settings)


def verify_with_two_vocabularies(world: World) -> None:
    two_vocabularies(world, verify=True)


def eager_with_two_vocabularies(world: World) -> None:
    two_vocabularies(world, eager=True)


def ensemble_of_two_vocabularies(world: World) -> None:
    two_vocabularies(world, nudging={"policy": "ensemble"})


def third_model(world: World, model: Path, **settings: object) -> None:
    world.content["engines"]["third"] = {**world.engine("aligned"), "model": str(model)}
    world.content["models"]["demo"] |= {"untuned": "third"} | settings


def proxy_tuning_with_another_vocabulary(world: World) -> None:
    third_model(world, DEMO / "aligned-1k", nudging={"policy": "proxy_tuning"})


def third_model_without_weights(world: World) -> None:
    folder = world.path.parent / "third"
    shutil.copytree(DEMO / "untuned", folder)
    (folder / "model.safetensors").unlink()
    third_model(world, folder, nudging={"policy": "proxy_tuning"})


def third_model_without_tokenizer(world: World) -> None:
    folder = world.path.parent / "third"
    shutil.copytree(DEMO / "untuned", folder)
    (folder / "tokenizer.json").unlink()
    third_model(world, folder, nudging={"policy": "proxy_tuning"})


BROKEN: list[tuple[Callable[[World], None], str]] = [
    (no_folder, "engines.base: there is no folder .*/nowhere. A relative path is looked up beside"),
    (no_config, "engines.base: there is no config.json in .*/base. Name a model's folder"),
    (config_is_no_json, "engines.base: .*config.json.* Download it again"),
    (no_weights, "engines.base: there are no weights in .*/base. Copy or download the model again"),
    (lfs_pointer, "engines.base: .*model.safetensors is a pointer of Git LFS.* Run git lfs pull"),
    (cut_off, r"engines.base: .* is no whole safetensors file \(.*\). Copy or download"),
    (not_safetensors, "engines.base: .* is no whole safetensors file"),
    (missing_shard, r"1 of 2 weight files are missing from .*\(model-00002-of-00002.safetensors\)"),
    (broken_index, "engines.base: .*index.json can't be read"),
    (no_tokenizer, "engines.base: .*tokenizer.*A tokenizer.json is needed"),
    (wordpiece, "engines.base: only byte-level BPE and SentencePiece-style .*WordPiece"),
    (tokenizer_elsewhere_is_missing, "engines.base: there is no folder .*/elsewhere"),
    (no_template, "models.demo: the aligned model .* has no chat template. Name an instruct"),
    (template_is_wrong, "models.demo: chat_template, line 1"),
    (base_prompt_is_wrong, "models.demo.base_prompt: there is no questoin"),
    (template_refuses_everything, "models.demo: a question can't be asked: .*no chats today"),
    (no_end, "engines.base: the model names no end-of-text token. Set eos_token_id"),
    (too_long, "engines.base: max_model_len is 4096, and the model was made for 2048 tokens"),
    (more_than_the_machine, "the CPU: its engines ask for 47.5 GiB of 24.0 GiB: 23.5 GiB too much. "
     "Set kv_cache_memory_bytes of base to 256MiB and kv_cache_memory_bytes of aligned to 48MiB"),
    (placed_on_a_gpu, "engines.base: it is placed on device 0, and vLLM 0.32.0 is the CPU build"),
    (argument_of_nobody, "engines.base.args: vLLM has no engine argument 'max_seqs'"),
    (keys_file_missing, "server.api_keys_file"),
    (scripted_without_tokenizer, "engines.base: there is no folder .*/nothing"),
    (verify_with_two_vocabularies, "models.demo: verify needs two models with one vocabulary, cut "
     "alike, which 'base' and 'aligned' don't have. Leave it off"),
    (eager_with_two_vocabularies, "models.demo: eager needs two models with one.* Leave it off"),
    (ensemble_of_two_vocabularies, "models.demo: nudging.policy: the policy 'ensemble' mixes .* "
     "and these models have different ones. Ask for the policy 'nudging'"),
    (proxy_tuning_with_another_vocabulary, "nudging.policy: the policy 'proxy_tuning' mixes"),
    (third_model_without_weights, "engines.third: there are no weights in"),
    (third_model_without_tokenizer, "engines.third: .*tokenizer.*A tokenizer.json is needed"),
]  # fmt: skip


@pytest.mark.parametrize(("break_it", "message"), BROKEN, ids=lambda each: getattr(
    each, "__name__", ""))  # fmt: skip
def test_what_keeps_a_server_from_starting_is_one_error(
    world: World, break_it: Callable[[World], None], message: str
):
    break_it(world)
    report = world.report()
    errors = told(report, "error")
    assert len(errors) == 1, errors
    assert re.search(message, errors[0]), errors[0]
    assert "\n" not in errors[0]
    assert not report.ok


def test_two_vocabularies_are_told_with_what_that_means(world: World):
    two_vocabularies(world)
    report = world.report()
    assert report.ok
    assert any(
        "two vocabularies (2114 and 1121 tokens): handed over as text; logit_bias" in line
        for line in told(report, "ok")
    )


def scripted(world: World) -> None:
    for name in ("base", "aligned"):
        world.content["engines"][name] = {"backend": "scripted", "model": str(DEMO / "aligned")}


def same_engine(world: World) -> None:
    world.content["models"]["demo"]["aligned"] = "base"
    world.content["models"]["demo"]["chat_template"] = "{{ messages[0].content }}"


def swapped(world: World) -> None:
    both = world.content["engines"]
    both["base"]["model"], both["aligned"]["model"] = "./aligned", "./base"
    world.content["models"]["demo"]["chat_template"] = "{{ messages[0].content }}"


def same_model(world: World) -> None:
    world.engine("aligned")["model"] = "./base"
    world.content["models"]["demo"]["chat_template"] = "{{ messages[0].content }}"


TEMPLATE = "{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}"


def called_instruct(world: World) -> None:
    folder = world.base.rename(world.base.parent / "Fox-3B-Instruct")
    world.edit(folder, "tokenizer_config.json", chat_template=TEMPLATE)
    world.engine()["model"] = f"./{folder.name}"


def ends_turns(world: World) -> None:
    world.edit(world.base, "tokenizer_config.json", chat_template=TEMPLATE)
    world.edit(world.base, "generation_config.json", eos_token_id=[1, 3])


def lost_begin(world: World) -> None:
    spec = json.loads((world.base / "tokenizer.json").read_text())
    (world.base / "tokenizer.json").write_text(json.dumps(spec | {"post_processor": None}))


def gemma_that_lost_its_begin(world: World) -> None:
    lost_begin(world)
    world.edit(world.base, "config.json", model_type="gemma")
    world.edit(world.base, "tokenizer_config.json", add_bos_token=False)


def another_template(world: World) -> None:
    template = "<start_of_turn>user\n{{ messages[0].content }}<end_of_turn>\n"
    world.content["models"]["demo"]["chat_template"] = template


def open_to_all(world: World) -> None:
    world.content["server"] = {"host": "0.0.0.0"}


def another_end(world: World) -> None:
    world.edit(world.aligned, "tokenizer_config.json", eos_token="<|endoftext|>")
    world.edit(world.aligned, "config.json", eos_token_id=1)
    world.edit(world.aligned, "generation_config.json", eos_token_id=1)


def small_vocabulary(world: World) -> None:
    world.edit(world.base, "config.json", vocab_size=1024)


def refuses_second_turns(world: World) -> None:
    world.content["models"]["demo"]["chat_template"] = (
        "{% if messages|length > 2 %}{{ raise_exception('one turn only') }}{% endif %}"
        "{{ messages[0].content }}"
    )


def few_chats(world: World) -> None:
    world.engine()["kv_cache_memory_bytes"] = "64MiB"


def context_over_cache(world: World) -> None:
    world.engine()["kv_cache_memory_bytes"] = "4MiB"  # a context takes 16


def stretched(world: World) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
    world.edit(world.base, "config.json", rope_parameters=rope)
    world.engine()["max_model_len"] = 8193


def of_another_kind(world: World) -> None:
    world.edit(world.base, "config.json", model_type="of_tomorrow")


def gguf(world: World) -> None:
    world.engine()["model"] = "./base.gguf"


@pytest.mark.parametrize(
    ("strange", "message"),
    [
        (scripted, "engines: base, aligned: scripted, they play a text. For tests alone"),
        (same_engine, "models.demo: base and aligned are the same engine"),
        (swapped, "models.demo: the aligned model is the larger one. Are the two swapped"),
        (same_model, "models.demo: base and aligned are the same model .*/base.* name another one"),
        (called_instruct, "models.demo: the base model looks like a chat model: it has a chat "
         "template, and it is called Fox-3B-Instruct. Name the base model"),
        (ends_turns, r"models.demo: the base model looks like .* it ends at <\|im_end\|>\. Name"),
        (lost_begin, r"models.demo: the base model's prompt doesn't begin with <\|bos\|>, which "
         r"its tokenizer knows. .*begin base_prompt with <\|bos\|>"),
        (gemma_that_lost_its_begin, "models.demo: .* without which Gemma writes nonsense. Take"),
        (another_template, "models.demo: the chat template writes <start_of_turn>, <end_of_turn>, "
         "and the aligned model's vocabulary has no such token.* Take the tokenizer"),
        (open_to_all, "server: it listens on 0.0.0.0 and has no keys.* api_keys"),
        (another_end, r"models.demo: the chat template ends an answer with '<\|im_end\|>', at "
         r"which the aligned model doesn't stop.* Add its id \(3\) to eos_token_id"),
        (small_vocabulary, "engines.base: the tokenizer has 2114 tokens, and the model knows 1024"),
        (refuses_second_turns, "models.demo: a second turn can't be asked: .*one turn only"),
        (few_chats, "engines.base: 16 chats of 2048 tokens take about 256 MiB of the CPU, 192 MiB "
         "more than it is given: 4 fit. Set kv_cache_memory_bytes of base to 256MiB"),
        (context_over_cache, "engines.base: .* 0 fit, and no context of 2048 tokens, "
         "without which vLLM doesn't start. Set max_model_len to 512 at most. Or: Set kv_cache"),
        (stretched, "engines.base: max_model_len is 8193, and the model was made for 8192 tokens"),
        (of_another_kind, "engines.base: transformers can't read its config.json: .*not checked"),
        (gguf, "engines.base: a GGUF file: not checked here"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)  # fmt: skip
def test_what_is_strange_is_one_warning(
    world: World, strange: Callable[[World], None], message: str
):
    strange(world)
    report = world.report()
    warnings = told(report, "warning")
    assert report.ok, told(report, "error")
    assert len([line for line in warnings if re.search(message, line)]) == 1, warnings


@pytest.mark.parametrize(
    "settings", [{}, {"verify": "on"}, {"verify": "auto", "eager": True}, {"eager": True},
                 {"nudging": {"policy": "ensemble"}}, {"nudging": {"policy": "proxy_tuning"}}],
)  # fmt: skip
def test_what_needs_one_vocabulary_is_no_problem_with_one(
    world: World, settings: dict[str, object]
):
    third_model(world, DEMO / "untuned", **settings)
    report = world.report()
    assert told(report, "error") + told(report, "warning") == []


def test_two_vocabularies_that_nothing_needs_to_be_one_are_no_problem(world: World):
    two_vocabularies(world, verify=False, eager=False)
    report = world.report()
    assert told(report, "error") + told(report, "warning") == []


def test_a_third_model_counts_in_the_memory_plan(world: World):
    third_model(world, DEMO / "untuned")
    world.engine("third")["kv_cache_memory_bytes"] = "32MiB"
    (device,) = world.report(chats=4).devices
    rows = {each.name: each for each in device.tenants}
    assert list(rows) == ["base", "aligned", "third"]
    assert rows["third"].cache == 32 * 2**20
    assert rows["third"].token == rows["aligned"].token
    world.engine("third")["kv_cache_memory_bytes"] = "40GiB"
    (error,) = told(world.report(), "error")
    assert "the CPU: its engines ask for" in error


def test_a_longer_context_is_allowed_where_vllm_is_told_to_or_positions_are_stretched(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    stretched(world)
    world.engine()["max_model_len"] = 8192
    assert told(world.report(), "warning") == []
    too_long(world)
    world.edit(world.base, "config.json", rope_parameters=None)
    assert not world.report().ok
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    assert world.report().ok


def template_alone(world: World) -> None:
    """As Qwen's base models have it."""
    world.edit(world.base, "tokenizer_config.json", chat_template=TEMPLATE)


def instruct_without_template(world: World) -> None:
    world.engine()["model"] = f"./{world.base.rename(world.base.parent / 'Fox-It').name}"


def begin_is_the_end(world: World) -> None:
    """As GPT-2 has it."""
    lost_begin(world)
    world.edit(world.base, "tokenizer_config.json", bos_token="<|endoftext|>")


def begin_is_a_turn(world: World) -> None:
    """As SmolLM2 has it."""
    lost_begin(world)
    world.edit(world.base, "tokenizer_config.json", bos_token="<|im_start|>")


def begin_is_not_wanted(world: World) -> None:
    lost_begin(world)
    world.edit(world.base, "tokenizer_config.json", add_bos_token=False)


def begin_is_in_the_prompt(world: World) -> None:
    gemma_that_lost_its_begin(world)
    world.content["models"]["demo"]["base_prompt"] = "<|bos|>Question: {{ question }}\nAnswer: "


def spelled_as_text(world: World) -> None:
    template = "[INST] {{ messages[0].content }} [/INST]"
    world.content["models"]["demo"]["chat_template"] = template


@pytest.mark.parametrize(
    "right",
    [
        template_alone,
        instruct_without_template,
        begin_is_the_end,
        begin_is_a_turn,
        begin_is_not_wanted,
        begin_is_in_the_prompt,
        spelled_as_text,
    ],
    ids=lambda each: each.__name__,
)
def test_what_other_models_do_on_purpose_is_no_warning(world: World, right: Callable[..., None]):
    right(world)
    report = world.report()
    assert told(report, "error") + told(report, "warning") == []


def test_a_chat_for_both_is_told_with_what_its_marks_are_to_the_base_model(world: World):
    world.content["models"]["demo"]["base_prompt"] = "chat"
    assert not any("base_prompt" in line for line in told(world.report(), "ok"))
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}"
    world.content["models"]["demo"]["chat_template"] = template
    spec = (world.base / "tokenizer.json").read_text().replace("<|im_end|>", "<|im_fin|>")
    (world.base / "tokenizer.json").write_text(spec)
    tokens = json.loads((world.base / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    tokens["3"]["content"] = "<|im_fin|>"
    world.edit(world.base, "tokenizer_config.json", added_tokens_decoder=tokens)
    report = world.report()
    assert told(report, "error") + told(report, "warning") == []
    assert (
        "models.demo: base_prompt: the base model reads the chat's <|im_end|> as text, and its "
        "turn ends where it writes <|im_end|>"
    ) in told(report, "ok")


def test_one_engine_is_told_one_longest_context(world: World):
    """Neither the cache nor a stretched embedding makes it longer than the model was made for."""
    for break_it in (lambda: too_long(world), lambda: stretched(world)):
        break_it()
        world.engine()["max_model_len"] = 16384
        world.engine()["kv_cache_memory_bytes"] = "80MiB"  # 10240 tokens
        report = world.report(chats=1)
        told_ = "\n".join(told(report, "error") + told(report, "warning"))
        longest = 8192 if report.ok else 2048
        assert report.ok or told(report, "warning") == [], "one advice, for what it would be"
        assert set(re.findall(r"(\d+) at most", told_)) == {str(longest)}, told_


@pytest.mark.parametrize(
    ("finding", "said"),
    [
        (Finding("warning", "x", "odd", "Swapped?"), "x: odd. Swapped?"),
        (Finding("warning", "x", "odd!", "Look"), "x: odd! Look"),
        (Finding("ok", "x", "odd"), "x: odd"),
    ],
)
def test_a_sentence_ends_once(finding: Finding, said: str):
    assert str(finding) == said


def test_it_does_so_on_the_terminal(world: World):
    swapped(world)
    shown = run(str(world.write())).stdout
    assert "the aligned model is the larger one." in shown
    assert "→ Are the two swapped?\n" in re.sub(" +\n", "\n", shown)


# -- the hub --------------------------------------------------------------------------------------


@pytest.fixture
def hub_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    models = {name: DEMO / "base" for name in ("org/base", "org/gated")}
    with hub(models, gated={"org/gated"}) as (url, asked):
        at_hub(url, tmp_path / "cache", monkeypatch)
        yield asked


def at_hub(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "org/none"}, "there is no folder 'org/none', and the hub has no such model"),
        ({"model": "org/gated"}, "'org/gated' is gated. Accept its licence .* set HF_TOKEN"),
        ({"model": "org/base", "revision": "nowhere"}, "has no revision 'nowhere'"),
        ({"model": "a/b/c"}, "'a/b/c' is neither a folder nor a name on the hub"),
    ],
)
def test_why_the_hub_refuses_a_model_is_told(
    world: World, hub_asked: list[str], changes: dict[str, str], message: str
):
    world.engine().update(changes)
    (error,) = told(world.report(), "error")
    assert re.search(message, error), error


def test_of_a_model_at_the_hub_only_small_files_are_fetched(world: World, hub_asked: list[str]):
    world.engine()["model"] = "org/base"
    report = world.report()
    assert report.ok, told(report, "error")
    assert "engines.base: 7.1 MiB of weights will be downloaded" in told(report, "ok")
    assert any(each.startswith("GET") and "config.json" in each for each in hub_asked)
    assert not any(each.startswith("GET") and "safetensors" in each for each in hub_asked)


def test_more_than_the_disk_holds_is_an_error(
    world: World, hub_asked: list[str], monkeypatch: pytest.MonkeyPatch
):
    world.engine()["model"] = "org/base"
    full = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=1))
    monkeypatch.setattr(weights, "shutil", full)
    (error,) = told(world.report(), "error")
    assert "7.1 MiB are to be downloaded, and" in error


def test_without_a_hub_the_cache_must_have_it_all(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    world.engine()["model"] = "org/base"
    at_hub("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    (error,) = told(world.report(), "error")
    assert "'org/base' is not in the cache, and the hub can't be reached" in error
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (error,) = told(world.report(), "error")
    assert "the hub is switched off (HF_HUB_OFFLINE)" in error
    snapshot = tmp_path / "cache" / "models--org--base" / "snapshots" / "abc"
    refs = snapshot.parent.parent / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc")
    shutil.copytree(DEMO / "base", snapshot)
    report = world.report()
    assert report.ok, told(report, "error")
    assert any("3.7 M parameters" in line for line in told(report, "ok"))
    (snapshot / "model.safetensors").unlink()
    (error,) = told(world.report(), "error")
    assert "there are no weights in" in error


# -- the machine ---------------------------------------------------------------------------------


def test_gpus_are_read_off_nvidia_smi():
    told = "0, 24576, 23000\n1, 15360, 15000\n2, [N/A], [N/A]\n"
    assert machine.parse_gpus(told) == {
        "0": Memory(24 * GIB, 23000 * 2**20),
        "1": Memory(15 * GIB, 15000 * 2**20),
    }


def on_gpu(world: World) -> None:
    for name, share in (("base", 0.6), ("aligned", 0.3)):
        engine = world.engine(name)
        del engine["kv_cache_memory_bytes"]
        engine |= {"device": "0", "gpu_memory_utilization": share}


def test_a_plan_for_a_gpu_that_is_here(world: World):
    on_gpu(world)
    report = world.report(ONE_GPU)
    assert report.ok, told(report, "error")
    (device,) = report.devices
    assert (device.name, device.memory) == ("GPU 0", GPU)
    # 4 layers, K and V of 4 heads of 64 numbers, 4 bytes each
    assert [each.token for each in device.tenants] == [8192, 3 * 2 * 2 * 32 * 4]


@pytest.mark.parametrize(
    ("changes", "here", "message"),
    [
        ({"device": "3"}, ONE_GPU, r"there is no GPU 3 here \(nvidia-smi shows: 0\)"),
        ({"device": "cpu"}, ONE_GPU, "placed on device cpu, and vLLM .* needs a GPU"),
    ],
)  # fmt: skip
def test_a_device_that_will_not_do_is_told(
    world: World, changes: dict[str, str], here: Machine, message: str
):
    on_gpu(world)
    world.engine().update(changes)
    errors = told(world.report(here), "error")
    assert len(errors) == 1, errors
    assert re.search(message, errors[0])


def test_tensor_parallel_engines_need_a_part_of_each_gpu(world: World):
    on_gpu(world)
    world.engine().update({"device": "0,1", "tensor_parallel_size": 2})
    gpus = {name: GPU for name in "01"}
    first, second = world.report(replace(ONE_GPU, gpus=gpus)).devices
    assert [each.name for each in first.tenants] == ["base", "aligned"]
    (base,) = second.tenants
    assert base.token == 4096, "half of the heads"
    # Embeddings (tied), 4 layers of attention, MLP and norms, a last norm; 4 bytes each, halved.
    layer = 4 * 256 * 256 + 3 * 256 * 688 + 2 * 256
    assert base.weights == pytest.approx((2114 * 256 + 4 * layer + 256) * 4 / 2, rel=1e-3)


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bytes_"), [("24GiB", 24 * GIB), ("80 GB", 80 * 10**9), ("1024", 1024)]
)
def test_sizes(text: str, bytes_: int):
    assert size(text) == bytes_


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["doctor", *args], env={"COLUMNS": "160"})


def test_it_shows_findings_and_the_memory(world: World):
    result = run(str(world.write()))
    assert result.exit_code == 0, result.output
    for part in (
        "models.demo",
        "memory of the CPU",
        "for 16 chats of 2048",
        "32768",
        "ok, no warn",
    ):
        assert part in result.stdout


def test_it_ends_with_1_where_something_is_wrong(world: World):
    no_template(world)
    result = run(str(world.write()))
    assert result.exit_code == 1
    assert "→ Name an instruct or chat model" in result.stdout
    assert "1 error, no warnings" in result.stdout


@pytest.mark.parametrize("text", ["engines: [", "engines: {}", None])
def test_a_file_that_is_no_configuration_is_one_error(tmp_path: Path, text: str | None):
    path = tmp_path / "x.yaml"
    if text is not None:
        path.write_text(text)
    result = run(str(path), "--json")
    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)["findings"]
    assert finding["level"] == "error"


def test_memory_over_1_is_one_error(world: World):
    on_gpu(world)
    world.engine()["gpu_memory_utilization"] = 0.9
    result = run(str(world.write()), "--json")
    (finding,) = json.loads(result.stdout)["findings"]
    assert "base 0.9 + aligned 0.3 = 1.2" in finding["message"]


def test_for_machines_it_is_json_with_sizes_in_bytes(world: World):
    result = run(str(world.write()), "--json", "--chats", "3", "--length", "100")
    told_ = json.loads(result.stdout)
    assert told_["ok"] is True
    (device,) = told_["memory"]
    base = device["engines"][0]
    assert base["kv_cache"] == 256 * 2**20
    assert base["kv_bytes_per_token"] == 8192
    assert (base["tokens"], base["chat"]) == (32768, 100)
    assert base["chats"] == 327


def test_gpus_can_be_assumed(world: World):
    on_gpu(world)
    result = run(str(world.write()), "--gpu-memory", "24GiB", "--json")
    told_ = json.loads(result.stdout)
    assert told_["ok"], "that they aren't here, or this vLLM is the CPU's, is only a warning then"
    assert [device["device"] for device in told_["memory"]] == ["GPU 0"]
    assert told_["memory"][0]["total"] == 24 * GIB
    assert run(str(world.write()), "--gpu-memory", "big").exit_code == 2


def test_engines_that_are_placed_nowhere_are_planned_for_the_gpus_that_are_assumed(world: World):
    assert [each.name for each in world.report().devices] == ["the CPU"]
    planned = replace(CPU, gpus={"0": GPU}, planned=True)
    assert [each.name for each in world.report(planned).devices] == ["GPU 0"]


def test_vllms_cpu_build_needs_libnuma(world: World):
    (error,) = told(world.report(replace(CPU, numa=False)), "error")
    assert "libnuma.so.1 is missing" in error
    assert "apt-get install libnuma1" in error
    on_gpu(world)
    assert world.report(replace(ONE_GPU, numa=False)).ok
    assert machine.look().numa, "these tests run on vLLM's CPU build"


def test_a_gpu_of_unknown_size_is_said(world: World):
    on_gpu(world)
    report = world.report(replace(CPU, vllm=Vllm("0.32.0", cpu=False)))
    assert any("GPU 0: its size isn't known here" in line for line in told(report, "warning"))


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_serve_refuses_what_the_doctor_finds(world: World, command: str):
    no_template(world)
    began = time.monotonic()
    arguments = {"serve": ["serve", "--port", "0", "--config"], "doctor": ["doctor"]}[command]
    result = CliRunner().invoke(app, [*arguments, str(world.write())], env={"COLUMNS": "400"})
    assert result.exit_code == {"serve": 2, "doctor": 1}[command]
    assert "has no chat template" in result.output
    assert result.output.count("error") == (1 if command == "serve" else 2)
    assert time.monotonic() - began < 30
