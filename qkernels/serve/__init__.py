"""A saved model behind HTTP, by the Open Inference Protocol v2. A program is served without torch."""

from qkernels.serve.app import application
from qkernels.serve.settings import Settings

__all__ = ["Settings", "application"]
