"""Progress as it reads in a log, where no terminal is."""

import re
import time

import pytest

from pairwright import progress_bar


def test_long_work_leaves_lines_that_say_how_much_of_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar.progress_bar("sources hashed", total=1500, line_seconds=0.05) as advance:
        advance(1200)
        time.sleep(0.4)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, "a count that stands still is said once, until a minute has gone"
    assert lines[0].endswith(" 1,200 of 1,500 sources hashed")


def test_short_work_leaves_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar.progress_bar("sources hashed", total=None) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_what_goes_wrong_inside_comes_out_and_ends_the_count() -> None:
    with pytest.raises(KeyError), progress_bar.progress_bar("things done", total=2):
        raise KeyError


def test_one_large_thing_moves_by_its_records_and_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar.progress_bar("splits of sources read", total=1, line_seconds=0.2):
        for _ in range(3):
            progress_bar.note_progress(1000, 500_000)
            time.sleep(0.25)
    lines = captured_lines(capsys)
    assert 2 <= len(lines) <= 4
    expected = r"[0-9:]{8} 0 of 1 splits of sources read: 1,000 records, 0\.5 MB \([0-9,]+ records/s, [0-9.]+ MB/s\)"
    assert re.fullmatch(expected, lines[0])
    rate = re.search(r"([0-9,]+) records/s", lines[0])
    assert rate is not None
    assert 2000 < int(rate[1].replace(",", "")) <= 5000


def captured_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_nothing_is_counted_after_the_end() -> None:
    seen: list[tuple[int, int]] = []
    with progress_bar.listening(lambda records, size: seen.append((records, size))):
        progress_bar.note_progress(1, 2)
    progress_bar.note_progress(3, 4)
    assert seen == [(1, 2)]
