"""A dead, failed or stalled rank is named, and every other rank ends by itself."""

from __future__ import annotations

import os
import signal

import pytest

from autoselect.ranks.judge import EXIT_RANK_LOST, Beat, Judge, Times
from tests.launching import start_ranks


def run_ranks(
    what: str, victim: int, ranks: int, worker: str = "heartbeat_worker.py"
) -> list[tuple[int, str]]:
    """Start every rank without a launcher, which would end them; return exit codes and logs."""
    workers = start_ranks(ranks, worker, what, str(victim))
    results: list[tuple[int, str]] = [(0, "")] * ranks
    for rank in sorted(range(ranks), key=lambda rank: rank == victim):
        if rank == victim and what.removeprefix("apart_") in ("stop", "stall", "apart"):
            workers[rank].signal(signal.SIGCONT)
        results[rank] = workers[rank].wait(240)
    return results


@pytest.mark.parametrize(
    ("what", "victim", "ranks", "words"),
    [
        ("kill", 1, 2, "is dead"),
        ("raise", 1, 2, "failed: ValueError: shard train-000003.tar is broken"),
        ("stall", 0, 2, "is stalled"),
        pytest.param("kill", 0, 3, "rank 0", marks=pytest.mark.slow),
        pytest.param("stop", 2, 3, "is dead", marks=pytest.mark.slow),
        pytest.param("stall", 1, 3, "is stalled", marks=pytest.mark.slow),
        pytest.param("apart", 1, 3, "is stalled", marks=pytest.mark.slow),
        ("apart_kill", 1, 2, "is dead"),
        pytest.param("apart_kill", 0, 2, "is dead", marks=pytest.mark.slow),
        pytest.param("apart_stop", 2, 3, "is dead", marks=pytest.mark.slow),
        pytest.param("apart_stall", 1, 3, "after 'loading the model'", marks=pytest.mark.slow),
        pytest.param(
            "apart_raise",
            1,
            3,
            "failed: ValueError: shard train-000003.tar is broken",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_culprit_is_named_and_nobody_hangs(
    what: str, victim: int, ranks: int, words: str
) -> None:
    results = run_ranks(what, victim, ranks)
    for rank, (code, log) in enumerate(results):
        assert code != 0, (rank, log)
        if rank != victim:
            assert f"rank {victim} " in log and words in log, (rank, log)
            assert code == (1 if what.endswith("raise") else results[rank][0]), (rank, log)
            for other in set(range(ranks)) - {victim}:
                assert f"rank {other} ({os.uname().nodename}) is" not in log
    if what == "stall":
        assert results[victim][0] == EXIT_RANK_LOST
        assert "update 3: begun" in results[(victim + 1) % ranks][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "words"),
    [("kill", "is dead"), ("stall", "is stalled")],
)
def test_the_culprit_is_named_before_the_first_step(what: str, words: str) -> None:
    (code, log), (victims_code, _) = run_ranks(what, 1, 2, "start_worker.py")
    assert code == EXIT_RANK_LOST, log
    assert f"rank 1 ({os.uname().nodename}) {words}" in log
    assert victims_code != 0
    assert what != "stall" or "after 'loading the model'" in log


@pytest.mark.slow
def test_a_rank_that_loads_slowly_is_waited_for() -> None:
    """It may take longer than a stalled one; here every rank then ends by the same error."""
    ended = run_ranks("late", 1, 2, "start_worker.py")
    for code, log in ended:
        assert code == 2 and "stalled" not in log, log
    said = ["all ranks came to the shards" in log for _, log in ended]
    assert said == [True, False], "one rank says what all have"


@pytest.mark.parametrize(("what", "rank"), [("nothing", 1), ("apart_late", 1), ("linger", 0)])
def test_a_good_run_ends_with_zero(what: str, rank: int) -> None:
    for code, log in run_ranks(what, rank, 2):
        assert code == 0, log
        assert "dead" not in log and "stalled" not in log


TIMES = Times(beat=1, dead=10, stalled=30, apart=100, leave=1)


def test_judge_waits_for_its_patience_and_then_names_the_rank() -> None:
    judge = Judge(TIMES, 2)
    for now in range(0, 100):
        beats = [Beat("a", count=now, progress=now), Beat("b", count=min(now, 50), progress=now)]
        verdict = judge.look(beats, float(now))
        assert (verdict is not None) == (now > 60)
        if verdict is not None:
            assert verdict.text.startswith("rank 1 (b) is dead")
            break


def test_judge_takes_no_pause_of_its_own_for_the_death_of_others() -> None:
    """After a pause of all ranks it may look before they beat again; then it waits as before."""
    judge = Judge(TIMES, 2)
    for now in range(0, 5):
        beats = [Beat("a", count=now, progress=3), Beat("b", count=now, progress=2)]
        assert judge.look(beats, float(now)) is None
    for now in range(3600, 3680):
        verdict = judge.look([Beat("a", count=now, progress=3), beats[1]], float(now))
        if verdict is not None:
            break
    assert verdict is not None and "rank 1 (b) is dead: no sign of life for 1" in verdict.text
    assert TIMES.dead / 2 <= now - 3600 <= TIMES.dead


def test_judge_takes_equal_slowness_for_work() -> None:
    judge = Judge(TIMES, 2)
    for now in range(0, 500):
        beats = [Beat("a", count=now, progress=7), Beat("b", count=now, progress=7)]
        assert judge.look(beats, float(now)) is None


def test_judge_counts_the_time_at_one_place_only() -> None:
    """A rank that is always one place behind but moves is slow, not stalled."""
    judge = Judge(TIMES, 2)
    for now in range(0, 500):
        place = now // 20
        beats = [
            Beat("a", count=now, progress=place + 1),
            Beat("b", count=now, progress=place, doing="reading"),
        ]
        assert judge.look(beats, float(now)) is None
    for now in range(500, 600):
        beats = [
            Beat("a", count=now, progress=26),
            Beat("b", count=now, progress=25, doing="reading"),
        ]
        verdict = judge.look(beats, float(now))
        if verdict is not None:
            break
    assert verdict is not None and not verdict.failed
    assert "rank 1 (b) is stalled" in verdict.text and "reading" in verdict.text


def test_judge_waits_longer_where_no_collective_does() -> None:
    judge = Judge(TIMES, 3)
    for now in range(0, 200):
        beats = [
            Beat("a", count=now, progress=3, waiting=True),
            Beat("b", count=now, progress=2, doing="loading the model"),
            Beat("c", count=now, progress=3, waiting=True),
        ]
        verdict = judge.look(beats, float(now))
        assert (verdict is not None) == (now > TIMES.apart)
        if verdict is not None:
            assert not verdict.failed
            assert "rank 1 (b) is stalled" in verdict.text and "loading" in verdict.text
            break


@pytest.mark.parametrize("place", [3, 2], ids=["arrived", "its beat is underway"])
def test_judge_counts_the_wait_anew_where_a_collective_waits(place: int) -> None:
    """A rank that came late to the meeting has the full waiting time afterwards.

    The others may go on before the beat arrives in which it says that it has come.
    """
    judge = Judge(TIMES, 2)
    for now in range(0, 90):
        beats = [Beat("a", count=now, progress=3, waiting=True), Beat("b", count=now, progress=2)]
        assert judge.look(beats, float(now)) is None
    for now in range(90, 200):
        beats = [Beat("a", count=now, progress=4), Beat("b", count=now, progress=place)]
        verdict = judge.look(beats, float(now))
        assert (verdict is not None) == (now > 90 + TIMES.stalled)
        if verdict is not None:
            break


def test_judge_lets_finished_ranks_go() -> None:
    judge = Judge(TIMES, 2)
    for now in range(0, 100):
        beats = [Beat("a", count=now, progress=9), Beat("b", count=3, progress=5, done=True)]
        assert judge.look(beats, float(now)) is None
