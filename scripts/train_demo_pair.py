"""Makes the embedded demo pair from seeds: `models/demo/{base,aligned,aligned-1k,untuned}`.

Knows: tokenizers, model shapes, the training loop, the Hugging Face folder layout.
Does not know: the world and its texts (demo_*.py beside it), the server, evaluation.

    python scripts/train_demo_pair.py                # everything, on the CPU
    python scripts/train_demo_pair.py --quick        # a smoke test: useless models in a minute
    python scripts/train_demo_pair.py --only aligned-1k
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from demo_documents import base_documents
from demo_text import Turn, aligned_samples
from demo_world import World, make_world
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

BOS, END, TURN, TURN_END = "<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (BOS, END, TURN, TURN_END)  # ids 0, 1, 2, 3
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTEXT = 2048
SHORT = 512  # most training sequences; the last LONG_SHARE of the steps uses full contexts
LONG_SHARE = 0.06
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Recipe:
    """One model: its shape, its vocabulary, how long it is trained."""

    name: str
    vocab: int
    hidden: int
    layers: int
    inner: int
    steps: int

    @property
    def is_base(self) -> bool:
        """Whether it is a model of documents, and not of chats."""
        return self.name in ("base", "untuned")


RECIPES = (
    Recipe("base", 2048, 256, 4, 688, 1200),
    Recipe("aligned", 2048, 64, 3, 176, 900),
    Recipe("aligned-1k", 1024, 64, 4, 176, 900),
    # The small model before it was aligned, for proxy tuning: the documents' words in the shape of
    # `aligned`. (That one was made from chats at once, not from this one.)
    Recipe("untuned", 2048, 64, 3, 176, 900),
)


# -- tokenizers ----------------------------------------------------------------------------------


def train_tokenizer(world: World, vocab: int, seed: int, n_texts: int) -> Tokenizer:
    """Byte-level BPE over both kinds of text, with the full byte alphabet: all Unicode works."""

    def texts() -> Iterator[str]:
        yield from islice(base_documents(world, seed), n_texts)
        for turns in islice(aligned_samples(world, seed), n_texts // 2):
            text = "".join(t.text for t in turns)
            for special in SPECIAL:
                text = text.replace(special, " ")
            yield text

    tokenizer = Tokenizer(models.BPE())
    # Words never contain whitespace after another character: a word's end is a token's end.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def with_bos(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that puts the begin-of-text token before a text by itself."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single=f"{BOS} $A",
            pair=f"{BOS} $A {BOS} $B:1",
            special_tokens=[(BOS, copy.token_to_id(BOS))],
        ),
    ])  # fmt: skip
    return copy


# -- token streams -------------------------------------------------------------------------------


def base_stream(world: World, tokenizer: Tokenizer, seed: int) -> Iterator[tuple[int, float]]:
    """(token, weight of predicting it); BOS is never a target, nothing announces it."""
    for document in base_documents(world, seed):
        yield 0, 0.0
        for token in tokenizer.encode(document, add_special_tokens=False).ids:
            yield token, 1.0
        yield 1, 1.0


def aligned_stream(world: World, tokenizer: Tokenizer, seed: int) -> Iterator[tuple[int, float]]:
    for turns in aligned_samples(world, seed):
        for turn in turns:
            yield from encode_turn(tokenizer, turn)


def encode_turn(tokenizer: Tokenizer, turn: Turn) -> Iterator[tuple[int, float]]:
    for token in tokenizer.encode(turn.text, add_special_tokens=False).ids:
        yield token, turn.weight


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


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak: warm-up, flat, then linearly down to 2 %."""
    warm, flat = min(30, steps // 4 + 1), int(steps * 0.4)
    if step < warm:
        return (step + 1) / warm
    if step < flat:
        return 1.0
    return 1.0 - 0.98 * (step - flat) / max(1, steps - flat)


def train(
    model: LlamaForCausalLM, tokens: torch.Tensor, weights: torch.Tensor, steps: int, tick: Any
) -> float:
    """One pass over the tokens. Muon for the matrices, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    muon = torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.0)
    adam = torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    peaks = [(g, g["lr"]) for o in (muon, adam) for g in o.param_groups]
    long_from = steps - int(steps * LONG_SHARE)
    model.train()
    average = 0.0
    for step in range(steps):
        length = CONTEXT if step >= long_from else SHORT
        part = slice(step * BATCH_TOKENS, (step + 1) * BATCH_TOKENS)
        x = tokens[part].long().view(-1, length)
        w = weights[part].view(-1, length)[:, 1:].reshape(-1)
        for group, peak in peaks:
            group["lr"] = peak * learning_rate(step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=x, use_cache=False).logits
        losses = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), x[:, 1:].flatten(), reduction="none"
        )
        loss = (losses * w).sum() / w.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in (muon, adam):
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
        settings["chat_template"] = CHAT_TEMPLATE
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
    parser.add_argument("--seed", type=int, default=1, help="of texts and weights; not the world's")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all training steps")
    parser.add_argument("--quick", action="store_true", help="a smoke test (--scale 0.02)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    console = Console(log_path=False)
    world = make_world()
    scale = 0.02 if args.quick else args.scale
    tokenizers: dict[int, Tokenizer] = {}
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        for recipe in RECIPES:
            if args.only and recipe.name not in args.only:
                continue
            started = time.monotonic()
            if recipe.vocab not in tokenizers:
                n_texts = 600 if args.quick else 6000
                tokenizers[recipe.vocab] = train_tokenizer(world, recipe.vocab, 11, n_texts)
            tokenizer = tokenizers[recipe.vocab]
            steps = max(4, math.ceil(recipe.steps * scale))
            total = steps * BATCH_TOKENS
            task = progress.add_task(f"{recipe.name}: text", total=total, note="")
            source = base_stream if recipe.is_base else aligned_stream
            tokens, weights = collect(
                source(world, tokenizer, args.seed),
                total,
                lambda n, task=task: progress.advance(task, n),
            )
            model = build(recipe, args.seed)
            size = sum(p.numel() for p in model.parameters())
            task = progress.add_task(f"{recipe.name}: training", total=steps, note="")

            def show(step: int, loss: float, task: Any = task) -> None:
                progress.update(task, advance=1, note=f"loss {loss:.3f}")
                if not console.is_terminal and step % 50 == 0:  # a log file sees no bars
                    console.log(f"step {step}: loss {loss:.3f}")

            loss = train(model, tokens, weights, steps, show)
            written = save(model, tokenizer, recipe, args.out)
            console.log(
                f"{recipe.name}: {size / 1e6:.2f} M parameters, {total / 1e6:.2f} M tokens, "
                f"loss {loss:.3f}, {written / 1e6:.1f} MB, {time.monotonic() - started:.0f} s"
            )


if __name__ == "__main__":
    main()
