"""Token tables on Ray: found again by content, never stale, never half-written, the same rows every time."""

import logging
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pyarrow as pa
import pytest

from pairwright.config import TokensConfig
from pairwright.data.storage.object_store import open_store
from pairwright.data.table.table import Manifest, Table
from pairwright.data.tokens.tokenize import ensure_tokens
from pairwright.data.tokens.tokenize_groups import (
    REFUSED_PREFIX,
    TokenSpec,
    TokenTable,
    counts_behind,
    load_tokenizer,
    local_token_paths,
    tokenize_groups,
)
from pairwright.errors import DataError, ModelError, StoreError
from pairwright.model.tiny_models import new_tiny_model
from pairwright.records import PAIRS_SCHEMA

WORDS = "clear precise honest wordy vague biased helpful rude careful sloppy".split()  # noqa: SIM905
CONFIG = TokensConfig(max_length=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_tiny_model(
        tmp_path_factory.mktemp("model"),
        architecture="llama",
        texts=[" ".join(WORDS)] * 10,
        vocab_size=300,
        hidden_size=8,
        num_layers=1,
        num_heads=1,
        max_positions=64,
        seed=0,
    )


def pairs_rows(num_groups: int, *, first: int = 0) -> pa.Table:
    rows = [
        {
            "group_id": f"{number:032x}",
            "prompt_id": f"{number // 2:032x}",
            "prompt": [{"role": "user", "content": f"prompt {number // 2}"}],
            "completions": [
                {"id": str(k), "text": " ".join(WORDS[(number + k) % 10 :][: k + 1]), "model": None} for k in range(4)
            ],
            "pairs": [{"chosen": 0, "rejected": k, "weight": 1 / 3, "margin": None} for k in (1, 2, 3)],
            "num_annotations": 1,
            "annotators": ["a"],
            "split": "validation" if number % 10 == 0 else "train",
            "subset": None,
            "metadata": None,
        }
        for number in range(first, first + num_groups)
    ]
    return pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA)


def commit_pairs(url: str, parts: Sequence[pa.Table]) -> Manifest:
    table = Table(url, "pairs")
    manifest = Manifest(
        kind="pairs",
        operation="expand",
        files=[table.write_data(part) for part in parts],
        quarantined_files=[],
        totals={},
        sources=[],
        inputs=[],
        config={},
        config_digest="",
    )
    committed = table.commit(lambda newest: manifest)
    assert committed is not None
    return committed


def tokens_of(pairs: str, model: Path, into: str, *, version: int = 1, config: TokensConfig = CONFIG):
    return ensure_tokens(pairs, version=version, tokenizer_path=str(model), config=config, into=into)


def test_the_table_holds_what_the_pure_function_gives_with_totals_over_all_files(tmp_path: Path, model: Path):
    parts = [pairs_rows(300), pairs_rows(200, first=300), pairs_rows(100, first=500)]
    pairs = commit_pairs(str(tmp_path / "pairs"), parts)
    url, manifest = tokens_of(str(tmp_path / "pairs"), model, str(tmp_path / "tokens"))
    tokenizer = load_tokenizer(str(model))
    spec = TokenSpec.of(tokenizer, CONFIG)
    expected, totals = tokenize_groups(pa.concat_tables(parts), tokenizer, spec)
    found = pa.concat_tables(Table.open(url, "tokens").read(manifest)).sort_by("group_id")
    assert found.equals(expected.sort_by("group_id"))
    assert manifest.totals == totals
    assert [source.digest for source in manifest.inputs] == [pairs.digest]
    assert manifest.config["chat_template"] == spec.chat_template
    table = TokenTable(local_token_paths(url, manifest))
    assert len(table) == 600
    assert len(table.rows_of_split("validation")) == 60


def test_a_second_call_makes_nothing(tmp_path: Path, model: Path):
    commit_pairs(str(tmp_path / "pairs"), [pairs_rows(20)])
    first = tokens_of(str(tmp_path / "pairs"), model, str(tmp_path / "tokens"))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").rglob("*")}
    assert tokens_of(str(tmp_path / "pairs"), model, str(tmp_path / "tokens")) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").rglob("*")} == files


