"""Builds the Ray Serve application of a Serve config file (``serve deploy``, ``serve run``, Kubernetes' RayService).

``jobs/serve.yaml`` is such a file; its ``args`` are ``ServeArguments``. The token is ``PAIRWRIGHT_TOKEN`` of the
application's ``runtime_env``, or in a file that the cluster's head node has.
"""

from typing import Annotated, Any

from pydantic import Field

from pairwright.cluster.models.serve_replicas import ReplicaSettings, deployment_of
from pairwright.config.section import Section
from pairwright.data.storage.object_store import absolute_url
from pairwright.errors import ConfigError
from pairwright.serving.http_server import TOKEN_VARIABLE, read_token
from pairwright.serving.reward_service import ServiceSettings


class ServeArguments(Section):
    """What a Serve config file says of the application; keys as the flags of ``pairwright serve``."""

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    """Model directories; URLs, or paths that all nodes have. Several are served as one."""
    replicas: str = "1"
    """N, or LEAST:MOST."""
    combine: str = "mean"
    """mean, min or mean-std:LAMBDA: how several models' rewards become one."""
    normalized: bool = False
    """Rewards less the reference mean, over its standard deviation."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of one forward pass."""
    max_wait_ms: Annotated[float, Field(ge=0, le=1000)] = 5
    """Longest wait of a text for others to be computed with."""
    max_queue: Annotated[int, Field(ge=1)] = 4096
    """Texts that may wait in each replica."""
    exact: bool = False
    """Compute one request at a time, bit for bit as `score` does."""
    use_gpu: bool = False
    """One GPU for each replica."""
    log_requests: bool = False
    """Log a line for each request."""
    token_file: str | None = None
    """File with the bearer token that clients must send."""
    no_auth: bool = False
    """Answer without a token; the addresses of Ray Serve's proxies may be open to a whole network."""


def build(arguments: ServeArguments) -> Any:
    """Return the application, bound.

    Raises:
        ConfigError: if there is no token and ``no_auth`` is not said, or an argument cannot be used.
    """
    token = None if arguments.no_auth else read_token(arguments.token_file)
    if token is None and not arguments.no_auth:
        raise ConfigError(f"no token: set {TOKEN_VARIABLE} in runtime_env.env_vars, or token_file, or no_auth: true")
    least, most = ReplicaSettings.counts(arguments.replicas)
    settings = ServiceSettings(
        models=tuple(map(absolute_url, arguments.models)),
        combine=arguments.combine,
        is_normalized=arguments.normalized,
        micro_batch_tokens=arguments.micro_batch_tokens,
        max_wait_seconds=arguments.max_wait_ms / 1000,
        max_queue=arguments.max_queue,
        is_exact=arguments.exact,
        use_gpu=arguments.use_gpu,
    )
    replicas = ReplicaSettings(least, most, token, is_logging_requests=arguments.log_requests)
    return deployment_of(settings, replicas)
