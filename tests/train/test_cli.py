"""The command line end to end on tiny settings: fit, resume, validate, test, predict, mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastctc import NGramModel, cli
from fastctc.estimate import arpa_lines

pytest.importorskip("lightning", reason="lightning, of the train extra, is missing")
for _name in ("jsonargparse", "jiwer", "soundfile", "matplotlib", "rich", "tensorboard"):
    pytest.importorskip(_name, reason=f"{_name}, of the train extra, is missing")

import soundfile  # noqa: E402

from fastctc.train import app, arguments, curves, demo  # noqa: E402
from fastctc.train.errors import ConfigError  # noqa: E402
from fastctc.train.formant import FormantCorpus  # noqa: E402
from fastctc.train.module import SpeechModule  # noqa: E402

TINY = """
name: tiny
model:
  network:
    convs: [{channels: 2, kernel: [5, 5], stride: [2, 2], padding: [2, 2]}]
    hidden: 8
    layers: 2
    dropout: 0.2
  optim: {algorithm: adamw, lr: 0.01, schedule: onecycle, warmup: 0.2}
data:
  features: {kind: mel, mels: 12, time_masks: [1, 9, 0.2], freq_masks: [2, 3]}
  formant: {train: 22, validation: 6, heldout: 5, new_words: 5}
  batch_size: 4
  buckets: 2
