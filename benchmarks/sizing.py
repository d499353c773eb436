"""Nodes, hours and dollars of an ingestion and of a training, from measured rates and stated assumptions.

    python benchmarks/sizing.py [--write] [--cpu-node-dollars 0.80] [--gpu-dollars 3.00] [--mfu 0.35] ...

Rates of ingestion and expansion are read from benchmarks/results/; FLOPs and memory of a training come from the
library's own cost model and memory model. ``--write`` puts the tables into docs/sizing.md, and a test holds them to
what this program prints.
"""

import argparse
import re
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from pairwright.config import DataConfig, DeepSpeedConfig, ModelConfig, TrainConfig
from pairwright.data.id_index.index_merges import IDS_PER_FILE
from pairwright.model.batching.cost_model import ModelShape, PartSizes
from pairwright.model.batching.memory_model import ModelOutline, checkpoint_bytes, rank_memory
from pairwright.terminal import counted

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/sizing.md"
MEASURED = ROOT / "benchmarks/results/ingest_memory_2cpu_2026-11-21.md"
MEASURED_CPUS = 2
BLOCK = re.compile(r"(?<=<!-- sizing -->\n).*?(?=<!-- end of sizing -->)", re.DOTALL)
CONFIG = TrainConfig(
    output="run",
    data=DataConfig(pairs="pairs"),
    model=ModelConfig(path="model", gradient_checkpointing=True),
    deepspeed=DeepSpeedConfig(zero_stage=3, precision="bf16"),
)
GIGABYTE = 1e9
NODES = {1e6: 1, 1e8: 4, 1e9: 16}
"""Annotations -> nodes of an ingestion."""
NUM_GPUS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
NUM_GROUPS = (1e5, 1e6)


@dataclass(frozen=True)
class Assumptions:
    """What nobody measured for this page, each a flag of the program."""

    annotation_bytes: float = 2000
    """Bytes of one annotation as JSON"""
    stored_share: float = 0.5
    """Bytes of a stored annotation, as a share of its JSON"""
    cpus_per_node: float = 16
    """CPUs of a data node"""
    cpu_node_dollars: float = 0.80
    """Dollars an hour of a data node"""
    node_efficiency: float = 0.8
    """Share of the measured rate for each CPU that a node of several keeps"""
    storage_dollars: float = 0.023
    """Dollars a month of a stored GB"""
    gpu_memory_gb: float = 80
    """GB of memory of a GPU"""
    gpu_tflops: float = 989
    """TFLOP/s of a GPU in bfloat16, dense"""
    mfu: float = 0.35
    """Share of them that a step reaches"""
    gpu_dollars: float = 3.0
    """Dollars an hour of a GPU"""
    memory_share: float = 0.85
    """Share of a GPU's memory that is used"""
    micro_batch_tokens: float = 16_384
    """Tokens of a micro-batch of one GPU"""
    completions: float = 4
    """Completions of a group"""
    prompt_tokens: float = 512
    """Tokens of a prompt"""
    completion_tokens: float = 256
    """Tokens of a completion"""


@dataclass(frozen=True)
class Decoder:
    """A decoder of Llama's kind."""

    name: str
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    feed_forward: int
    vocabulary: int

    @property
    def _key_value_width(self) -> int:
        return self.hidden // self.heads * self.key_value_heads

    @property
    def layer_parameters(self) -> int:
        """Weights of the linear layers of one block."""
        return 2 * self.hidden * (self.hidden + self._key_value_width) + 3 * self.hidden * self.feed_forward

    @property
    def outline(self) -> ModelOutline:
        """What the memory model reads."""
        num_parameters = self.layers * self.layer_parameters + self.vocabulary * self.hidden + self.hidden
        inside = 6 * self.hidden + 2 * self._key_value_width + 3 * (self.hidden + self.feed_forward)
        return ModelOutline(
            num_parameters=num_parameters,
            num_trained=num_parameters,
            linear_width=self.layers * inside,
            hidden_size=self.hidden,
            num_layers=self.layers,
            max_positions=None,
        )

    @property
    def shape(self) -> ModelShape:
        """What the cost model reads."""
        return ModelShape(self.layers * self.layer_parameters, self.layers * self.hidden)


DECODERS = (
    Decoder("1B", 2048, 16, 32, 8, 8192, 128_256),
    Decoder("8B", 4096, 32, 32, 8, 14_336, 128_256),
    Decoder("70B", 8192, 80, 64, 8, 28_672, 128_256),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/sizing.md")
    for field in fields(Assumptions):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default)
    options = vars(parser.parse_args())
    is_written = options.pop("write")
    text = tables(Assumptions(**options))
    print(text)
    if is_written:
        PAGE.write_text(BLOCK.sub(lambda _: text, PAGE.read_text()))


def tables(given: Assumptions) -> str:
    """Return all tables as Markdown."""
    return "\n".join(
        ["### Data", *data_table(given), "", "### Training", *training_table(given), "", *inputs(given), ""]
    )


