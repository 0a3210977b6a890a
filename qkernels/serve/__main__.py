"""`python -m qkernels.serve MODEL`: the server in a process that imports torch only for a checkpoint."""

from __future__ import annotations

import logging
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from qkernels.serve import process
from qkernels.serve.logs import log_to_stderr
from qkernels.serve.settings import Settings, share_cores
from qkernels.utils.input_size import parse_size

logger = logging.getLogger("qkernels.serve")
app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


def main(arguments: list[str] | None = None) -> None:
    """Serve until a signal; what a user can mend is one sentence on stderr and exit code 2."""
    try:
        app(arguments, prog_name="qkernels serve", standalone_mode=False)
    except Exception as error:
        usage = hasattr(error, "format_message")  # a flag that typer does not know or take
        if not (usage or isinstance(error, (ValueError, OSError, ImportError))):
            raise
        sentence = error.format_message() if hasattr(error, "format_message") else str(error)
        print(f"qkernels: {' '.join(sentence.split())}", file=sys.stderr)
        sys.exit(2)


@app.command()
def serve(
    model: Annotated[
        Path,
        typer.Argument(
            help="A program, an int8 checkpoint (.safetensors), or a folder with NAME/VERSION/model.qkp."
        ),
    ],
    size: Annotated[
        list[str] | None,
        typer.Option(help="Size of an input, such as 1,3,224,224; once an input, in order."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the model, else that of its file.")] = None,
    unix: Annotated[
        Path | None, typer.Option(help="A UNIX socket to listen on, instead of host and port.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="0: any free one, which the log names.", min=0, max=65535)
    ] = 8080,
    grpc_port: Annotated[
        int | None,
        typer.Option(help="For gRPC, if it is wanted; 0: any free one.", min=0, max=65535),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Calls at a time, else 1.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Of a call, else what cores are left.")
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Rows of a batch, and of a request.")] = 32,
    max_delay: Annotated[
        float, typer.Option(help="Milliseconds that a batch waits to fill up.")
    ] = 0.0,
    queue: Annotated[int, typer.Option(help="Rows that may wait; more are refused.")] = 256,
    timeout: Annotated[float, typer.Option(help="Seconds for a request.")] = 10.0,
    keep_alive: Annotated[
        float, typer.Option(help="Seconds that a connection may be idle.")
    ] = 75.0,
    max_body: Annotated[float, typer.Option(help="Megabytes of a request.")] = 16.0,
    control: Annotated[
        Literal["poll", "explicit"],
        typer.Option(help="Models of a folder: as their files are, or as clients load them."),
    ] = "poll",
    load: Annotated[
        list[str] | None, typer.Option(help="A model to begin with, where control is explicit.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Whose web pages may ask (CORS), such as https://a.org; *: all."),
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="debug: every request.")
    ] = "info",
) -> None:
    """Serve a model over HTTP by the Open Inference Protocol v2.

    $QKERNELS_TOKEN, where it is set, is the bearer token to ask for. SIGTERM answers what waits, then ends it; a
    serving process that is killed is replaced.
    """
    for file in (certificate, key):
        if file is not None and not file.is_file():
            raise FileNotFoundError(f"{file}: there is no such file")
    workers, threads = share_cores(workers, threads)
    by_grpc = None if grpc_port is None else process.reserve(host, grpc_port)
    settings = Settings(
        path=model,
        name=(model.stem if name is None else name) if not model.is_dir() else (name or ""),
        sizes=tuple(parse_size(text) for text in size or ()),
        workers=workers,
        threads=threads,
        max_batch=max_batch,
        max_delay=max_delay / 1e3,
        queue=queue,
        timeout=timeout,
        keep_alive=keep_alive,
        max_body=_bytes(max_body),
        control=control,
        loads=tuple(load or ()),
        origins=tuple(allow_origin or ()),
        grpc=None if by_grpc is None else (by_grpc[0], certificate, key),
        token=os.environ.get("QKERNELS_TOKEN"),
    )
    log_to_stderr(log_level)
    listening = process.listen(host, port) if unix is None else process.listen_at(unix)
    scheme = "https" if certificate else "http"
    logger.info("running on %s://%s", scheme, process.shown(listening))
    if by_grpc is not None:
        logger.info("running gRPC on %s", by_grpc[0])
    process.serve(settings, listening, ssl_certfile=certificate, ssl_keyfile=key)


def _bytes(megabytes: float) -> int:
    if not math.isfinite(megabytes):
        raise ValueError(f"max-body={megabytes} must be a number of megabytes")
    return int(megabytes * 1e6)


if __name__ == "__main__":
    main()
