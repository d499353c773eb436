"""Only what Pairwright made is deleted, moved or overwritten: places, files, directories and links of others stay."""

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest

from annotation_tables import annotation_row, annotations_table, manifest
from pairwright.data.storage.model_listing import RULES_FILE, list_files
from pairwright.data.storage.outputs import new_file, put_directory, put_output
from pairwright.data.storage.ownership import SCORES, TABLE, delete_files, refuse_occupied
from pairwright.data.table.erase import erase
from pairwright.data.table.table import REMOVED, Table
from pairwright.data.table.vacuum import vacuum
from pairwright.errors import StoreError
from pairwright.records import Rejection
from pairwright.runs.folder_transfer import copy_folder, remove_folder
from pairwright.runs.repair import remove_uncommitted, repair_snapshot
from pairwright.runs.run_dir import RunFolder, check_model_folder, store_model
from run_folders import add, claim, commit, name

ADVICE = "choose another place"


def write(root: Path, *paths: str) -> dict[str, bytes]:
    """Write files whose contents are their paths, made long ago; return all of them."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
        os.utime(root / path, (0, 0))
    return {path: path.encode() for path in paths}


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def small_table(url: Path) -> Table:
    table = Table(str(url), "annotations")
    file = table.write_data(annotations_table([annotation_row("r", ["a", "b"], [1, 2])]))
    table.commit(lambda _: manifest(kind="annotations", files=[file]))
    return table


def clean(url: Path, *, keep: int | None = None) -> list[str]:
    return vacuum(str(url), older_than=timedelta(), keep_versions=keep, is_dry_run=False).removed_files


# ------------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize(
    "path",
    [
        "data/raw/precious.csv",
        "data/precious.arrow",
        f"data/{'0A' * 16}.arrow",
        f"data/{'0a' * 16}.csv",
        f"refused/{'0a' * 16}.arrow",
        f"quarantine/{'0a' * 16}.arrow",
        "quarantine/essays.jsonl",
        "refused/essays.jsonl",
        "staging/page.html",
        "landing/page.html",
        f"staging/{'0a' * 16}/page.html",
        "versions/20240101.txt",
        "run.json",
        "notes",
    ],
)
def test_a_place_with_anything_foreign_becomes_no_table(tmp_path: Path, path: str) -> None:
    before = write(tmp_path, path)
    with pytest.raises(StoreError, match=r"holds no table but .*; give the table a folder of its own, such as"):
        Table.claim(str(tmp_path), "annotations")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("folder", ["data", "quarantine", "staging", "refused", "landing"])
def test_a_place_whose_folders_are_links_becomes_no_table(tmp_path: Path, folder: str) -> None:
    before = write(tmp_path / "elsewhere", f"{'0a' * 16}.arrow")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=f"holds no table but {folder}"):
        Table.claim(str(tmp_path / "t"), "annotations")
    assert contents(tmp_path / "elsewhere") == before


def test_what_a_killed_writer_left_is_no_obstacle(tmp_path: Path) -> None:
    one, two = "0a" * 16, "1b" * 16
    write(tmp_path, f"data/{one}.arrow", f"data/{two}.arrow#1", f"refused/{one}.jsonl", f"landing/{one}/{two}.jsonl")
    write(tmp_path, f"quarantine/{one}.jsonl", f"staging/{one}/{two}.jsonl", f"staging/{one}/8")
    write(tmp_path, f"landing/{one}/7", "versions/00000001.json#0a1b2c3d", ".DS_Store")
    assert Table.claim(str(tmp_path), "annotations").versions() == []


def test_a_table_with_the_old_names_of_its_folders_is_read_erased_and_vacuumed(tmp_path: Path) -> None:
    table = Table(str(tmp_path / "t"), "annotations")
    rows = [annotation_row("1", ["a", "b"], [1, 2], annotator="ann"), annotation_row("2", ["c", "d"], [1, 2])]
    data = table.write_data(annotations_table(rows))
    refused = [Rejection(source="s.jsonl", line=3, path="$", reason="of no use", record="ann wrote this")]
    quarantined = table.write_quarantined(refused)
    table.commit(lambda _: manifest(kind="annotations", files=[data], quarantined_files=[quarantined]))
    (tmp_path / "t/quarantine").rename(tmp_path / "t/refused")
    path = tmp_path / "t/versions/00000001.json"
    path.write_text(path.read_text().replace("quarantine/", "refused/"))

    old = Table.claim(table.url, "annotations").manifest()
    assert table.read_quarantined(old.quarantined_files[0]) == refused
    assert erase(table.url, annotators=["ann"], prompts=[]).num_refused_without_text == 1
    newest = table.manifest()
    assert [file.path.partition("/")[0] for file in newest.quarantined_files] == ["quarantine"]
    assert [one.record for one in table.read_quarantined(newest.quarantined_files[0])] == [""]
    unnamed = [f"refused/{'1b' * 16}.jsonl", f"landing/{'0a' * 16}/7", f"staging/{'0a' * 16}/8"]
    write(tmp_path / "t", *unnamed)
    assert sorted(clean(tmp_path / "t", keep=1)) == sorted([*unnamed, old.files[0].path, old.quarantined_files[0].path])
    assert not (tmp_path / f"t/landing/{'0a' * 16}").exists()


@pytest.mark.parametrize("folder", ["quarantine", "refused"])
def test_scores_own_their_rejections_under_the_old_name_too(folder: str) -> None:
    assert SCORES.deletable.fullmatch(f"{folder}/0a1b2c3d4e5f-00000.jsonl")
    assert not SCORES.deletable.fullmatch(f"{folder}/mine.jsonl")


def test_a_vacuum_leaves_every_foreign_file_and_says_so(tmp_path: Path) -> None:
    small_table(tmp_path / "t")
    write(tmp_path / "elsewhere", f"{'0a' * 16}.arrow", "notes.txt")
    foreign = write(
        tmp_path / "t",
        "data/raw/precious.csv",
        "data/mine.arrow",
        "refused/mine.jsonl",
        "landing/mine/page.html",
        f"landing/{'0a' * 16}/page.html",
        "versions/notes.json",
        "versions/00000001.json.bak",
    )
    (tmp_path / "t/landing/empty").mkdir()
    (tmp_path / f"t/data/{'1b' * 16}.arrow").symlink_to(tmp_path / "elsewhere/notes.txt")
    (tmp_path / f"t/landing/{'2c' * 16}").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "t", f"data/{'3d' * 16}.arrow", f"landing/{'0a' * 16}/1")
    outside = contents(tmp_path / "elsewhere")
    summary = vacuum(str(tmp_path / "t"), older_than=timedelta(), keep_versions=None, is_dry_run=False)
    assert summary.removed_files == [f"data/{'3d' * 16}.arrow", f"landing/{'0a' * 16}/1"]
    assert set(foreign) < set(summary.foreign_files)
    assert "9 files in its folders are not the table's and were left alone" in summary.text()
    assert contents(tmp_path / "t").items() >= foreign.items()
    assert contents(tmp_path / "elsewhere") == outside
    assert (tmp_path / "t/landing/empty").is_dir()


def test_a_vacuum_of_a_table_whose_data_is_a_link_removes_nothing_behind_it(tmp_path: Path) -> None:
    table = small_table(tmp_path / "t")
    (tmp_path / "t/data").rename(tmp_path / "elsewhere")
    (tmp_path / "t/data").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "elsewhere", f"{'0a' * 16}.arrow")
    before = contents(tmp_path / "elsewhere")
    assert clean(tmp_path / "t") == []
    assert contents(tmp_path / "elsewhere") == before
    assert [rows.num_rows for rows in table.read(table.manifest())] == [1]


def test_a_file_behind_a_link_is_not_deleted(tmp_path: Path) -> None:
    before = write(tmp_path / "elsewhere", f"{'0a' * 16}.arrow")
    (tmp_path / "t").mkdir()
    (tmp_path / "t/data").symlink_to(tmp_path / "elsewhere")
    delete_files(str(tmp_path / "t"), [f"data/{'0a' * 16}.arrow"], TABLE)
    assert contents(tmp_path / "elsewhere") == before


def test_names_that_are_not_ours_cannot_even_be_asked_to_be_deleted(tmp_path: Path) -> None:
    before = write(tmp_path, "data/mine.arrow")
    for path in ("data/mine.arrow", f"../data/{'0a' * 16}.arrow", "versions/00000001.json"):
        with pytest.raises(AssertionError):
            delete_files(str(tmp_path / "data"), [path], TABLE)
    assert contents(tmp_path) == before


def test_a_manifest_that_names_files_outside_its_table_is_refused(tmp_path: Path) -> None:
    table = small_table(tmp_path / "t")
    path = tmp_path / "t/versions/00000001.json"
    content = json.loads(path.read_text())
    for outside in ("../secret.arrow", "/etc/passwd", "data/../../x.arrow", "versions/00000001.json"):
        content["files"][0]["path"] = outside
        path.write_text(json.dumps(content))
        with pytest.raises(StoreError, match="which is no file of a table"):
            table.manifest()


# ------------------------------------------------------------------------------------- damaged manifests


def test_an_empty_newest_manifest_is_damage_and_said_at_once(tmp_path: Path) -> None:
    table = small_table(tmp_path)
    table.commit(lambda newest: newest)
    (tmp_path / "versions/00000002.json").write_bytes(b"")
    for read in (table.latest, table.versions, lambda: table.manifest(1), lambda: table.commit(lambda newest: newest)):
        with pytest.raises(StoreError, match=r"00000002.json: damaged: an empty file.*go back to version 1, remove"):
            read()
    (tmp_path / "versions/00000002.json").unlink()
    assert table.versions() == [1]


def test_a_removed_version_leaves_a_mark_that_is_no_damage(tmp_path: Path) -> None:
    table = small_table(tmp_path)
    table.commit(lambda newest: newest)
    clean(tmp_path, keep=1)
    assert (tmp_path / "versions/00000001.json").read_bytes() == REMOVED
    assert (table.versions(), table.removed_versions()) == ([2], [1])
    with pytest.raises(StoreError, match="version 1 was removed by `pairwright vacuum`"):
        table.manifest(1)


# -------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("path", ["model/weights.bin", "checkpoints/checkpoint-500/x.bin", "notes.txt", "summary.json"])
def test_a_folder_with_anything_foreign_becomes_no_run(tmp_path: Path, path: str) -> None:
    before = write(tmp_path, path)
    with pytest.raises(StoreError, match="holds no run but"):
        claim(tmp_path)
    assert contents(tmp_path) == before


def test_foreign_folders_among_checkpoints_are_named_and_stay(tmp_path: Path) -> None:
    claim(tmp_path)
    for step in (10, 20, 30):
        add(tmp_path, step, {})
    commit(tmp_path, 20, 30)
    foreign = write(
        tmp_path,
        "checkpoints/checkpoint-500/pytorch_model.bin",
        "checkpoints/step-00000010/x.bin",
        f"checkpoints/{name(10)}/notes.txt",
        "checkpoints-best/mine/x.bin",
    )
    os.utime(tmp_path / "checkpoints" / name(10) / "checkpoint.json", (0, 0))
    removed = remove_uncommitted(RunFolder(str(tmp_path)), older_than_seconds=0)
    assert removed.num_checkpoints == 1
    assert contents(tmp_path).items() >= foreign.items()
    assert set(contents(tmp_path / "checkpoints" / name(10))) == {"notes.txt"}


def test_a_list_of_checkpoints_that_names_other_folders_is_written_anew_before_ray_could_delete_them(
    tmp_path: Path,
) -> None:
    claim(tmp_path)
    add(tmp_path, 10, {})
    before = write(tmp_path, "model/weights.bin")
    snapshot = tmp_path / "checkpoints/checkpoint_manager_snapshot.json"
    snapshot.write_text(json.dumps({"checkpoint_results": [{"checkpoint_dir_name": "../model"}]}))
    repair_snapshot(RunFolder(str(tmp_path)))
    named = [kept["checkpoint_dir_name"] for kept in json.loads(snapshot.read_text())["checkpoint_results"]]
    assert named == [name(10)]
    assert contents(tmp_path).items() >= before.items()


def test_a_checkpoint_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    claim(tmp_path)
    before = write(tmp_path / "elsewhere", "state/x.pt", "checkpoint.json")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name(10)).symlink_to(tmp_path / "elsewhere")
    remove_folder(RunFolder(str(tmp_path)), f"checkpoints/{name(10)}")
    assert contents(tmp_path / "elsewhere") == before


def test_a_copy_takes_away_what_a_killed_copy_left_and_nothing_else(tmp_path: Path) -> None:
    claim(tmp_path)
    add(tmp_path, 10, {})
    left = f"checkpoints-best/.0a1b2c3d.partial/{name(5)}"
    write(tmp_path, f"{left}/state/rank-0.pt", f"{left}/files-00000.json")
    foreign = write(tmp_path, "checkpoints-best/.partial/notes.txt", "checkpoints-best/.mine.partial/notes.txt")
    run = RunFolder(str(tmp_path))
    copy_folder(run, f"checkpoints/{name(10)}", f"checkpoints-best/{name(10)}")
    assert not (tmp_path / left).parent.exists()
    assert contents(tmp_path).items() >= foreign.items()
    assert contents(tmp_path / f"checkpoints-best/{name(10)}") == contents(tmp_path / f"checkpoints/{name(10)}")


def exported(root: Path, text: str) -> Path:
    write(root, "config.json", "model.safetensors")
    (root / "model.safetensors").write_text(text)
    files = [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in list_files(root)]
    (root / RULES_FILE).write_text(json.dumps({"files": files}))
    return root


def test_a_runs_model_replaces_the_one_of_an_earlier_start(tmp_path: Path) -> None:
    for text in ("first", "second"):
        store_model(exported(tmp_path / text, text), str(tmp_path / "run"))
        assert contents(tmp_path / "run/model") == contents(tmp_path / text)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["model"]


@pytest.mark.parametrize("path", ["MY_NOTES.txt", "weights/more.bin"])
def test_a_runs_model_never_replaces_foreign_files(tmp_path: Path, path: str) -> None:
    store_model(exported(tmp_path / "new", "new"), str(tmp_path / "run"))
    write(tmp_path / "run/model", path)
    before = contents(tmp_path / "run")
    for attempt in (
        lambda: check_model_folder(str(tmp_path / "run")),
        lambda: store_model(tmp_path / "new", str(tmp_path / "run")),
    ):
        with pytest.raises(StoreError, match=f"holds {path}, which Pairwright did not write, and is not replaced"):
            attempt()
    assert contents(tmp_path / "run") == before


def test_a_runs_model_never_replaces_a_model_of_others(tmp_path: Path) -> None:
    before = write(tmp_path / "run/model", "config.json", "model.safetensors", "more.safetensors")
    with pytest.raises(StoreError, match=r"holds config\.json, model\.safetensors, more\.safetensors, which"):
        check_model_folder(str(tmp_path / "run"))
    assert contents(tmp_path / "run/model") == before


# --------------------------------------------------------------------------------- files and directories


def test_an_output_file_replaces_only_its_own_kind_and_only_if_told_to(tmp_path: Path) -> None:
    path = tmp_path / "page.html"

    def put(content: bytes, place: Path = path, *, overwrite: bool) -> None:
        put_output(str(place), content, lambda found: found.startswith(b"ours"), what="a page", overwrite=overwrite)

    put(b"ours 1", overwrite=False)
    put(b"ours 1", overwrite=False)
    with pytest.raises(StoreError, match=r"page.html: a page is there; replace it with --overwrite, or name another"):
        put(b"ours 2", overwrite=False)
    assert path.read_bytes() == b"ours 1"
    put(b"ours 2", overwrite=True)
    assert path.read_bytes() == b"ours 2"
    path.write_bytes(b"theirs")
    with pytest.raises(StoreError, match=r"page.html: is not a page, and is not replaced"):
        put(b"ours 3", overwrite=True)
    assert path.read_bytes() == b"theirs"
    with pytest.raises(StoreError, match="is a folder; name a file"):
        put(b"ours 3", tmp_path, overwrite=True)


def test_a_new_file_is_there_whole_or_not_at_all_and_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "below" / "rankings.jsonl"
    for _ in range(2):  # the same content once more is no change
        with new_file(str(path)) as file:
            file.write_text("one\n")
    with (
        pytest.raises(StoreError, match="is there with other content, and is not replaced"),
        new_file(str(path)) as file,
    ):
        file.write_text("two\n")
    with pytest.raises(StoreError, match="Is a directory"), new_file(str(tmp_path / "other")):
        tmp_path.write_text("no file")
    assert contents(tmp_path) == {"below/rankings.jsonl": b"one\n"}
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_a_directory_goes_only_to_a_free_place_with_the_usual_permissions(tmp_path: Path) -> None:
    source = exported(tmp_path / "source", "x")
    source.chmod(0o700)
    before = write(tmp_path / "out.partial", "thesis.txt")
    put_directory(source, str(tmp_path / "out"), last=RULES_FILE)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~_umask()
    assert (tmp_path / "out/config.json").stat().st_mode & 0o777 == 0o666 & ~_umask()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    put_directory(source, str(tmp_path / "link"), last=RULES_FILE)
    assert contents(tmp_path / "empty") == contents(source)
    for taken in ("out", "link"):
        with pytest.raises(StoreError, match="something is here already"):
            put_directory(source, str(tmp_path / taken), last=RULES_FILE)
    assert contents(tmp_path / "out.partial") == before
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out.partial", "out", "empty", "link"}


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def test_hidden_names_right_below_a_place_are_nobodys_content(tmp_path: Path) -> None:
    write(tmp_path, ".DS_Store", ".git/config")
    refuse_occupied(str(tmp_path), TABLE, advice=ADVICE)
