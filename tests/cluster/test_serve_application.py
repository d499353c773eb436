"""The configuration of Ray Serve in deploy/kuberay/rewards.yaml is valid, and deploys our application."""

from pathlib import Path

import pytest
import yaml

from pairwright.cluster.models.serve_application import reward_application
from pairwright.errors import ConfigError

MANIFEST = Path(__file__).parents[2] / "deploy" / "kuberay" / "rewards.yaml"
TOKEN = "a-token-of-more-than-16-characters"


def test_the_service_is_a_valid_configuration_of_ray_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve.schema import ServeDeploySchema

    service = next(part for part in yaml.safe_load_all(MANIFEST.read_text()) if part["kind"] == "RayService")
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    [application] = config.applications
    assert application.import_path == f"{reward_application.__module__}:{reward_application.__name__}"
    monkeypatch.setenv("PAIRWRIGHT_TOKEN", TOKEN)
    reward_application(application.args)


def test_a_misspelt_argument_and_a_missing_token_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAIRWRIGHT_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="modles"):
        reward_application({"modles": ["model"]})
    with pytest.raises(ConfigError, match="PAIRWRIGHT_TOKEN is not set"):
        reward_application({"models": ["model"]})
