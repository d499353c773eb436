"""An export, loaded by `datasets` and trained on by TRL's RewardTrainer for a step."""

from pathlib import Path
from typing import Any, Literal

import pytest

from annotation_tables import annotation_row, annotations_table, manifest
from pairwright.config import ExpandConfig
from pairwright.data.flat import export_pairs
from pairwright.data.pairs import expand_groups
from pairwright.data.store import Table
from pairwright.model.small import new_small_model

datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")

Layout = Literal["parquet", "jsonl"]
PROMPTS: dict[str, Any] = {
    "a string": "Why is the sky blue?",
    "turns": [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Why?"},
    ],
}
TEXTS = ["because of the air", "because it is", "who knows"]
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    return new_small_model(
        directory,
        architecture="llama",
        texts=TEXTS * 10,
        vocab_size=300,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        max_positions=256,
        seed=0,
        chat_template=TEMPLATE,
    )


def export(folder: Path, prompt: Any, layout: Layout) -> Path:
    row = annotation_row("1", TEXTS, scores=[3.0, 2.0, 0.5])
    if not isinstance(prompt, str):
        row |= {"prompt": prompt}
    table = Table(str(folder / "pairs"), "pairs")
    file = table.write_data(expand_groups(annotations_table([row]), ExpandConfig(margin="score_gap"))[0])
    table.commit(lambda newest: manifest(files=[file]))
    path = folder / f"flat.{layout}"
    assert export_pairs(table.url, str(path), version=None, split=None, layout=layout) == 3
    return path


@pytest.mark.parametrize("layout", ["parquet", "jsonl"])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=[*PROMPTS])
def test_trl_trains_on_what_datasets_loads(tmp_path: Path, model: Path, prompt: Any, layout: Layout) -> None:
    path = export(tmp_path, prompt, layout)
    kind = "parquet" if layout == "parquet" else "json"
    rows = datasets.load_dataset(
        kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"), trust_remote_code=False
    )
    assert rows.column_names == ["prompt", "chosen", "rejected", "weight", "margin"]
    assert rows["margin"][:] == [1.0, 2.5, 1.5]
    config = trl.RewardConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        per_device_train_batch_size=3,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        bf16=False,
        disable_tqdm=True,
    )
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, trust_remote_code=False)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    trainer = trl.RewardTrainer(model=classifier, args=config, train_dataset=rows, processing_class=tokenizer)
    first = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    assert first["margin"].tolist() == [1.0, 2.5, 1.5]
    decoded = tokenizer.decode(trainer.train_dataset[0]["chosen_ids"])
    assert TEXTS[0] in decoded
    assert "Why" in decoded
    assert trainer.train().global_step == 1
