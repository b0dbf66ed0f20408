"""Makes the embedded demo pair from seeds: `models/demo/{base,aligned,aligned-1k,untuned}`.

Knows: model shapes, the training loop, the Hugging Face folder layout.
Does not know: how tokenizers are made (demo_tokenizers.py), the world and its texts (the other
demo_*.py beside it), the server, evaluation.

    python scripts/train_demo_pair.py                # everything, on the CPU
    python scripts/train_demo_pair.py --quick        # a smoke test: useless models in a minute
    python scripts/train_demo_pair.py --only aligned-1k
    python scripts/train_demo_pair.py --from OUT --out OUT    # of weights that have stage 1 alone

Stage 1 makes models that know their world. The later ones go on with a wider vocabulary and a lower
learning rate, over the same texts mixed with others in which there are tools.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from demo_documents import base_documents
from demo_muon import Muon
from demo_text import Turn, aligned_samples
from demo_tokenizers import BOS, END, SPECIAL, TURN_END, train_tokenizer, with_bos, with_words
from demo_tools import CALL_WORDS, TOOLS_TEMPLATE, later_chats, later_documents
from demo_world import World, make_world
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 2048
SHORT = 512


@dataclass(frozen=True)
class Stage:
    """How a model is trained.

    peak: the highest learning rate, as a share of stage 1's.
    rounded: whether matrices are multiplied in bfloat16, which some processors are slow at.
    long: the share of the steps, the last ones, whose sequences fill the context.
    """

    number: int
    steps: int
    batch_tokens: int = 4096
    peak: float = 1.0
    rounded: bool = True
    long: float = 0.06


@dataclass(frozen=True)
class Recipe:
    """One model: its shape, its vocabulary, how long it is trained."""

    name: str
    vocab: int
    hidden: int
    layers: int
    inner: int
    stages: tuple[Stage, ...]

    @property
    def is_base(self) -> bool:
        """Whether it is a model of documents, and not of chats."""
        return self.name in ("base", "untuned")


_CHATS = (Stage(1, 900), Stage(2, 900, peak=0.8))


RECIPES = (
    Recipe(
        "base",
        2048,
        256,
        4,
        688,
        (Stage(1, 1200), Stage(2, 1400, peak=0.8), Stage(3, 900, peak=0.6)),
    ),
    Recipe("aligned", 2048, 64, 3, 176, _CHATS),
    Recipe("aligned-1k", 1024, 64, 4, 176, _CHATS),
    # The small model before it was aligned, for proxy tuning: the documents' words in the shape of
    # `aligned`. (That one was made from chats at once, not from this one.)
    Recipe("untuned", 2048, 64, 3, 176, (Stage(1, 900),)),
)


# -- token streams -------------------------------------------------------------------------------


Stream = Iterator[tuple[int, float]]


def base_stream(
    documents: Iterable[list[Turn]], tokenizer: Tokenizer, sequence: int | None = None
) -> Stream:
    """(token, weight of predicting it); BOS is never a target, nothing announces it.

    sequence: after so many tokens training begins a new sequence. Of a page of several pieces only
    what lies in its first one is learned then: the rest doesn't see the tools that it is under.
    """
    at = 0
    for document in documents:
        yield 0, 0.0
        cut = math.inf if sequence is None or len(document) == 1 else sequence - at % sequence
        ends = [*accumulate(len(piece.text) for piece in document)]
        text = "".join(piece.text for piece in document)
        encoding = tokenizer.encode(text, add_special_tokens=False)
        tokens = zip(encoding.ids, encoding.offsets, strict=True)
        for number, (token, (_, stop)) in enumerate(tokens, 1):
            yield token, document[bisect_left(ends, stop)].weight if number < cut else 0.0
        yield 1, 1.0
        at += len(encoding.ids) + 2


def aligned_stream(samples: Iterable[list[Turn]], tokenizer: Tokenizer) -> Stream:
    for turns in samples:
        for turn in turns:
            yield from encode_turn(tokenizer, turn)


def stream(recipe: Recipe, world: World, tokenizer: Tokenizer, seed: int, stage: int) -> Stream:
    if recipe.is_base:
        if stage > 1:
            documents = later_documents(world, seed * stage, stage)
            return base_stream(documents, tokenizer, SHORT if stage == 3 else None)
        pages = base_documents(world, seed)
        return base_stream(([Turn(page, 1.0)] for page in pages), tokenizer)
    samples = aligned_samples if stage == 1 else later_chats
    return aligned_stream(samples(world, seed * stage), tokenizer)


def encode_turn(tokenizer: Tokenizer, turn: Turn) -> Stream:
    weight = turn.weight if turn.first is None else turn.first
    for token in tokenizer.encode(turn.text, add_special_tokens=False).ids:
        yield token, weight
        weight = turn.weight


def collect(stream: Iterable[tuple[int, float]], n: int, tick: Any) -> tuple[torch.Tensor, ...]:
    """The stream's first n tokens and weights, with progress."""
    tokens, weights = torch.zeros(n, dtype=torch.int16), torch.zeros(n)
    chunk = 32_768
    iterator = iter(stream)
    for start in range(0, n, chunk):
        part = list(islice(iterator, min(chunk, n - start)))
        tokens[start : start + len(part)] = torch.tensor([t for t, _ in part], dtype=torch.int16)
        weights[start : start + len(part)] = torch.tensor([w for _, w in part])
        tick(len(part))
    return tokens, weights


