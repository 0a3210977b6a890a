"""Teacher, student alone and distilled, int8 student: trained, measured, reported.

Without flags: scikit-learn's handwritten digits, offline, well below a minute. A run that was
stopped goes on; a finished one is only measured again.
"""

from __future__ import annotations

import textwrap
from typing import Any

from qkernels.cli.flags import flags_of, given
from qkernels.cli.printing import say
from qkernels.pipeline import RECIPES, PipelineConfig, run_pipeline
from qkernels.pipeline.html_report import findings, next_commands, results_table, write_report


def _shown_default(field: str) -> str:
    """A default of the pipeline, and that of a recipe where it is another."""
    value = PipelineConfig.model_fields[field].default
    shown = [] if value is None else [str(value)]
    shown += [f"{name}: {recipe[field]}" for name, recipe in RECIPES.items() if field in recipe]
    return "digits" if field == "data" else "; ".join(shown)


@flags_of(PipelineConfig, help_of={}, shown=_shown_default)
def command(**flags: Any) -> None:
    config = PipelineConfig.for_data(**given(flags))
    result = run_pipeline(config, say=say, progress=True)
    for sentence in result.at_chance():
        say(sentence)
    say(results_table(result))
    for sentence in findings(result):
        say(textwrap.fill(sentence, 79))
    page = write_report(result, config.run / "report")
    say("\n" + "\n".join(next_commands(result, page)))
