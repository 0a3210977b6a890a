"""What the tutorials ask for and no row of the table can show: where it is."""

from __future__ import annotations

from techniques.row import Pointer


def _to(name: str, ids: str, code: str, test: str, example: str) -> Pointer:
    return Pointer(name, tuple(ids.split()), f"qkernels/{code}", f"tests/{test}", example)


POINTERS = (
    _to("the tutorials' CNN", "S0-7", "models/tutorial_cnn.py", "models/test_models.py", "docs/digits.md"),
    _to("size, latency and accuracy in one report", "S0-8", "pipeline/html_report.py", "test_html_report.py",
        "docs/distillation.md"),
    _to("a transformer's layers", "S0-9 S3-18", "models/transformer.py", "graph/test_transformer.py", "docs/graph.md"),
    _to("torch.compile, torch.export, AOTInductor", "S1-8", "ops.py", "export/test_torch_export.py", "docs/export.md"),
    _to("which technique on my model", "S1-7 S1-9", "advise/search.py", "advise/test_advise.py", "README.md"),
    _to("int8 against float, layer by layer", "S1-10", "quantization/compare.py", "quantization/test_layer_errors.py",
        "docs/quantization.md"),
    _to("training on several processes", "S2-10", "distill/loop.py", "distill/test_processes.py", "docs/parallel.md"),
    _to("a model over several devices", "S2-11", "parallel/stages.py", "parallel/test_stages.py", "docs/parallel.md"),
    _to("several models at once", "S2-12", "parallel/many.py", "parallel/test_many.py", "docs/parallel.md"),
    _to("fixed point", "S3-10", "quantization/study.py", "quantization/test_study.py", "docs/quantization.md"),
    _to("paired comparison with an interval", "S3-17", "evaluate.py", "test_pipeline.py", "docs/distillation.md"),
    _to("inference server", "S4-6", "serve/app.py", "serve/test_conformance.py", "docs/serving.md"),
)  # fmt: skip