trainer: {max_epochs: 3, log_every_n_steps: 1, accelerator: cpu, gradient_clip_val: 5.0}
"""


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)


def _run(*args: str) -> None:
    assert cli.main(list(args)) == 0


def _folders() -> list[Path]:
    return sorted(Path("runs/tiny").iterdir(), key=lambda p: p.stat().st_mtime)


def _checkpoint(folder: Path, name: str = "last.ckpt") -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "checkpoints" / name, weights_only=True)
    return content


def _assert_same_end(one: Path, other: Path) -> None:
    """Both runs ended with the same weights, optimiser state and schedule, bit by bit."""
    a, b = _checkpoint(one), _checkpoint(other)
    assert a["global_step"] == b["global_step"]
    for key, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][key]), key
    for key, state in a["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, b["optimizer_states"][0]["state"][key][name]), (key, name)
    assert a["lr_schedulers"] == b["lr_schedulers"]


@pytest.mark.usefixtures("needs_library")
def test_fit_validate_test_and_predict(capsys: pytest.CaptureFixture[str]) -> None:
    _run("fit", "--config", "tiny.yaml", "--trainer.max_epochs", "1",
         "--trainer.limit_train_batches", "2")  # fmt: skip
    (folder,) = _folders()
    for name in ("config.yaml", "metrics.csv", "curves.png", "checkpoints/best.ckpt"):
        assert (folder / name).stat().st_size > 100, name
    assert list(folder.glob("events.out.tfevents.*"))
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "validation loss" in out and "said " in out  # noqa: PT018 - one line of output
    logged = curves.read_metrics(folder)
    assert len(logged["train/loss"][0]) == 2
    for key in ("train/grad_norm", "train/blank_fraction", "train/lr", "val/cer", "val/wer"):
        assert logged[key][1], key

    # The checkpoint carries the settings: nothing but its path is needed.
    _run("validate", "--ckpt_path", str(folder))
    assert "val: 6 utterances, CER" in capsys.readouterr().out
    _run("test", "--ckpt_path", "last")
    out = capsys.readouterr().out
    assert "heldout: 5 utterances" in out
    assert "new_words: 5 utterances" in out

    utterance = FormantCorpus("heldout", 2)[0]
    soundfile.write("a.wav", utterance.audio, 16_000)
    soundfile.write("b.flac", utterance.audio[: 16_000 // 50], 16_000)
    Path("c.jsonl").write_text(json.dumps({"audio": "a.wav"}))
    _run(
        "predict", "--ckpt_path", str(folder), "a.wav", "b.flac", "c.jsonl", "--output", "out.jsonl"
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["a.wav", "b.flac", "c.jsonl:1 (a.wav)"]
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [f"{r['audio']}\t{r['text']}" for r in rows] == lines
    assert rows[0]["text"] == rows[2]["text"]

    whole = ["predict", "--ckpt_path", str(folder), "a.wav"]
    Path("tiny.arpa").write_text("".join(arpa_lines([["ab", "c"]], 2)))
    for options in (["--lm", "tiny.arpa", "--lm_weight", "0.3"], ["--beam_size", "0"]):
        _run(*whole, *options)
        assert capsys.readouterr().out.startswith("a.wav\t")
    for options in (["--lm", "no.arpa"], ["--lm", "tiny.arpa", "--beam_size", "0"]):
        assert cli.main([*whole, *options]) == 2
        said = capsys.readouterr().err
        assert "no.arpa" in said or "--lm needs a beam" in said


def test_fit_on_a_manifest_with_worker_processes() -> None:
    corpus = FormantCorpus("train", 6)
    lines = []
    for k in range(6):
        soundfile.write(f"{k}.wav", corpus[k].audio, 16_000)
        lines.append(json.dumps({"audio": f"{k}.wav", "text": corpus.texts[k]}))
    Path("set.jsonl").write_text("\n".join(lines))
    data = ["--data.train", '["set.jsonl"]', "--data.validation", '["set.jsonl"]']
    _run("fit", "--config", "tiny.yaml", *data, "--data.num_workers", "2",
         "--trainer.max_epochs", "1")  # fmt: skip
    (folder,) = _folders()
    assert _checkpoint(folder)["global_step"] == 2


def test_empty_texts_are_legal_and_utterances_left_out_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    soundfile.write("a.wav", FormantCorpus("train", 1)[0].audio, 16_000)
    lines = [json.dumps({"audio": "a.wav", "text": ""})] * 4
    lines += [json.dumps({"audio": "a.wav", "text": "long", "duration": 99})] * 4
    Path("train.jsonl").write_text("\n".join(lines))
    Path("silence.jsonl").write_text("\n".join(lines[:4]))
    data = ["--data.train", "[train.jsonl]", "--data.validation", "[silence.jsonl]"]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        _run("fit", "--config", "tiny.yaml", *data, "--trainer.max_epochs", "2")
    assert [str(w.message) for w in seen if issubclass(w.category, UserWarning)] == []
    (folder,) = _folders()
    assert _checkpoint(folder)["global_step"] == 4  # two buckets, two epochs
    out = capsys.readouterr().out
    assert (
        "train: 4 of 8 utterances left out, they do not last 0.2 to 35.0 s: train.jsonl:5 (a.wav), "
        "train.jsonl:6 (a.wav), train.jsonl:7 (a.wav), ..."
    ) in out
    assert "CER -" in out


def test_a_run_resumed_between_epochs_ends_as_one_that_ran_through() -> None:
    keep = ["--checkpoint.save_top_k=-1", "--checkpoint.filename={epoch}"]
    _run("fit", "--config", "tiny.yaml", *keep)
    (whole,) = _folders()
    _run("fit", "--ckpt_path", str(whole / "checkpoints" / "epoch=0.ckpt"))
    _assert_same_end(whole, _folders()[-1])


@pytest.mark.parametrize(("batch", "workers"), [(2, 0), (6, 0), (9, 2)])
def test_after_ctrl_c_last_goes_on_exactly(
    batch: int, workers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config", "tiny.yaml", "--data.num_workers", str(workers)]
    _run("fit", *options)
    (whole,) = _folders()

    step: Callable[..., Any] = SpeechModule.training_step
    seen = 0

    def interrupted(self: SpeechModule, *args: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == batch:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(SpeechModule, "training_step", interrupted)
        assert cli.main(["fit", *options]) == 130
    stopped = _folders()[-1]
    assert f"fastctc fit --ckpt_path {stopped}" in capsys.readouterr().out
    assert _checkpoint(stopped)["global_step"] == batch
    assert (stopped / "curves.png").is_file()
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN

    _run("fit", "--ckpt_path", "last")
    resumed = _folders()[-1]
    _assert_same_end(whole, resumed)
    # The curves of the resumed run begin at the first step.
    before, after = curves.read_metrics(whole), curves.read_metrics(resumed)
    assert after["train/loss"] == before["train/loss"]


def test_plateau_goes_on_from_the_last_checkpoint_exactly_and_from_the_best_at_all() -> None:
    slow = ["--model.optim.schedule", "plateau", "--model.optim.patience", "0",
            "--model.optim.lr", "1e-6"]  # fmt: skip
    _run("fit", "--config", "tiny.yaml", "--trainer.max_epochs", "2", *slow)
    _run("fit", "--ckpt_path", "last", "--trainer.max_epochs", "4")
    resumed = _folders()[-1]
    _run("fit", "--ckpt_path", "best", "--trainer.max_epochs", "4")
    from_best = _folders()[-1]
    _run("fit", "--config", str(resumed / "config.yaml"), "--ckpt_path", "null")
    _assert_same_end(_folders()[-1], resumed)
    # Nothing is learnt at this rate, so each epoch after the first halves it.
    assert _checkpoint(resumed)["optimizer_states"][0]["param_groups"][0]["lr"] < 3e-7
    assert _checkpoint(from_best)["global_step"] == _checkpoint(resumed)["global_step"]


def test_early_stopping() -> None:
    _run("fit", "--config", "tiny.yaml", "--trainer.max_epochs", "40", "--model.optim.lr", "1e-12",
         "--model.network.dropout", "0", "--early_stopping.patience", "2")  # fmt: skip
    (folder,) = _folders()
    assert _checkpoint(folder)["epoch"] < 10


@pytest.mark.parametrize(("preset", "width"), [("ds2", 32 * 21), ("ds2-seed", 32 * 45)])
def test_the_full_presets_take_a_step(preset: str, width: int) -> None:
    _run("fit", "--config", preset, "--trainer.max_steps", "1", "--model.network.hidden", "16",
         "--data.formant.train", "2", "--data.formant.validation", "1", "--data.num_workers", "0",
         "--data.batch_size", "2", "--trainer.accelerator", "cpu")  # fmt: skip
    (folder,) = Path(f"runs/{preset}").iterdir()
    content = _checkpoint(folder)
    assert content["state_dict"]["network.grus.0.ahead.weight_ih_l0"].shape[1] == width
    assert content["global_step"] == 1
    settings = json.loads(content["fastctc_config"])
    assert settings["model"]["network"]["layers"] == 5
    assert content["state_dict"]["network.convs.0.conv.weight"].shape == (32, 1, 41, 11)


@pytest.mark.usefixtures("needs_library")
def test_the_demo_on_tiny_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")  # which the table is fitted into
    sizes = ["train", "validation", "heldout", "new_words"]
    tiny = [w for s in sizes for w in (f"--data.formant.{s}", "5")]
    _run("demo", "--seed", "3", *tiny, "--trainer.max_epochs", "1", "--model.network.hidden", "8")
    out = capsys.readouterr().out
    (folder,) = Path("runs/demo").iterdir()
    for word in ("heldout", "new words", "CER", "WER", str(folder / "curves.png"), "The CTC loss"):
        assert word in out
    cells = [cell.strip() for line in out.splitlines() for cell in line.split("│")]
    for decoding in ("greedy", "beam 50", "beam 50 + n-gram"):
        assert cells.count(decoding) == 2, decoding
    assert NGramModel.from_arpa(folder / "letters.arpa.gz").order == 5
    settings = json.loads(_checkpoint(folder)["fastctc_config"])
    assert settings["data"]["formant"]["seed"] == settings["seed_everything"] == 3


def test_the_loss_share_leaves_the_model_alone() -> None:
    parsed = app.TrainCLI(["fit", "--config=tiny.yaml", "--trainer.max_steps=1"])
    batch = next(iter(parsed.datamodule.train_dataloader()))
    before = {k: v.clone() for k, v in parsed.model.state_dict().items()}
    assert 0 < demo.loss_share(parsed.model, batch) < 1
    for key, value in parsed.model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_presets_resolve_unless_a_file_has_the_name() -> None:
    assert set(arguments.presets()) == {"deepspeech2-small.yaml", "ds2.yaml", "ds2-seed.yaml"}
    assert Path(arguments.preset_path("ds2.yaml")).parent.name == "configs"
    assert arguments.preset_path("ds2") == arguments.preset_path("ds2.yaml")
    Path("ds2.yaml").write_text("{}")
    assert arguments.preset_path("ds2.yaml") == "ds2.yaml"
    with pytest.raises(ConfigError, match=r"--config no\.yaml: no such file.*ds2\.yaml"):
        arguments.preset_path("no.yaml")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--config", "nope"], "--config nope: no such file, and no such preset"),
        (["fit", "--ckpt_path", "last"], "--ckpt_path last: no checkpoints/last.ckpt below runs/"),
        (["fit", "--ckpt_path", "x.ckpt"], "--ckpt_path x.ckpt: no such checkpoint"),
        (["validate", "--ckpt_path", "tiny.yaml"], "tiny.yaml: is not a checkpoint"),
        (
            ["fit", "--config", "tiny.yaml", "--ckpt_path", "tiny.yaml"],
            "tiny.yaml: is not a checkp",
        ),
        (
            ["fit"],
            "fit needs --config, a file or one of the presets deepspeech2-small.yaml, ds2-s",
        ),
        (["fit", "--ckpt_path", "null"], "fit needs --config"),
        (["fit", "--config", "slip.yaml"], "slip.yaml: there is no setting data.bach_size"),
        (["fit", "--config", "slip.yaml"], "fastctc fit --help lists the options"),
        (["fit", "--config", "tiny.yaml", "--runs", "tiny.yaml"], "cannot be written (Not a dir"),
        (["fit", "--config", "tiny.yaml", "--trainer.max_epochs", "0"], "nothing was trained"),
        (["fit", "tiny.yaml"], "'tiny.yaml' belongs to none"),
        (["fit", "--config", "tiny.yaml", "--data.batch_size", "0"], "data.batch_size is 0"),
        (["fit", "--config", "tiny.yaml", "--model.optim.lr", "-1"], "optim.lr is -1.0"),
        (["fit", "--config", "tiny.yaml", "--data.train", "[no.jsonl]"], "no.jsonl: no such file"),
        (["fit", "--config", "tiny.yaml", "--model.optim.schedule", "never"], "never"),
        (["fit", "--config", "tiny.yaml", "--model.optim.speed", "9"], "speed"),
        (["fit", "--config", "tiny.yaml", "--data.batch_size", "many"], "data.batch_size"),
        (["predict", "--config", "tiny.yaml", "tiny.yaml"], "name one with --ckpt_path"),
        (["validate", "--config", "tiny.yaml"], "name one with --ckpt_path"),
        (["test", "--config", "tiny.yaml"], "name one with --ckpt_path"),
        (["train"], "no command 'train'"),
    ],
)
def test_mistakes_get_a_sentence(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("slip.yaml").write_text("data: {bach_size: 3}")
    try:
        status = cli.main(args)
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len(error.splitlines()) < 12, error
    assert not Path("runs").exists()


def test_a_failed_start_leaves_other_runs_alone() -> None:
    other = Path("runs/tiny/other/config.yaml")
    other.parent.mkdir(parents=True)
    other.write_text("kept")
    assert cli.main(["fit", "--config", "tiny.yaml", "--data.train", "[no.jsonl]"]) == 2
    assert _folders() == [other.parent]
    assert other.read_text() == "kept"


def test_ctrl_c_before_the_first_batch_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: Any, stage: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app.SpeechDataModule, "setup", interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert cli.main(["fit", "--config", "tiny.yaml"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "fastctc: interrupted" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_full_disk_gets_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Any, *args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(app.RunFolder, "_save", full)
    assert cli.main(["fit", "--config", "tiny.yaml"]) == 2
    (folder,) = _folders()
    error = capsys.readouterr().err
    assert f"{folder}: training stopped" in error
    assert "No space left on device" in error


def test_a_checkpoint_of_another_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    _run("fit", "--config", "tiny.yaml", "--trainer.max_steps", "1")
    other = ["--config", "tiny.yaml", "--ckpt_path", "last", "--model.network.hidden", "9"]
    assert cli.main(["fit", *other]) == 2
    assert "network is another than the settings describe" in capsys.readouterr().err
    assert len(_folders()) == 1


def test_a_short_run_is_logged_drawn_and_gone_on_with_without_remarks() -> None:
    rare = ["--trainer.log_every_n_steps", "50"]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        _run("fit", "--config", "tiny.yaml", "--trainer.max_steps", "3", *rare)
        (folder,) = _folders()
        _run("validate", "--ckpt_path", "last")
        _run("fit", "--ckpt_path", "last", "--trainer.max_steps", "4")
    assert [str(w.message) for w in seen if issubclass(w.category, UserWarning)] == []
    assert (folder / "curves.png").is_file()
    logged = curves.read_metrics(folder)
    assert logged["train/loss"][0] == logged["train/grad_norm"][0] == [2.0]
    assert curves.read_metrics(_folders()[-1])["train/loss"][0] == [2.0, 3.0]


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("demo", "fit", "validate", "test", "transcribe", "predict", "info"):
        assert f"\n  {command} " in out


def test_without_the_extra_help_works_and_training_names_it() -> None:
    # An import of anything from the extra fails, as if it were not installed.
    script = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "extra = {'lightning', 'jsonargparse', 'jiwer', 'soundfile', 'rich'}\n"
        "importlib.util.find_spec = lambda n, *a: None if n in extra else find(n, *a)\n"
        "for name in extra: sys.modules[name] = None\n"
        "from fastctc.cli import main\n"
        "assert main(['--help']) == 0\n"
        "sys.exit(main(['fit']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "pip install 'fastctc[train]'" in done.stderr
    assert "lightning" in done.stderr
