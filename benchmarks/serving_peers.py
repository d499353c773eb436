"""Servers that `pairwright serve` is measured beside: a plain transformers + FastAPI loop, and OpenRLHF's `serve_rm`.

OpenRLHF's file is run as it is, from its wheel (``pip download --no-deps openrlhf``). What stands in for the rest of
its package, which needs flash-attn and GPUs: loading (the same model in float32 with PyTorch's attention, as ours),
its tokenizer helper, and its log. Padding on the left, positions by the mask and reading at the last column are its.

    python benchmarks/serving_peers.py plain MODEL PORT
    python benchmarks/serving_peers.py openrlhf MODEL PORT --wheel openrlhf-0.11.2-....whl
"""

import argparse
import sys
import threading
import types
import zipfile
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from transformers import AutoModelForSequenceClassification, AutoTokenizer

PLAIN_BATCH = 8
SERVE_RM = "openrlhf/cli/serve_rm.py"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=["plain", "openrlhf"])
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("--wheel")
    arguments = parser.parse_args()
    if arguments.peer == "plain":
        serve_plainly(arguments.model, arguments.port)
    else:
        serve_as_openrlhf(arguments.model, arguments.port, arguments.wheel)


def serve_plainly(path: str, port: int) -> None:
    """What one writes in an afternoon: each request padded to its longest text, in batches, one request at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    one_at_a_time = threading.Lock()

    def get_reward(body: dict[str, Any]) -> dict[str, list[float]]:
        texts, found = body["query"], []
        with one_at_a_time, torch.no_grad():
            for start in range(0, len(texts), PLAIN_BATCH):
                part = texts[start : start + PLAIN_BATCH]
                rows = tokenizer(part, add_special_tokens=False, padding=True, return_tensors="pt")
                found += model(**rows).logits[:, 0].tolist()
        return {"rewards": found}

    app = FastAPI()
    app.post("/get_reward")(get_reward)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def serve_as_openrlhf(path: str, port: int, wheel: str) -> None:
    """Run OpenRLHF's own server file over stand-ins of its model loading."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(SERVE_RM))
        source = archive.read(name).decode()
    stand_ins: dict[str, dict[str, Any]] = {
        "openrlhf": {},
        "openrlhf.models": {"get_llm_for_sequence_regression": _left_padded_model},
        "openrlhf.utils": {"get_tokenizer": _left_padding_tokenizer},
        "openrlhf.utils.config": {"hierarchize": _nested},
        "openrlhf.utils.logging_utils": {"init_logger": lambda _: types.SimpleNamespace(info=lambda _: None)},
    }
    for module, names in stand_ins.items():
        sys.modules[module] = types.ModuleType(module)
        vars(sys.modules[module]).update(names)
    sys.argv = ["serve_rm", "--reward.model_name_or_path", path, "--host", "127.0.0.1", "--port", str(port)]
    main_module = {"__name__": "__main__", "Request": Request}
    sys.modules["__main__"].__dict__["Request"] = Request  # FastAPI looks names of annotations up there
    exec(compile(source, SERVE_RM, "exec"), main_module)


class _LeftPadded(torch.nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.model = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=False)
        self.device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        hidden = self.model.base_model(
            input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
        )
        return self.model.score(hidden.last_hidden_state[:, -1])[:, 0]


def _left_padded_model(path: str, kind: str, **_: Any) -> _LeftPadded:
    assert kind == "reward"
    return _LeftPadded(path)


def _left_padding_tokenizer(path: str, _model: Any, side: str, *_: Any, **__: Any) -> Any:
    return AutoTokenizer.from_pretrained(path, padding_side=side, trust_remote_code=False)


def _nested(flat: argparse.Namespace) -> types.SimpleNamespace:
    """Return ``a.b`` as attribute ``b`` of attribute ``a``."""
    nested = types.SimpleNamespace()
    for name, value in vars(flat).items():
        *sections, last = name.split(".")
        at = nested
        for section in sections:
            at.__dict__.setdefault(section, types.SimpleNamespace())
            at = getattr(at, section)
        setattr(at, last, value)
    return nested


if __name__ == "__main__":
    main()
