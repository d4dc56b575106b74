"""``fastctc demo``: train the small preset on formant speech, test it with and without an n-gram
model of its training texts, say what came out."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fastctc._build import build_info
from fastctc.train.app import TrainCLI
from fastctc.train.arguments import (
    BEST,
    CHECKPOINTS,
    LAST,
    expand_arguments,
    percent,
    read_checkpoint,
)
from fastctc.train.data import Batch
from fastctc.train.module import SpeechModule
from fastctc.train.tuning import BEAM, ORDER, WEIGHTS, Tuned, beam, letter_model, tune

_PRESET = "deepspeech2-small.yaml"
_REPETITIONS = 7
_LETTERS = "letters.arpa.gz"


def demo(args: Sequence[str]) -> int:
    """Run the demo; ``args`` are its options, and any option of ``fastctc fit`` after them."""
    parser = argparse.ArgumentParser(
        prog="fastctc demo",
        description="Train the small DeepSpeech2 on the built-in formant speech and test it on "
        "unseen speakers. Any option of fastctc fit may follow, as in --trainer.max_epochs 2.",
    )
    parser.add_argument("--seed", type=int, default=0, help="seeds corpus, weights and shuffling")
    # In so small a network threads wait for each other more than they work.
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default 1)")
    options, rest = parser.parse_known_args(args)
    if options.seed < 0:
        parser.error(f"--seed is {options.seed}: it must not be negative")
    if options.threads < 1:
        parser.error(f"--threads is {options.threads}: at least 1 is needed")
    torch.set_num_threads(options.threads)

    start = time.perf_counter()
    seed = str(options.seed)
    fit = ["fit", "--config", _PRESET, "--name", "demo", "--seed_everything", seed]
    fit += ["--data.formant.seed", seed, "--data.seed", seed]
    cli = TrainCLI(expand_arguments([*fit, *rest]))
    trained = time.perf_counter()

    loader = cli.datamodule.train_dataloader()
    loader.batch_sampler.set_epoch(1)  # the first epoch would begin with the shortest utterances
    share = loss_share(cli.model, next(iter(loader)))
    best = cli.folder / CHECKPOINTS / BEST
    tuned = _add_decoders(cli, best) if build_info()["compiled"] else None
    cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=str(best), verbose=False)
    done = time.perf_counter()
    _summary(cli, tuned, share, trained - start, done - trained)
    return 0


def _add_decoders(cli: TrainCLI, best: Path) -> Tuned:
    """Let the tests of the best checkpoint decode by beam search too, without and with n-grams."""
    cli.model.load_state_dict(read_checkpoint(best)["state_dict"])
    ngrams = letter_model(cli.datamodule.texts("train"), cli.folder / _LETTERS)
    tuned = tune(cli.model, ngrams, cli.datamodule.val_dataloader())
    cli.model.decoders = {f"beam {BEAM}": beam(), f"beam {BEAM} + n-gram": tuned.decoder}
    return tuned


def ngram_verdict(name: str, greedy: float, fused: float) -> str:
    """Return a sentence on whether the n-gram model helps a set, from its word error rates."""
    where = f"With beam and n-gram the WER on {name}"
    if fused < greedy:
        return f"{where} falls from {percent(greedy)} to {percent(fused)}."
    if fused > greedy:
        return (
            f"{where} rises from {percent(greedy)} to {percent(fused)}:\n"
            "the model expects the words of the training texts."
        )
    return f"{where} stays the same."


def loss_share(model: SpeechModule, batch: Batch) -> float:
    """Return the share of forward + backward of ``batch`` that the loss takes, forward + backward.

    Medians of CPU time, which other programs on the machine hardly touch. Leaves the model's
    weights, gradients and mode alone.
    """
    whole, loss_only = [], []
    was_training = model.training
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    model.train()
    for _ in range(_REPETITIONS):
        start = time.process_time()
        scores, lengths = model(batch)
        middle = time.process_time()
        leaf = scores.detach().requires_grad_()
        model.losses(leaf, lengths, batch).mean().backward()
        ready = time.process_time()
        torch.autograd.grad(scores, list(model.network.parameters()), leaf.grad)
        end = time.process_time()
        whole.append(end - start)
        loss_only.append(ready - middle)
    model.train(was_training)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return statistics.median(loss_only) / statistics.median(whole)


def _summary(
    cli: TrainCLI, tuned: Tuned | None, share: float, training: float, testing: float
) -> None:
    evaluations = {k.replace("_", " "): v for k, v in cli.model.evaluations.items()}
    table = Table()
    for title in ("set", "decoding", "CER", "WER"):
        table.add_column(title, justify="right" if title.endswith("ER") else "left")
    for name, evaluation in evaluations.items():
        first = f"{name}, {evaluation.utterances} utterances"
        for decoding, rates in {"greedy": evaluation.rates, **evaluation.others}.items():
            table.add_row(first, decoding, percent(rates.cer), percent(rates.wer))
            first = ""
        table.add_section()
    console = Console()
    console.print()
    console.print(table)
    print(
        "heldout: unseen speakers (pitch and vocal tract outside training's ranges) and unseen\n"
        "strings of known words; new words: such speakers and words that training never saw."
    )
    if tuned is None:
        print("Beam search was left out: fastctc was installed without its compiled library.")
    else:
        print(
            f"n-gram: letters, up to {ORDER} in a row, counted in the training texts. Its weight "
            f"is {tuned.weight:g}, which\nof {', '.join(f'{w:g}' for w in WEIGHTS[:-1])} and "
            f"{WEIGHTS[-1]:g} gives the lowest CER on the validation set ({percent(tuned.cer)}),\n"
            "whose words are known ones."
        )
        for name, evaluation in evaluations.items():
            fused = list(evaluation.others.values())[-1]
            print(ngram_verdict(name, evaluation.rates.wer, fused.wer))
    parameters = sum(p.numel() for p in cli.model.network.parameters())
    print(
        f"{parameters / 1e6:.2f} M parameters, {cli.trainer.global_step} steps. Corpus and "
        f"training took {training:.0f} s, testing {testing:.0f} s (torch threads: "
        f"{torch.get_num_threads()}, cores: {os.cpu_count()})."
    )
    print(
        f"The CTC loss takes {share:.1%} of the CPU time of forward + backward here: in so small a "
        "model a faster loss hardly shows."
    )
    folder = cli.folder
    paths: list[tuple[str, Path | None]] = [
        ("run folder", folder),
        ("curves", cli.recorder.curves if cli.recorder else None),
        ("best checkpoint", folder / CHECKPOINTS / BEST),
        ("last checkpoint", folder / CHECKPOINTS / LAST),
        ("letter n-grams", folder / _LETTERS),
    ]
    for name, path in paths:
        if path is not None and path.exists():
            print(f"{name + ':':<17}{path}")
    print(f"TensorBoard:     tensorboard --logdir {folder.parent.parent}")
    print(f"transcribe:      fastctc transcribe --checkpoint {folder} FILE...")