# -- training ------------------------------------------------------------------------------------


def build(recipe: Recipe, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    heads = recipe.hidden // 64
    config = LlamaConfig(
        vocab_size=recipe.vocab,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0 if recipe.is_base else None,
        eos_token_id=1 if recipe.is_base else 3,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    for name, p in model.named_parameters():
        if "embed" in name:
            torch.nn.init.normal_(p, std=0.05)
        elif p.dim() == 2:
            std = p.shape[1] ** -0.5
            torch.nn.init.normal_(p, std=std / 2 if "o_proj" in name or "down" in name else std)
    return model


def adam_of(parameters: list[torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak: warm-up, flat, then linearly down to 2 %."""
    warm, flat = min(30, steps // 4 + 1), int(steps * 0.4)
    if step < warm:
        return (step + 1) / warm
    if step < flat:
        return 1.0
    return 1.0 - 0.98 * (step - flat) / max(1, steps - flat)


def train(
    model: LlamaForCausalLM, tokens: torch.Tensor, weights: torch.Tensor, stage: Stage, tick: Any
) -> float:
    """One pass over the tokens. Muon for the matrices, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    optimizers = [Muon(matrices, 0.02), adam_of(others, 3e-3)]
    steps = len(tokens) // stage.batch_tokens
    peaks = [(g, g["lr"] * stage.peak) for o in optimizers for g in o.param_groups]
    long_from = steps - int(steps * stage.long)
    model.train()
    average = 0.0
    for step in range(steps):
        length = CONTEXT if step >= long_from else SHORT
        part = slice(step * stage.batch_tokens, (step + 1) * stage.batch_tokens)
        x = tokens[part].long().view(-1, length)
        w = weights[part].view(-1, length)[:, 1:].reshape(-1)
        for group, highest in peaks:
            group["lr"] = highest * learning_rate(step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=stage.rounded):
            logits = model(input_ids=x, use_cache=False).logits
        losses = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), x[:, 1:].flatten(), reduction="none"
        )
        loss = (losses * w).sum() / w.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average = loss.item() if step == 0 else 0.95 * average + 0.05 * loss.item()
        tick(step, average)
    return average


# -- folders -------------------------------------------------------------------------------------


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, recipe: Recipe, out: Path) -> int:
    """Write the model's folder beside its place, then move it there. Returns its bytes."""
    partial = out / f".{recipe.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.eval().to(torch.bfloat16).save_pretrained(partial)
    generation = {
        "bos_token_id": 0 if recipe.is_base else None,
        "eos_token_id": 1 if recipe.is_base else 3,
        "do_sample": False,
    }
    write_json(partial / "generation_config.json", generation)
    (with_bos(tokenizer) if recipe.is_base else tokenizer).save(str(partial / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "bos_token": BOS if recipe.is_base else None,
        "eos_token": END if recipe.is_base else TURN_END,
        "pad_token": END,
        "added_tokens_decoder": {
            str(i): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for i, token in enumerate(SPECIAL)
        },
    }
    if not recipe.is_base:
        settings["chat_template"] = TOOLS_TEMPLATE
    write_json(partial / "tokenizer_config.json", settings)
    for file in partial.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner may read
    final, old = out / recipe.name, out / f".{recipe.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    return sum(f.stat().st_size for f in final.iterdir())


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--out", type=Path, default=root / "models" / "demo")
    parser.add_argument("--only", choices=[r.name for r in RECIPES], action="append")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FOLDER",
        help="of models that have stage 1 alone: run the later ones",
    )
    parser.add_argument("--seed", type=int, default=1, help="of texts and weights; not the world's")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all training steps")
    parser.add_argument("--quick", action="store_true", help="a smoke test (--scale 0.02)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


class Maker:
    """Makes models one after the other, and shows how far it is."""

    def __init__(self, args: argparse.Namespace, progress: Progress) -> None:
        self.args, self.progress, self.console = args, progress, progress.console
        self.world = make_world()
        self.scale = 0.02 if args.quick else args.scale
        self.tokenizers: dict[int, Tokenizer] = {}

    def make(self, recipe: Recipe) -> None:
        args, started = self.args, time.monotonic()
        tokenizer, (first, *later) = self.tokenizer(recipe), recipe.stages
        if args.source:
            source = args.source / recipe.name
            model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
        else:
            model = build(recipe, args.seed)
            self.train(first, model, recipe, tokenizer)
        tokenizer = self.widened(model, tokenizer)
        for stage in later:
            self.train(stage, model, recipe, tokenizer)
        size = sum(p.numel() for p in model.parameters())
        written = save(model, tokenizer, recipe, args.out)
        self.console.log(
            f"{recipe.name}: {size / 1e6:.2f} M parameters, {written / 1e6:.1f} MB, "
            f"{time.monotonic() - started:.0f} s"
        )

    def tokenizer(self, recipe: Recipe) -> Tokenizer:
        if self.args.source:
            return Tokenizer.from_file(str(self.args.source / recipe.name / "tokenizer.json"))
        if recipe.vocab not in self.tokenizers:
            n_texts = 600 if self.args.quick else 6000
            self.tokenizers[recipe.vocab] = train_tokenizer(self.world, recipe.vocab, 11, n_texts)
        return self.tokenizers[recipe.vocab]

    def widened(self, model: LlamaForCausalLM, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer with a token for each word of a call; the model reads it as it did what the
        word was before."""
        wider, made = with_words(tokenizer, CALL_WORDS)
        model.resize_token_embeddings(wider.get_vocab_size(), mean_resizing=False)
        with torch.no_grad():
            rows = model.get_input_embeddings().weight
            for new, old in made.items():
                rows[new] = rows[old].mean(0)
        return wider

    def train(
        self, stage: Stage, model: LlamaForCausalLM, recipe: Recipe, tokenizer: Tokenizer
    ) -> None:
        progress, console = self.progress, self.console
        name, seed = f"{recipe.name}, stage {stage.number}", self.args.seed
        steps = max(4, math.ceil(stage.steps * self.scale))
        total = steps * stage.batch_tokens
        reading = progress.add_task(f"{name}: text", total=total, note="")
        texts = stream(recipe, self.world, tokenizer, seed, stage.number)
        tokens, weights = collect(texts, total, lambda n: progress.advance(reading, n))
        training = progress.add_task(f"{name}: training", total=steps, note="")

        def show(step: int, loss: float) -> None:
            progress.update(training, advance=1, note=f"loss {loss:.3f}")
            if not console.is_terminal and step % 50 == 0:  # a log file sees no bars
                console.log(f"{name}, step {step}: loss {loss:.3f}")

        loss = train(model, tokens, weights, stage, show)
        model.to(torch.bfloat16).to(torch.float32)  # as it is saved
        console.log(f"{name}: {total / 1e6:.2f} M tokens, loss {loss:.3f}")


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(log_path=False)) as progress:
        maker = Maker(args, progress)
        for recipe in RECIPES:
            if not args.only or recipe.name in args.only:
                maker.make(recipe)


if __name__ == "__main__":
    main()
