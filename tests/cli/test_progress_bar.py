"""Progress as it reads in a log, where no terminal is."""

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