def measured_seconds(stage: str) -> tuple[float, float]:
    """Return the measured seconds of a stage: for each GB, and once a command."""
    found = re.search(rf"- {stage}: .*; ([\d.]+) s for each GB more, the first 1 GB ([\d.]+) s", MEASURED.read_text())
    assert found is not None, stage
    return float(found[1]), float(found[2]) - float(found[1])


def data_table(given: Assumptions) -> list[str]:
    """Return nodes, hours and dollars of ingestions and expansions."""
    lines = [
        "| annotations | JSON | data nodes | ingest | expand | dollars | stored | dollars a month | id index |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for num, nodes in NODES.items():
        gigabytes = num * given.annotation_bytes / GIGABYTE
        speedup = nodes * given.cpus_per_node / MEASURED_CPUS * given.node_efficiency
        seconds = [gigabytes * each / speedup + once for each, once in map(measured_seconds, ("ingest", "expand"))]
        dollars = sum(seconds) / 3600 * nodes * given.cpu_node_dollars
        stored = gigabytes * given.stored_share
        lines.append(
            f"| {num:.0e} | {gigabytes:,.0f} GB | {nodes} | {duration(seconds[0])} | {duration(seconds[1])} | "
            f"{money(dollars)} | {stored:,.0f} GB | {money(stored * given.storage_dollars)} | "
            f"{8 * num / GIGABYTE:,.2f} GB in {counted(int(-(-num // IDS_PER_FILE)), 'file')} |"
        )
    return lines


def training_table(given: Assumptions) -> list[str]:
    """Return GPUs, hours and dollars of one epoch."""
    heads = [f"{num:.0e} groups | dollars" for num in NUM_GROUPS]
    lines = [
        f"| model | GPUs | GB a GPU | checkpoint | {' | '.join(heads)} |",
        "|---" * (4 + 2 * len(NUM_GROUPS)) + "|",
    ]
    for decoder in DECODERS:
        gpus, num_bytes = fewest_gpus(decoder, given)
        cells = []
        for num in NUM_GROUPS:
            seconds = num * group_flops(decoder, given) / (gpus * given.gpu_tflops * 1e12 * given.mfu)
            cells += [duration(seconds), money(seconds / 3600 * gpus * given.gpu_dollars)]
        checkpoint = checkpoint_bytes(decoder.outline, CONFIG) / GIGABYTE
        lines.append(
            f"| {decoder.name} | {gpus} | {num_bytes / GIGABYTE:.0f} | {checkpoint:,.0f} GB | {' | '.join(cells)} |"
        )
    return lines


def fewest_gpus(decoder: Decoder, given: Assumptions) -> tuple[int, float]:
    """Return the fewest GPUs on which ZeRO-3 fits, and the bytes that each holds, with two gathered layers."""
    gathered = 2 * 2 * max(decoder.layer_parameters, decoder.vocabulary * decoder.hidden)
    for gpus in NUM_GPUS:
        estimate = rank_memory(decoder.outline, CONFIG, num_ranks=gpus, num_tokens=int(given.micro_batch_tokens))
        if estimate.total + gathered <= given.gpu_memory_gb * given.memory_share * GIGABYTE:
            return gpus, estimate.total + gathered
    raise ValueError(f"{decoder.name}: does not fit {NUM_GPUS[-1]} GPUs of {given.gpu_memory_gb:g} GB")


def group_flops(decoder: Decoder, given: Assumptions) -> float:
    """Return the FLOPs of one group in training: forward, backward (twice that), and the recomputed forward."""
    num = given.completions
    one = PartSizes(
        rows_I=np.array([num]).astype(np.int64),
        prompt_I=np.array([given.prompt_tokens]).astype(np.int64),
        completions_I=np.array([num * given.completion_tokens]).astype(np.int64),
        longest_I=np.array([given.prompt_tokens + given.completion_tokens]).astype(np.int64),
    )
    return 4 * float(one.costs_I("shared", decoder.shape)[0])


def inputs(given: Assumptions) -> list[str]:
    """Return the measured rates and the assumptions as tables."""
    lines = [
        "### Measured",
        f"[benchmarks/results/{MEASURED.name}](../benchmarks/results/{MEASURED.name}), 2 CPUs:",
        "",
    ]
    for stage in ("ingest", "expand"):
        each, once = measured_seconds(stage)
        lines.append(f"- `{stage}`: {each:g} s a GB of JSON Lines, and {once:.1f} s once")
    lines += ["", "### Assumed", "| flag of benchmarks/sizing.py | value | meaning |", "|---|---|---|"]
    text = Path(__file__).read_text()
    for field in fields(Assumptions):
        meaning = re.search(rf'    {field.name}: float = [\d._]+\n    """(.*)"""', text)
        assert meaning is not None, field.name
        lines.append(f"| `--{field.name.replace('_', '-')}` | {getattr(given, field.name):g} | {meaning[1]} |")
    return lines


def duration(seconds: float) -> str:
    """Return seconds as a person reads them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def money(dollars: float) -> str:
    """Return dollars as a person reads them."""
    return f"{dollars:,.2f}" if dollars < 100 else f"{dollars:,.0f}"


if __name__ == "__main__":
    main()
