"""One command at a time works in a place, and one that died gives it up, however it died."""

import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from pairwright.data.storage.lease import Holder, Lease
from pairwright.data.storage.ownership import RUN
from pairwright.errors import LeaseError

HOLD = """
import sys, time
from pairwright.data.storage.lease import Lease
from pairwright.data.storage.ownership import RUN
with Lease(sys.argv[1], RUN, what="`x`", lost=lambda: print("lost", flush=True)):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def lease(place: Path, lost: threading.Event | None = None) -> Lease:
    told = (lost or threading.Event()).set
    return Lease(str(place), RUN, what="`x`", lost=told, renew_seconds=0.1, lease_seconds=1.0)


def hold(place: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(place), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def write(place: Path, number: int, holder: Holder) -> None:
    (place / "lease").mkdir(exist_ok=True)
    (place / f"lease/{number:08d}.json").write_bytes(msgspec.json.encode(holder))


def elsewhere(count: int = 0) -> Holder:
    """Return a holder of which this machine knows nothing."""
    return Holder(
        process=1, host="elsewhere", process_key="another-machine-1", started_at="2026-11-29 01:02:03", count=count
    )


def test_a_second_command_is_refused_while_the_first_lives_and_told_which_it_is(tmp_path: Path) -> None:
    first = hold(tmp_path, 60)
    try:
        with pytest.raises(LeaseError, match=rf"another command does `x` here, since .* \(process {first.pid} on"):
            lease(tmp_path).__enter__()
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize("reap", [True, False], ids=["reaped", "zombie"])
def test_a_command_that_was_killed_gives_it_up_at_once(tmp_path: Path, reap: bool) -> None:
    first = hold(tmp_path, 60)
    first.kill()
    if reap:
        first.wait()
    else:
        while "Z" not in Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0]:
            pass
    with lease(tmp_path) as held:
        held.check()
    first.wait()


def test_one_command_after_the_other_leaves_one_small_file(tmp_path: Path) -> None:
    for _ in range(3):
        with lease(tmp_path):
            pass
    assert [path.name for path in (tmp_path / "lease").iterdir()] == ["00000003.json"]


def test_a_holder_elsewhere_that_moves_is_left_alone(tmp_path: Path) -> None:
    stop = threading.Event()

    def renew() -> None:
        count = 0
        while not stop.wait(0.1):
            count += 1
            write(tmp_path, 1, elsewhere(count))

    write(tmp_path, 1, elsewhere())
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(LeaseError, match="process 1 on elsewhere"):
            lease(tmp_path).__enter__()
    finally:
        stop.set()
        thread.join()


def test_a_holder_elsewhere_that_does_not_move_is_taken_over(tmp_path: Path) -> None:
    write(tmp_path, 7, elsewhere())
    with lease(tmp_path) as held:
        held.check()
        assert [path.name for path in (tmp_path / "lease").iterdir()] == ["00000008.json"]


def test_a_lease_that_cannot_be_read_is_taken_over_after_a_while(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease/00000001.json").write_text("half a fi")
    with lease(tmp_path) as held:
        held.check()


def test_who_loses_a_lease_is_told_and_refuses_to_go_on(tmp_path: Path) -> None:
    lost = threading.Event()
    with lease(tmp_path, lost) as held:
        write(tmp_path, 2, elsewhere())
        assert lost.wait(20)
        with pytest.raises(LeaseError, match="another command has taken over here"):
            held.check()
    assert msgspec.json.decode((tmp_path / "lease/00000002.json").read_bytes(), type=Holder) == elsewhere()


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), "6"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(6)
    ]
    ended = [process.communicate() for process in processes]
    assert sorted(out.decode().strip() for out, _ in ended) == ["", "", "", "", "", "held"]
    assert sum(b"LeaseError" in err for _, err in ended) == 5