def test_whatever_changes_the_tokens_gives_another_table(tmp_path: Path, model: Path):
    """Pitfall 23: a cache named by its source goes on being used after the source has changed."""
    pairs, into = str(tmp_path / "pairs"), str(tmp_path / "tokens")
    commit_pairs(pairs, [pairs_rows(20)])
    urls = [tokens_of(pairs, model, into)[0]]
    moved = shutil.copytree(model, tmp_path / "moved")
    (moved / "README.md").write_text("not a tokenizer's file")
    assert tokens_of(pairs, moved, into)[0] == urls[0]
    commit_pairs(pairs, [pairs_rows(21)])
    urls.append(tokens_of(pairs, model, into, version=2)[0])
    tokenizer = load_tokenizer(str(moved))
    tokenizer.add_tokens(["wordy"])
    tokenizer.save_pretrained(moved)
    urls.append(tokens_of(pairs, moved, into)[0])
    for changes in (
        {"max_length": 63},
        {"overlong_policy": "truncate"},
        {"special_in_text": "keep"},
        {"chat_template": "{{ messages[-1]['content'] }}"},
    ):
        urls.append(tokens_of(pairs, model, into, config=CONFIG.model_copy(update=changes))[0])
    assert len(set(urls)) == len(urls)
    assert tokens_of(pairs, model, into)[0] == urls[0]


def test_a_half_written_table_is_made_again(tmp_path: Path, model: Path):
    pairs, into = str(tmp_path / "pairs"), str(tmp_path / "tokens")
    commit_pairs(pairs, [pairs_rows(20)])
    url, whole = tokens_of(pairs, model, into)
    shutil.rmtree(Path(url) / "versions")
    left = next((Path(url) / "data").iterdir())
    left.write_bytes(left.read_bytes()[:1000])
    again_url, again = tokens_of(pairs, model, into)
    assert again_url == url
    assert [file.sha256 for file in again.files] == [file.sha256 for file in whole.files]
    assert left not in local_token_paths(url, again)
    assert len(TokenTable(local_token_paths(url, again))) == 20


def test_two_jobs_at_once_share_one_table_and_leave_no_other_files(tmp_path: Path, model: Path):
    pairs, into = str(tmp_path / "pairs"), str(tmp_path / "tokens")
    commit_pairs(pairs, [pairs_rows(50), pairs_rows(50, first=50)])
    with ThreadPoolExecutor(2) as pool:
        (url, first), second = pool.map(lambda _: tokens_of(pairs, model, into), range(2))
    assert second == (url, first)
    assert Table.open(url, "tokens").versions() == [1]
    assert sorted((Path(url) / "data").iterdir()) == sorted(local_token_paths(url, first))


def test_rows_stand_in_the_same_order_whatever_order_the_pairs_files_were_listed_in(tmp_path: Path, model: Path):
    parts = [pairs_rows(30), pairs_rows(30, first=30), pairs_rows(30, first=60)]
    orders = []
    for name, order in (("one", parts), ("other", parts[::-1])):
        commit_pairs(str(tmp_path / name), order)
        url, manifest = tokens_of(str(tmp_path / name), model, str(tmp_path / f"tokens of {name}"))
        table = TokenTable(local_token_paths(url, manifest))
        orders.append([table.group_id(i) for i in range(len(table))])
    assert orders[0] == orders[1]
    assert len(orders[0]) == 90


def test_a_file_without_a_pair_left_is_counted_and_excluded(tmp_path: Path, model: Path):
    short, long = pairs_rows(20), pairs_rows(10, first=20).to_pylist()
    for row in long:
        row["prompt"] = [{"role": "user", "content": "clear " * 100}]
    commit_pairs(str(tmp_path / "pairs"), [short, pa.Table.from_pylist(long, schema=PAIRS_SCHEMA)])
    _, manifest = tokens_of(str(tmp_path / "pairs"), model, str(tmp_path / "tokens"))
    assert [file.rows for file in manifest.files] == [20]
    assert (manifest.totals["groups"], manifest.totals["groups_dropped"]) == (30, 10)
    assert manifest.totals["longest"] > 100


def test_a_limit_that_leaves_no_pair_says_what_it_would_take(tmp_path: Path, model: Path):
    commit_pairs(str(tmp_path / "pairs"), [pairs_rows(20)])
    with pytest.raises(DataError, match=r"no pair is left .* 60 pairs in 20 groups 60 had .* tokens.max_length=8 and"):
        tokens_of(
            str(tmp_path / "pairs"), model, str(tmp_path / "tokens"), config=CONFIG.model_copy(update={"max_length": 8})
        )
    assert not list((tmp_path / "tokens").rglob("*.json"))


