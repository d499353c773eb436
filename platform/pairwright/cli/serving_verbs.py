"""The verbs of the console script that serve reward models, and prepare them for it."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from pairwright.cli.options import MODELS, AsJson, DryRun, MicroBatchTokens, ModelDirectory, Overwrite, UseGpu, Version
from pairwright.errors import ConfigError
from pairwright.terminal import escaped, say, say_json

if TYPE_CHECKING:
    from pairwright.serving.reward_service import ServiceSettings

app = typer.Typer()


@app.command(rich_help_panel=MODELS)
def serve(
    models: Annotated[list[str], typer.Argument(help="Model directory of a training run; several are served as one.")],
    host: Annotated[str, typer.Option(help="Address to listen on; off loopback only with a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8600,
    token_file: Annotated[
        str | None, typer.Option(help="File with the bearer token that clients must send; else PAIRWRIGHT_TOKEN.")
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Listen off loopback without a token.")] = False,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, max=1000, help="Longest wait of a text for others to be computed with.")
    ] = 5,
    micro_batch_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of one forward pass; 16384, or the model's limit if larger, if not given."),
    ] = None,
    max_queue: Annotated[int, typer.Option(min=1, help="Texts that may wait; more are answered with 429.")] = 4096,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compute one request at a time, bit for bit as `score` does.")
    ] = False,
    combine: Annotated[
        str, typer.Option(metavar="mean|min|mean-std:LAMBDA", help="How several models' rewards become one.")
    ] = "mean",
    normalized: Annotated[
        bool, typer.Option("--normalized", help="Rewards less the reference mean, over its standard deviation.")
    ] = False,
    replicas: Annotated[
        str | None, typer.Option(metavar="N|LEAST:MOST", help="Serve in so many processes, by Ray Serve.")
    ] = None,
    use_gpu: UseGpu = False,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log a line for each request.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Answer requests for rewards over HTTP. docs/serving.md has the wire formats; Ctrl-C or SIGTERM ends it."""
    if token_file is not None and no_auth:
        raise ConfigError("--token-file and --no-auth exclude each other; leave one out")
    with _extra("serve"):
        from pairwright.serving.http_server import check_host, read_token
    from pairwright.serving.reward_service import ServiceSettings

    token = None if no_auth else read_token(token_file)
    check_host(host, token, is_open=no_auth)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    run = partial(_serve_here, as_json=as_json) if replicas is None else partial(_serve_in_replicas, replicas)
    settings = ServiceSettings(
        models=tuple(models),
        combine=combine,
        is_normalized=normalized,
        micro_batch_tokens=micro_batch_tokens,
        max_wait_seconds=max_wait_ms / 1000,
        max_queue=max_queue,
        is_exact=exact,
        use_gpu=use_gpu,
    )
    if dry_run:
        _show(settings)
        return
    run(settings, host, port, token, log_requests=log_requests)
    say("stopped; every accepted request was answered", to=sys.stderr if as_json else None)


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Say which extra has a package that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        advice = f"install it with `pip install 'pairwright[{name}]'`"
        raise ConfigError(f"{error.name} is not installed; {advice}") from None


def _show(settings: "ServiceSettings") -> None:
    from pairwright.serving.application import RewardApplication
    from pairwright.serving.request_limits import RequestLimits
    from pairwright.serving.reward_service import load_service

    say_json(RewardApplication(load_service(settings), RequestLimits(None)).cards())


def _serve_here(
    settings: "ServiceSettings", host: str, port: int, token: str | None, *, log_requests: bool, as_json: bool
) -> None:
    from pairwright.serving.application import RewardApplication
    from pairwright.serving.http_server import listen, serve
    from pairwright.serving.request_limits import RequestLimits
    from pairwright.serving.reward_service import load_service

    listening = listen(host, port)
    service = load_service(settings)
    application = RewardApplication(service, RequestLimits(token), is_logging_requests=log_requests)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listening.getsockname()[1]}"
    say_json({"model": service.name, "url": url}) if as_json else say(escaped(f"serving {service.name} at {url}"))
    serve(application, listening)


def _serve_in_replicas(
    replicas: str, settings: "ServiceSettings", host: str, port: int, token: str | None, *, log_requests: bool
) -> None:
    with _extra("replicas"):
        from pairwright.cluster.models.serve_replicas import ReplicaSettings, serve_replicas
    from pairwright.data.storage.object_store import absolute_url

    least, most = ReplicaSettings.counts(replicas)
    chosen = ReplicaSettings(least, most, token, is_logging_requests=log_requests)
    everywhere = replace(settings, models=tuple(map(absolute_url, settings.models)))
    serve_replicas(everywhere, chosen, host=host, port=port)


@app.command(rich_help_panel=MODELS)
def normalize(
    model: ModelDirectory,
    reference: Annotated[str, typer.Option(help="URL of an annotations or pairs table, whose completions are scored.")],
    version: Version = None,
    use_gpu: UseGpu = False,
    micro_batch_tokens: MicroBatchTokens = 16384,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Store the mean and deviation of a model's reference rewards with it. `serve --normalized` applies them."""
    import msgspec
    import torch

    from pairwright.evaluation.reference_rewards import normalize as run

    found = run(
        model,
        reference,
        version=version,
        micro_batch_tokens=micro_batch_tokens,
        device=torch.device("cuda" if use_gpu else "cpu"),
        overwrite=overwrite,
    )
    if as_json:
        say_json(msgspec.to_builtins(found))
        return
    say(escaped(f"{model}: {found.num_rewards:,} rewards of {reference}, mean {found.mean:+.4f}, std {found.std:.4f}"))
