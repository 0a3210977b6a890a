"""Write docs/endpoints.md."""

from __future__ import annotations

from pathlib import Path

from qkernels.serve import endpoints

PAGE = Path(__file__).parents[1] / "docs/endpoints.md"

if __name__ == "__main__":
    PAGE.write_text(endpoints.markdown())
