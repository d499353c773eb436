"""What a run tells of its losses of workers."""

from pairwright.runs.recovery import Recoveries


def test_a_loss_says_why_where_the_run_went_on_what_was_redone_and_how_long_it_took() -> None:
    recoveries = Recoveries()
    assert recoveries.stepped(5.0) is None
    recoveries.hangs("rank 1 is silent")
    recoveries.lost(["rank 0: died"], last_step=11, now=10.0)
    recoveries.started(27.0)
    recoveries.resumed(8, now=30.0)
    said = recoveries.stepped(32.5)
    assert said == "going on 22 s after the loss (workers 17 s, checkpoint 3 s), 3 steps taken again"
    assert recoveries.stepped(33.0) is None
    (found,) = recoveries.all
    assert found.causes == ["rank 1 is silent", "rank 0: died"]
    assert (found.restored_step, found.steps_redone, found.seconds) == (8, 3, 22.5)
    assert (found.workers_seconds, found.load_seconds) == (17.0, 3.0)


def test_a_loss_before_the_first_checkpoint_begins_anew_and_one_in_a_restart_is_kept_without_a_time() -> None:
    recoveries = Recoveries()
    recoveries.lost(["rank 0: died"], last_step=5, now=10.0)
    recoveries.lost(["rank 1: died"], last_step=5, now=20.0)
    recoveries.stepped(30.0)
    recoveries.lost(["rank 0: died"], last_step=9, now=40.0)
    first, second, last = recoveries.all
    assert (first.restored_step, first.steps_redone, first.seconds) == (0, 5, None)
    assert (second.causes, second.steps_redone, second.seconds) == (["rank 1: died"], 5, 10.0)
    assert last.seconds is None
