"""The commands: what they print and write, and how they refuse."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qkernels import data
from qkernels.cli import entry, main
from qkernels.distill import CachedTeacher
from qkernels.measuring import bench
from qkernels.measuring.costs import count_macs
from qkernels.measuring.machine import cuda_built
from qkernels.pipeline import PipelineConfig, create_model
from qkernels.pipeline.architecture import ModelChoice, open_float_model

TINY = ["--epochs", "1", "--warmup-epochs", "0"]
UNTAUGHT = ["--may-lose", "100"]  # one epoch on a random teacher's answers teaches nothing


def run(*words: object) -> int:
    """Exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0) if not isinstance(ended.value.code, str) else 1


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "float.safetensors"
    save_file(create_model("tutorial_cnn", data.load("digits"), 4).state_dict(), path)
    return path


def test_info_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info") == 0
    said = capsys.readouterr().out
    assert "in use" in said
    cuda = "no speed measured yet" if cuda_built() else "not in this build"
    assert cuda in " ".join(said.split())
    assert "gemm_s8_4x16_scalar" in said


def test_info_says_that_the_instruction_set_was_lowered() -> None:
    command = [sys.executable, "-m", "qkernels", "info"]
    environment = {**os.environ, "QKERNELS_MAX_ISA": "scalar"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "scalar (QKERNELS_MAX_ISA=scalar)" in done.stdout


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "pipeline" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_and_version_wait_for_no_torch(word: str) -> None:
    script = f"import sys; from qkernels.cli import main\ntry: main(['{word}'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "qkernels" in done.stdout and done.stdout.endswith("False\n")


@pytest.mark.parametrize("name", entry.COMMANDS)
def test_every_command_says_in_the_list_what_its_own_help_says(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "serve":
        pytest.skip("its help is the server's")
    assert run(name, "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert " ".join(entry._docstring(name).split("\n")[0].split()[:6]) in said


def test_the_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"qkernels {metadata.version('qkernels')}\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nope"], "nope"),
        (["pipeline", "--nope"], "--nope"),
        (["pipeline", "--epochs", "0"], "--epochs=0"),
        (["pipeline", "--epochs", "1", "--warmup-epochs", "3"], "warmup_epochs=3"),
        (["pipeline", "--data", "nope"], "'nope'"),
        (["pipeline", "--optimizer", "nope"], "'nope'"),
        (["pipeline", "--teacher", "resnet15"], "resnet15"),
        (["pipeline", "--teacher-weights", "/no/file"], "/no/file"),
        (["pipeline", "--data", "imagefolder", "--data-root", "/no/folder"], "/no/folder"),
        (["distill"], "RUN"),
        (["distill", "--run", "x", "--teacher", "resnet56"], "--teacher-weights"),
        (["distill", "--run", "x", "--teacher-cache", "y"], "--teacher"),
        (["distill", "--run", "x", "--loss", "hintn"], "nearest: hinton"),
        (["distill", "--run", "x", "--until", "91"], "--until=91"),
        (["pipeline", "--loss", "nope"], "--loss='nope'"),
        (["quantize", "/no/file", "x", "--model", "tutorial_cnn"], "/no/file"),
        (["prune", "/no/file", "x", "--model", "resnet8", "--run", "x"], "/no/file"),
        (["prune", "/no/file", "nodir/p", "--model", "resnet8", "--run", "x"], "nodir/p"),
        (
            ["advise", "/no/file", "nodir/p", "--model", "resnet8", "--run", "x", "--floor", "9"],
            "nodir/p",
        ),
        (
            [
                "advise",
                "/no/file",
                "x",
                "--plot",
                "nodir/p",
                "--model",
                "resnet8",
                "--run",
                "x",
                "--floor",
                "9",
            ],
            "nodir/p",
        ),
        (["bench", "--only", "nope", "--json", "nodir/p"], "nodir/p"),
        (["bench", "--only", "nope", "--json", "."], ".: is a folder"),
        (["evaluate", "/no/file"], "/no/file"),
        (["evaluate", __file__], "--model"),
        (["bench", "--only", "nope"], "'nope'"),
        (["bench", "--threads", "0"], "threads"),
        (["--threads", "-1", "info"], "--threads"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(
    words: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("qkernels: ")
    assert error.count("\n") == 1
    assert named.lower() in error.lower()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, None])
def test_ctrl_c_says_that_the_command_goes_on(
    stop: type[BaseException] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qkernels.distill.loop.Loop.train_epoch", interrupted)
    if stop is not None:  # outside of typer, which makes an exit code of it
        monkeypatch.setattr("qkernels.cli.entry.app", interrupted)
    words = ["distill", "--run", tmp_path, "--student", "tutorial_cnn", "--student-width", 2]
    assert run(*words) == 130
    assert "stopped; the same command goes on from the last whole epoch" in capsys.readouterr().err


def test_the_file_of_a_cache_that_sqlite_refuses_is_one_sentence(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", "--run", tmp_path / "r", "--student", "tutorial_cnn"]
    words += ["--teacher", "tutorial_cnn", "--teacher-width", 4, "--teacher-weights", weights]
    for cache, said in ((tmp_path, "is a folder"), (weights, "holds no answers of a teacher")):
        assert run(*words, "--teacher-cache", cache) == 2
        assert said in capsys.readouterr().err


def test_a_share_that_is_none_is_refused_by_its_flag(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prune", weights, tmp_path / "out", "--model", "tutorial_cnn", "--width", 4]
    assert run(*words, "--run", tmp_path / "r", "--share", "1.0") == 2
    assert "--share=1.0 must be in [0, 1)" in capsys.readouterr().err


def test_data_names_the_files_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_module = pytest.importorskip("PIL.Image")
    (tmp_path / "train" / "a").mkdir(parents=True)
    for number in range(4):
        image_module.new("RGB", (20, 16)).save(tmp_path / "train" / "a" / f"{number}.png")
    assert run("data", tmp_path) == 0
    assert "3 x 16 x 16" in capsys.readouterr().out
    (tmp_path / "train" / "a" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "train" / "a" / "notes.txt").write_bytes(b"")
    assert run("data", tmp_path) == 2
    said = capsys.readouterr()
    assert "bad.png is not a readable image" in " ".join(said.out.split())
    assert "(1 .txt left out)" in " ".join(said.out.split())
    assert "1 files cannot be read" in said.err


def test_debug_shows_where_a_mistake_was_found() -> None:
    with pytest.raises(ValueError, match="nope"):
        main(["pipeline", "--data", "nope", "--debug"])


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qkernels.cli.info.describe_machine", lambda: {}["missing"])
    with pytest.raises(KeyError):
        main(["info"])


def test_every_setting_of_the_pipeline_is_a_flag(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a narrower table cuts names
    run("pipeline", "--help")
    words = set(capsys.readouterr().out.split())
    assert {f"--{name.replace('_', '-')}" for name in PipelineConfig.model_fields} <= words


def test_pipeline_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--teacher-epochs", 1, "--teacher-width", 8, "--run", tmp_path]
    assert run("pipeline", *words, "--timing-seconds", "0.01") == 0
    said = capsys.readouterr().out
    assert "student int8" in said
    assert str(tmp_path / "report" / "index.html") in said
    assert said.splitlines()[-2].startswith(f"qkernels serve {tmp_path / 'student.qkp'}")
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    assert len(rows) == 4


def test_distill_needs_no_teacher_and_takes_one(weights: Path, tmp_path: Path) -> None:
    student = ["--student", "tutorial_cnn", "--student-width", 2, *UNTAUGHT]
    teacher = ["--teacher", "tutorial_cnn", "--teacher-width", 4, "--teacher-weights", weights]
    assert run("distill", "--run", tmp_path / "alone", *student, *TINY) == 0
    assert run("distill", "--run", tmp_path / "taught", *student, *teacher, *TINY) == 0
    assert json.loads((tmp_path / "taught" / "config.json").read_text())["teacher"]


def test_distill_takes_a_loss_a_cache_and_a_target(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", "--student", "tutorial_cnn", "--student-width", 2, "--no-augment"]
    words += ["--teacher", "tutorial_cnn", "--teacher-width", 4, "--teacher-weights", weights]
    words += [
        *UNTAUGHT,
        *TINY,
        "--loss",
        "logit_mse",
        "--teacher-cache",
        tmp_path / "answers.sqlite",
    ]
    assert run(*words, "--run", tmp_path / "a", "--until", "0.01") == 0
    assert len(CachedTeacher(None, tmp_path / "answers.sqlite")) > 1000
    assert run(*words, "--run", tmp_path / "b", "--until", "1") == 2
    assert "until=1.0 was not reached in 1 epochs: the best was 0." in capsys.readouterr().err
    assert (tmp_path / "b" / "model.safetensors").exists()


def test_distill_refuses_the_folder_of_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", "--run", tmp_path, "--student", "tutorial_cnn", *TINY, *UNTAUGHT]
    assert run(*words) == 0
    assert run(*words, "--lr", "0.01") == 2
    assert "lr=0.003, not 0.01" in capsys.readouterr().err


@pytest.mark.parametrize("activation", ["static", "dynamic"])
def test_quantize_writes_what_evaluate_reads(
    activation: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, model = tmp_path / "int8.safetensors", ["--model", "tutorial_cnn", "--width", 4]
    assert run("quantize", weights, out, *model, "--activation", activation, "--images", 64) == 0
    assert run("evaluate", out) == 0
    said = capsys.readouterr().out
    assert "4 of 4 layers" in said
    assert "of 359 test images" in said
    assert "Deploy the program" in said


def test_export_writes_an_onnx_file_of_a_checkpoint(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    checkpoint, out = tmp_path / "int8.safetensors", tmp_path / "int8.onnx"
    model = ["--model", "tutorial_cnn", "--width", 4]
    assert run("quantize", weights, checkpoint, *model, "--images", 64) == 0
    assert run("export", checkpoint, out) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    nodes = [node.op_type for node in onnx.load(out).graph.node]
    assert nodes.count("QuantizeLinear") == 4
    assert run("export", weights, out) == 2
    assert "not written by qkernels.save" in capsys.readouterr().err


@pytest.mark.parametrize("drop", ["channels", "blocks"])
def test_a_pruned_model_is_trained_on_and_quantized_from_its_file(
    drop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, pruned, int8 = (tmp_path / name for name in ("whole", "pruned", "int8"))
    save_file(create_model("resnet14", data.load("digits"), 4).state_dict(), weights)
    words = ["--model", "resnet14", "--width", 4, "--drop", drop, "--multiple", 1, "--epochs", 1]
    assert run("prune", weights, pruned, *words, "--run", tmp_path / "run") == 0
    assert run("quantize", pruned, int8, "--images", 64) == 0
    assert run("evaluate", int8) == 0
    said = capsys.readouterr().out
    for command in (["quantize", pruned, tmp_path / "named"], ["evaluate", int8]):
        assert run(*command, "--model", "resnet14") == 2
        assert f"{command[1]} names its model itself: leave --model out" in capsys.readouterr().err
    before, after = (int(n.replace(",", "")) for n in re.findall(r"[\d,]{6,}", said)[:2])
    assert 0.4 * before < after <= 0.6 * before
    assert "of 359 test images" in said


def test_prune_by_an_importance_of_torch_pruning_and_says_what_blocks_do_not_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = tmp_path / "whole", tmp_path / "pruned"
    torch.manual_seed(0)
    model = create_model("vit", data.load("digits"), None)
    save_file(model.state_dict(), weights)
    words = ["--model", "vit", "--multiple", 4, "--epochs", 1, "--may-lose", 100]
    asked = ["--importance", "taylor", "--embeddings"]
    assert run("prune", weights, out, *words, *asked, "--run", tmp_path / "run") == 0
    smaller, _ = open_float_model(out, data.load("digits"), ModelChoice())
    count = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in smaller.parameters()) < 0.8 * count
    assert run("prune", weights, out, *words, *asked, "--drop", "blocks", "--run", "x") == 2
    assert "are of channels, not of --drop blocks" in capsys.readouterr().err
    asked = ["--importance", "nothing"]
    assert run("prune", weights, out, *words, *asked, "--run", tmp_path / "other") == 2
    assert "no importance 'nothing'; known: activation" in capsys.readouterr().err


def test_prune_refuses_the_run_of_another_choice_or_of_other_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, other, out = (tmp_path / name for name in ("whole", "other", "pruned"))
    for path in (weights, other):  # two draws
        save_file(create_model("resnet14", data.load("digits"), 4).state_dict(), path)
    words = ["--model", "resnet14", "--width", 4, "--epochs", 1, "--run", tmp_path / "run"]
    blocks, channels = ["--drop", "blocks"], ["--drop", "channels", "--multiple", 1]
    assert run("prune", weights, out, *words, *blocks) == 0
    first = out.read_bytes()
    assert run("prune", weights, out, *words, *channels) == 2
    assert "description='blocks" in capsys.readouterr().err
    assert run("prune", other, out, *words, *blocks) == 2
    assert "was pruned with weights=" in capsys.readouterr().err
    assert out.read_bytes() == first


def test_quantize_says_what_it_equalized_and_corrected(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, model = tmp_path / "int8.safetensors", ["--model", "tutorial_cnn", "--width", 4]
    assert run("quantize", weights, out, *model, "--equalize", "--correct-bias") == 0
    assert run("evaluate", out) == 0
    said = capsys.readouterr().out
    pairs = re.search(r"(\d+) pairs of layers equalized", said)
    assert pairs is not None and int(pairs[1]) > 0
    assert "biases of 4 layers corrected" in said


def test_evaluate_reads_float_weights_by_the_name_of_their_model(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", weights, "--model", "tutorial_cnn", "--width", 4, "--split", "val"]
    assert run(*words) == 0
    assert "val images" in capsys.readouterr().out


def test_bench_prints_and_writes_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bench.json"
    assert run("bench", "--only", "stem 3x3 3-64@32 batch 1", "--quick", "--json", path) == 0
    results = json.loads(path.read_text())
    assert {row["form"] for row in results["rows"]} == {"static", "int8 to int8"}
    assert capsys.readouterr().out.count("3x3 3-64@32 batch 1") == len(results["rows"])
    first = results["rows"][0]
    assert first["p10_us"] <= first["median_us"] <= first["p90_us"]
    assert first["ratio"] == pytest.approx(first["fp32_us"] / first["median_us"])


def test_bench_restores_the_threads() -> None:
    before = torch.get_num_threads()
    bench.run_bench("1x1024x1024", threads=[2], quick=True, progress=False)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("case", bench.CONV_CASES, ids=lambda case: case.name)
def test_multiply_adds_of_a_convolution_are_those_torch_counts(case: bench.ConvCase) -> None:
    layer = case.float_layer()
    assert count_macs(layer, (case.channels, case.size, case.size)) == case.macs


def test_case_names_are_unique() -> None:
    names = [(case.kind, case.name) for case in bench.all_cases()]
    assert len(set(names)) == len(names)


def test_compile_and_profile_take_a_checkpoint_to_a_program_without_torch(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    int8, program = tmp_path / "int8.safetensors", tmp_path / "model.qkp"
    model = ["--model", "tutorial_cnn", "--width", 4]
    assert run("quantize", weights, int8, *model, "--images", 64) == 0
    assert run("compile", int8, program, "--size", "1,1,8,8") == 0
    assert "layers write int8" in capsys.readouterr().out
    for file in (int8, program):
        picture = tmp_path / "steps.svg"
        assert run("profile", file, "--size", "2,1,8,8", "--plot", picture) == 0
        out = capsys.readouterr().out
        assert "of peak" in out and "conv2" in out and picture.read_text().startswith("<?xml")
    assert run("profile", program, "--size", "8") == 2
    assert "size '8' must be N,C,H,W" in capsys.readouterr().err


def test_advise_writes_the_best_combination_and_its_frontier(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "best.safetensors", tmp_path / "frontier.svg"
    words = ["--model", "tutorial_cnn", "--width", 4, "--run", tmp_path / "run", "--epochs", 1]
    assert run("advise", weights, out, *words, "--floor", "top1=1", "--plot", picture) == 0
    assert "take " in capsys.readouterr().out and out.exists() and picture.exists()
    assert run("advise", weights, out, *words, "--floor", "top5=1") == 2
    assert "floor 'top5=1' must be per cent of top-1" in capsys.readouterr().err
