"""A teacher's answers on disk: the same training, the teacher asked once an image, never a wrong answer."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distill_toys import same_state, toy_data, toy_model
from torch import Tensor, nn

from qkernels.distill import CachedTeacher, TrainConfig, train

pytest.importorskip("accelerate")
CONFIG = TrainConfig(epochs=3, batch_size=16, lr=0.05)


class Counting(nn.Module):
    """A teacher that counts the images it is asked about, and answers one at a time: on some machines the last bits of
    torch's answers depend on the batch that an image is in."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = toy_model(8, seed=3)
        self.seen = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.seen[0] += len(x)
        return torch.cat([self.inner(image) for image in x.split(1)])


def cached(teacher: nn.Module | None, path: Path) -> tuple[CachedTeacher, list[int]]:
    made = CachedTeacher(teacher, path / "answers.sqlite")
    return made, made.teacher.seen if isinstance(made.teacher, Counting) else [0]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_second_run_asks_nothing_and_ends_with_the_same_bits(
    tmp_path: Path, precision: str
) -> None:
    """Crops and shuffles included: the batches of a seed and an epoch repeat."""
    config = CONFIG.model_copy(update={"precision": precision})
    students = [toy_model() for _ in range(3)]
    train(students[0], toy_data(), config, teacher=Counting())
    for student in students[1:]:
        teacher, seen = cached(Counting(), tmp_path)
        train(student, toy_data(), config, teacher=teacher)
        assert 0 < seen[0] <= 3 * 96 if student is students[1] else seen[0] == 0
    assert same_state(students[1], students[2])
    assert same_state(students[0], students[1])


def test_the_teacher_may_be_gone_once_all_is_answered(tmp_path: Path) -> None:
    first, second = toy_model(), toy_model()
    train(
        first, toy_data(), CONFIG, teacher=cached(Counting(), tmp_path)[0], run_dir=tmp_path / "a"
    )
    alone = cached(None, tmp_path)[0]
    train(second, toy_data(), CONFIG, teacher=alone, run_dir=tmp_path / "b")
    assert same_state(first, second)
    train(second, toy_data(), CONFIG, teacher=alone, run_dir=tmp_path / "a")  # the same run
    assert "answers of Counting" in repr(alone) and len(alone) > 96


def test_without_augmentation_every_image_is_asked_about_once(tmp_path: Path) -> None:
    teacher, seen = cached(Counting(), tmp_path)
    train(toy_model(), toy_data(), CONFIG.model_copy(update={"augment": False}), teacher=teacher)
    assert seen[0] == len(teacher) == 96


def test_altered_data_gets_no_old_answer(tmp_path: Path) -> None:
    images = torch.randn(4, 1, 4, 4)
    teacher, seen = cached(Counting(), tmp_path)
    exact = Counting().eval()
    torch.testing.assert_close(teacher(images), exact(images))
    changed = images.clone()
    changed[2, 0, 0, 0] += 1e-3
    torch.testing.assert_close(teacher(changed), exact(changed))
    assert seen[0] == 5 and len(teacher) == 5
    with pytest.raises(ValueError, match=r"lacks 1 images of a batch \(other data"):
        cached(None, tmp_path)[0](torch.cat([images, images[:1] + 1]))


def test_a_layout_is_not_another_image_but_a_precision_is_another_answer(tmp_path: Path) -> None:
    images = torch.randn(4, 3, 4, 4)
    teacher = CachedTeacher(nn.Conv2d(3, 2, 4), tmp_path / "answers.sqlite")
    teacher(images)
    teacher(images.to(memory_format=torch.channels_last))
    assert len(teacher) == 4
    with torch.autocast("cpu", torch.bfloat16):
        low = teacher(images)
    assert len(teacher) == 8 and low.dtype == torch.float32


def test_the_answers_of_another_teacher_are_refused(tmp_path: Path) -> None:
    cached(Counting(), tmp_path)
    other = Counting()
    with torch.no_grad():
        other.inner[1].running_mean[0] += 1e-6
    with pytest.raises(
        ValueError, match=r"answers of another teacher \(Counting, \d+ parameters\)"
    ):
        cached(other, tmp_path)
    with pytest.raises(ValueError, match="give the teacher"):
        CachedTeacher(None, tmp_path / "empty.sqlite")
    (tmp_path / "text").write_text("not a database, " * 100)
    with pytest.raises(ValueError, match="holds no answers of a teacher"):
        CachedTeacher(Counting(), tmp_path / "text")


def test_a_cached_teacher_has_no_features(tmp_path: Path) -> None:
    teacher = cached(toy_model(8, seed=3), tmp_path)[0]
    config = CONFIG.model_copy(update={"loss": "attention", "features": "2"})
    with pytest.raises(ValueError, match="CachedTeacher has no module '2'"):
        train(toy_model(), toy_data(), config, teacher=teacher)


def test_a_killed_writer_leaves_sound_answers(tmp_path: Path) -> None:
    """SIGKILL in the midst of a transaction: whole batches are there, the rest is asked again."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
torch.set_num_threads(1)
from distill_toys import toy_data, toy_model
from test_cache import CONFIG, Counting, cached
from qkernels.distill import train
from pathlib import Path
teacher = cached(Counting(), Path({str(tmp_path)!r}))[0]
write, calls = teacher._write, []
def write_and_die(rows):
    calls.append(1)
    if len(calls) == 5:
        with teacher._file:
            teacher._file.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows[:3])
            os.kill(os.getpid(), signal.SIGKILL)
    write(rows)
teacher._write = write_and_die
train(toy_model(), toy_data(), CONFIG, teacher=teacher)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    file = sqlite3.connect(tmp_path / "answers.sqlite")
    assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    file.close()
    teacher, seen = cached(Counting(), tmp_path)
    kept = len(teacher)
    assert 0 < kept <= 4 * 16
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain, again = toy_model(), toy_model()
        train(plain, toy_data(), CONFIG, teacher=Counting())
        train(again, toy_data(), CONFIG, teacher=teacher)
    finally:
        torch.set_num_threads(threads)
    assert same_state(plain, again)
    assert seen[0] == len(teacher) - kept