def test_a_prompt_that_the_template_refuses_is_counted_or_stops_the_job(tmp_path: Path, model: Path):
    template = (
        "{% if messages[0]['content'] == 'prompt 3' %}{{ raise_exception('no threes') }}{% endif %}"
        "{{ messages[-1]['content'] }}"
    )
    commit_pairs(str(tmp_path / "pairs"), [pairs_rows(20)])
    config = CONFIG.model_copy(update={"chat_template": template})
    pairs, into = str(tmp_path / "pairs"), str(tmp_path / "tokens")
    with pytest.raises(DataError, match=f"group {6:032x}: .*no threes"):
        tokens_of(pairs, model, into, config=config.model_copy(update={"refused": "stop"}))
    _, manifest = tokens_of(pairs, model, into, config=config)
    assert (manifest.totals["groups"], manifest.totals["groups_refused"]) == (20, 2)
    assert counts_behind(manifest.totals, REFUSED_PREFIX) == {"the chat template gives no text: no threes": 2}


def test_a_template_that_refuses_every_prompt_is_an_error_that_names_it(tmp_path: Path, model: Path):
    shown = "{{ messages[-1].content }}"
    template = "{% if messages[0].content != 'Which one?' %}{{ raise_exception('no more') }}{% endif %}" + shown
    commit_pairs(str(tmp_path / "pairs"), [pairs_rows(6)])
    config = CONFIG.model_copy(update={"chat_template": template})
    with pytest.raises(DataError, match=r"tokens.chat_template refuses every one of 6 groups \(.*no more\);"):
        tokens_of(str(tmp_path / "pairs"), model, str(tmp_path / "tokens"), config=config)


def test_a_missing_table_version_or_tokenizer_is_named(tmp_path: Path, model: Path):
    pairs, into = str(tmp_path / "pairs"), str(tmp_path / "tokens")
    with pytest.raises(StoreError, match="no table here"):
        tokens_of(pairs, model, into)
    commit_pairs(pairs, [pairs_rows(2)])
    with pytest.raises(StoreError, match="no version 7"):
        tokens_of(pairs, model, into, version=7)
    with pytest.raises(ModelError, match="no tokenizer; write one there"):
        tokens_of(pairs, tmp_path, into)


def test_tables_on_s3_are_downloaded_once_and_checked(
    tmp_path: Path, model: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    commit_pairs(f"{s3_bucket}/pairs", [pairs_rows(40)])
    source, target = Table(f"{s3_bucket}/pairs", "pairs"), Table(f"{s3_bucket}/tokens/x", "tokens")
    tokenizer = load_tokenizer(str(model))
    tokens, _ = tokenize_groups(
        source.read_file(source.manifest().files[0]), tokenizer, TokenSpec.of(tokenizer, CONFIG)
    )
    manifest = Manifest(
        kind="tokens",
        operation="tokenize",
        files=[target.write_data(tokens, compress=False)],
        quarantined_files=[],
        totals={},
        sources=[],
        inputs=[],
        config={},
        config_digest="",
    )
    (path,) = local_token_paths(target.url, manifest)
    assert path.is_relative_to(tmp_path)
    assert len(TokenTable([path])) == 40
    written = path.stat().st_mtime_ns
    assert local_token_paths(target.url, manifest) == [path]
    assert path.stat().st_mtime_ns == written
    whole = path.read_bytes()
    for damaged in (b"cut short", bytes(byte ^ 1 for byte in whole)):
        time.sleep(0.02)  # file systems count time in steps of some milliseconds
        path.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            local_token_paths(target.url, manifest)
        assert path.read_bytes() == whole
        assert f"{path}: this copy of {target.url}/{manifest.files[0].path} is damaged" in caplog.text
        caplog.clear()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.unlink()
    obstore.put(open_store(target.url), manifest.files[0].path, bytes(byte ^ 1 for byte in whole))
    with pytest.raises(StoreError, match=rf"{target.url}/data/\w+.arrow: damaged: .*; delete the whole table"):
        local_token_paths(target.url, manifest)
    assert not path.exists()
    target.delete(manifest.files)
    with pytest.raises(StoreError, match="this file of a tokens table is gone"):
        local_token_paths(target.url, manifest)
