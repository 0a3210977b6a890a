"""The server by gRPC: GRPCInferenceService, health and reflection, before the same batches as over HTTP."""

from qkernels.serve.grpc.server import start

__all__ = ["start"]
