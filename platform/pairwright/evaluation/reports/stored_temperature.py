"""``temperature.json`` beside a model's directory: what its rewards are divided by, so that probabilities are true.

It is no file of the model, so the model's digest and its list of files stay as they are; the digest that it names says
which model it belongs to.
"""

from typing import Annotated, Any, Literal

import msgspec

from pairwright.data.storage.object_store import absolute_url
from pairwright.data.storage.outputs import check_output, put_output
from pairwright.errors import DataError
from pairwright.evaluation.statistics.calibration import Calibration
from pairwright.records import UNREADABLE_JSON

NAME = "temperature.json"
WHAT = "a temperature of `pairwright evaluate`"


class StoredTemperature(msgspec.Struct, frozen=True, kw_only=True):
    """The temperature of a model: the probability that a completion is better is sigmoid(reward difference / it)."""

    format_version: Literal[1] = 1
    temperature: Annotated[float, msgspec.Meta(gt=0)]
    model_digest: Annotated[str, msgspec.Meta(description="of the model's files, as in report.json")]
    fitted_on_prompts: int
    pairs_url: str
    pairs_digest: str


def temperature_url(model: str) -> str:
    """Return the URL of a model's temperature."""
    return f"{absolute_url(model).rpartition('/')[0]}/{NAME}"


def check_temperature(model: str, *, overwrite: bool) -> None:
    """Refuse to store a temperature where a file is that may not be replaced.

    Raises:
        StoreError: if one is there.
    """
    check_output(temperature_url(model), _is_temperature, what=WHAT, overwrite=overwrite)


def store_temperature(model: str, report: dict[str, Any], calibration: Calibration, *, overwrite: bool) -> None:
    """Write the temperature that a report was made with.

    Raises:
        DataError: if it could not be fitted.
        StoreError: if it cannot be written.
    """
    if calibration.temperature is None:
        raise DataError(f"{model}: no temperature was fitted: the half of the prompts to fit it on has no pair")
    stored = StoredTemperature(
        temperature=calibration.temperature,
        model_digest=report["model"]["digest"],
        fitted_on_prompts=calibration.fitted_on_prompts,
        pairs_url=report["pairs"]["url"],
        pairs_digest=report["pairs"]["digest"],
    )
    content = msgspec.json.format(msgspec.json.encode(stored), indent=2) + b"\n"
    put_output(temperature_url(model), content, _is_temperature, what=WHAT, overwrite=overwrite)


def _is_temperature(content: bytes) -> bool:
    try:
        return msgspec.json.decode(content, type=StoredTemperature).format_version == 1
    except UNREADABLE_JSON:
        return False
