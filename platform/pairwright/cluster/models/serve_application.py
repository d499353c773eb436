"""The reward server as an application of a Ray Serve configuration: ``serve deploy``, or KubeRay's RayService.

Its ``args`` are the flags of ``pairwright serve`` (deploy/kuberay/rewards.yaml). The address is Ray Serve's own; the
token of the clients is ``PAIRWRIGHT_TOKEN`` on every node.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray.serve import Application

from pairwright.cluster.models.serve_replicas import ReplicaSettings, reward_deployment
from pairwright.data.storage.object_store import absolute_url
from pairwright.errors import ConfigError
from pairwright.serving.http_server import TOKEN_VARIABLE, read_token
from pairwright.serving.reward_service import ServiceSettings


class RewardArguments(BaseModel):
    """What ``args`` of the application may say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...] = Field(min_length=1)
    replicas: str = "1"
    combine: str = "mean"
    normalized: bool = False
    micro_batch_tokens: int | None = Field(None, ge=1)
    max_wait_ms: float = Field(5, ge=0, le=1000)
    max_queue: int = Field(4096, ge=1)
    exact: bool = False
    use_gpu: bool = False
    no_auth: bool = False
    log_requests: bool = False


def reward_application(args: dict[str, Any]) -> Application:
    """Return the application that Ray Serve deploys.

    Raises:
        ConfigError: if an argument is not one of ``RewardArguments``, or if there is no token and none is waived.
    """
    try:
        given = RewardArguments.model_validate(args)
    except ValueError as error:
        raise ConfigError(f"args of the application pairwright-rewards: {error}") from None
    token = None if given.no_auth else read_token(None)
    if token is None and not given.no_auth:
        raise ConfigError(f"{TOKEN_VARIABLE} is not set on this node, and clients need a token; or set no_auth: true")
    settings = ServiceSettings(
        models=tuple(map(absolute_url, given.models)),
        combine=given.combine,
        is_normalized=given.normalized,
        micro_batch_tokens=given.micro_batch_tokens,
        max_wait_seconds=given.max_wait_ms / 1000,
        max_queue=given.max_queue,
        is_exact=given.exact,
        use_gpu=given.use_gpu,
    )
    least, most = ReplicaSettings.counts(given.replicas)
    replicas = ReplicaSettings(least, most, "", 0, token, is_logging_requests=given.log_requests)
    return reward_deployment(settings, replicas)
