"""Several models evaluated at once, on no more threads than there are cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch
from torch import nn

from qkernels.data.image_data import ImageData
from qkernels.evaluate import Quality, evaluate
from qkernels.measuring.machine import describe_machine
from qkernels.utils.progress import progress as progress_bar


def share_cores(jobs: int, cores: int | None = None) -> tuple[int, int]:
    """(processes, threads of each) for `jobs` models: processes * threads <= cores, at least (1, 1).

    Many models on one thread each beat one model on many threads, so processes come first. `cores` are those this
    process may use. Raises ValueError for no jobs or cores.
    """
    cores = describe_machine()["cores"] if cores is None else cores
    if jobs < 1 or cores < 1:
        raise ValueError(f"there must be a job and a core, not {jobs} jobs and {cores} cores")
    processes = min(jobs, cores)
    return processes, cores // processes


def evaluate_many(
    models: Mapping[str, nn.Module],
    data: ImageData,
    split: str = "test",
    *,
    limit: int | None = None,
    batch_size: int = 250,
    cores: int | None = None,
    progress: bool = False,
) -> dict[str, Quality]:
    """`qkernels.evaluate.evaluate` of every model, several at a time; the results in the order of `models`.

    Each process is started anew and holds one model at a time; images are shared, not copied. Models must pickle. An
    error of one model is raised here, with its name.
    """
    if not models:
        return {}
    processes, threads = share_cores(len(models), cores)
    context = multiprocessing.get_context("spawn")  # a forked copy of torch's threads would hang
    found: dict[str, Quality] = {}
    with (
        ProcessPoolExecutor(
            processes, context, initializer=torch.set_num_threads, initargs=(threads,)
        ) as pool,
        progress_bar("evaluating", len(models), enabled=progress) as advance,
    ):
        jobs = {
            pool.submit(evaluate, model, data, split, limit=limit, batch_size=batch_size): name
            for name, model in models.items()
        }
        for job in as_completed(jobs):
            name = jobs[job]
            try:
                found[name] = job.result()
            except Exception as error:
                raise RuntimeError(f"model {name!r}: {error}") from error
            advance(1, f"{name} {found[name].value:.2%}")
    return {name: found[name] for name in models}
