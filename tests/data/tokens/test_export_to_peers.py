"""An export, loaded by `datasets`, and tokenised and trained on by TRL's RewardTrainer as Pairwright would."""

from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest

from annotation_tables import annotation_row, annotations_table, manifest
from pairwright.config import ExpandConfig, TokensConfig
from pairwright.data.extras import reply_of
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.data.pairs.flat_export import export_pairs
from pairwright.data.table.table import Table
from pairwright.data.tokens.conversation_tokens import TokenSpec, tokenize_completions
from pairwright.data.tokens.template_sandbox import Refusal
from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.model.tiny_models import new_tiny_model

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
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
# What TRL does with strings: what the tokenizer adds by itself, prompt and completion with nothing between, eos.
PLAIN = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}{{ eos_token }}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    return new_tiny_model(
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


def export(folder: Path, prompt: Any, layout: Layout, *, plain: bool = False) -> tuple[Path, pa.Table]:
    """Return the file that is exported, and the pairs table it was made from."""
    row = annotation_row("1", TEXTS, scores=[3.0, 2.0, 0.5])
    if not isinstance(prompt, str):
        row |= {"prompt": prompt}
    table = Table(str(folder / "pairs"), "pairs")
    pairs = expand_groups(annotations_table([row]), ExpandConfig(margin="score_difference"))[0]
    file = table.write_data(pairs)
    table.commit(lambda newest: manifest(files=[file]))
    path = folder / f"flat.{layout}"
    assert export_pairs(table.url, str(path), version=None, split=None, layout=layout, plain=plain) == 3
    return path, pairs


def trainer_over(path: Path, model: Path, *, max_steps: int = 1) -> Any:
    """Return TRL's trainer over an exported file, which it has tokenised."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows = datasets.load_dataset(
        "parquet" if path.suffix == ".parquet" else "json",
        data_files=str(path),
        split="train",
        cache_dir=str(path.parent / "cache"),
        trust_remote_code=False,
    )
    assert rows.column_names == ["prompt", "chosen", "rejected", "weight", "margin"]
    assert rows["margin"][:] == [1.0, 2.5, 1.5]
    config = trl.RewardConfig(
        output_dir=str(path.parent / "run"),
        max_steps=max_steps,
        per_device_train_batch_size=3,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        bf16=False,
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, trust_remote_code=False)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    return trl.RewardTrainer(model=classifier, args=config, train_dataset=rows, processing_class=tokenizer)


def our_token_ids(pairs: pa.Table, model: Path, **settings: Any) -> list[tuple[list[int], list[int]]]:
    """Return the token ids of chosen and rejected of each pair, as training takes them."""
    tokenizer = load_tokenizer(str(model))
    spec = TokenSpec.of(tokenizer, TokensConfig(max_length=256, special_in_text="keep", **settings))
    (prompt,), (texts,), (listed,) = (
        [[{key: turn[key] for key in ("role", "content")} for turn in one] for one in pairs["prompt"].to_pylist()],
        [[completion["text"] for completion in group] for group in pairs["completions"].to_pylist()],
        pairs["pairs"].to_pylist(),
    )
    (tokenized,) = tokenize_completions([prompt], [[reply_of(text) for text in texts]], tokenizer, spec)
    assert not isinstance(tokenized, Refusal)
    rows = [[] if ids is None else ids.tolist() for ids in tokenized.row_ids]
    return [(rows[pair["chosen"]], rows[pair["rejected"]]) for pair in listed]


@pytest.mark.parametrize("layout", ["parquet", "jsonl"])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=[*PROMPTS])
def test_trl_tokenizes_conversations_as_pairwright_does(
    tmp_path: Path, model: Path, prompt: Any, layout: Layout
) -> None:
    path, pairs = export(tmp_path, prompt, layout)
    trained = trainer_over(path, model).train_dataset
    assert list(zip(trained["chosen_ids"], trained["rejected_ids"], strict=True)) == our_token_ids(pairs, model)


def test_trl_tokenizes_plain_strings_as_pairwright_does_under_the_manuals_template(tmp_path: Path, model: Path) -> None:
    path, pairs = export(tmp_path, PROMPTS["a string"], "parquet", plain=True)
    trained = trainer_over(path, model).train_dataset
    ours = our_token_ids(pairs, model, chat_template=PLAIN)
    assert list(zip(trained["chosen_ids"], trained["rejected_ids"], strict=True)) == ours
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    assert PLAIN in page


def test_trl_trains_on_what_datasets_loads(tmp_path: Path, model: Path) -> None:
    trainer = trainer_over(export(tmp_path, PROMPTS["turns"], "parquet")[0], model)
    first = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    assert first["margin"].tolist() == [1.0, 2.5, 1.5]
    assert trainer.train().global_step == 1
