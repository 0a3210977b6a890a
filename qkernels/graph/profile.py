"""The times of a compiled model's steps, those left to torch among them."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import fx

from qkernels.graph.lower import OURS, is_part, module_of
from qkernels.graph.program import TorchProgram
from qkernels.program import Profile, kernel_core


def profile(graph: fx.GraphModule, inputs: tuple[Any, ...], runs: int) -> Profile:
    """The median of ``runs`` calls after two unseen ones."""
    timers = [_Timer(graph) for _ in range(runs + 2)]
    with torch.no_grad():
        for timer in timers:
            timer.run(*inputs)
    threads = torch.get_num_threads()
    seconds = [timer.seconds for timer in timers[2:]]
    return Profile.of(timers[-1].steps, seconds, kernel_core.peak_gops(threads=threads), threads)


class _Timer(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.steps: list[dict[str, Any]] = []
        self.seconds: list[float] = []

    def run_node(self, n: fx.Node) -> Any:
        module = module_of(self.module, n)  # type: ignore[arg-type]
        if isinstance(module, TorchProgram):
            return self._run_program(module, self.fetch_args_kwargs_from_env(n)[0])
        start = time.perf_counter()
        result = super().run_node(n)
        if n.op.startswith("call") and not is_part(self.module, n):  # type: ignore[arg-type]
            self.seconds.append(time.perf_counter() - start)
            x = n.all_input_nodes and self.env.get(n.all_input_nodes[0])
            name = str(n.meta.get("layer", n.name))
            kind = n.target.overloadpacket.__name__ if n.target in OURS else "torch"  # type: ignore[union-attr]
            self._add(name, kind, _described(x), _described(result))
        return result

    def _run_program(self, module: TorchProgram, inputs: tuple[Any, ...]) -> Any:
        steps = module.program.steps(*(tuple(x.shape) for x in inputs))
        seconds = torch.empty(len(steps), dtype=torch.float64)
        outputs = module.run(inputs, seconds)
        self.steps += steps
        self.seconds += seconds.tolist()
        return outputs[0] if len(outputs) == 1 else outputs

    def _add(self, name: str, kind: str, x: str, y: str) -> None:
        self.steps.append(
            {"name": name, "kind": kind, "path": "", "x": x, "y": y, "macs": 0, "bytes": 0}
        )


def _described(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return ""
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
