"""A job's training curve: what a run reports, over the death of its worker, as the page and the command line have it."""
import csv
import io

import pytest

from harness.lab import wait_for

RUN, EPOCHS = "curve", 25


def curve(visitor, job=RUN):
    status, told = visitor.ask("GET", f"api/v1/jobs/{job}/curve")
    assert status == 200, told
    return told


@pytest.mark.root
def test_a_runs_curve_goes_on_after_its_worker_was_killed_and_shows_the_death(lab):
    lab.wait_ready()
    page = lab.log_in()
    assert lab.visitor().ask("GET", f"api/v1/jobs/{RUN}/curve")[0] == 401
    lab.submit(RUN, "python", "train.py", "--name", RUN, "--epochs", str(EPOCHS), "--seconds-per-epoch", "1")
    wait_for("it reports", lambda: lab.job(RUN) and len(curve(page)["time"]) >= 4, 120, every=0.5)
    worker = wait_for("it says where it trains", lambda: lab.worker_of(RUN), 30, every=0.5)
    lab.sigkill(worker)
    is_death = lambda mark: (mark["kind"], mark["service"]) == ("death", worker)
    death = wait_for("its death is on the curve", lambda: [m for m in curve(page)["marks"] if is_death(m)], 60, every=0.5)[0]
    # labd that is killed meanwhile loses nothing of it.
    before = len(curve(page)["time"])
    lab.kill_daemon()
    lab.up()
    page = lab.log_in()
    lab.wait_job(RUN)
    told = wait_for("its end is on the curve", lambda: (now := curve(page))["marks"] and now["marks"][-1]["kind"] == "finished" and now, 60, every=0.5)

    assert told["metrics"] == ["epoch", "loss"] and told["run"] == RUN and len(told["time"]) > before
    assert told["values"]["epoch"][0] == 1 and told["values"]["epoch"][-1] == EPOCHS
    assert set(range(1, EPOCHS + 1)) <= {int(epoch) for epoch in told["values"]["epoch"]}, "no epoch is missing"
    assert all(loss is not None for loss in told["values"]["loss"]) and all(told["checkpoint"])
    assert told["time"] == sorted(told["time"]) and told["attempt"] == sorted(told["attempt"]) and set(told["attempt"]) == {1, 2}
    assert [mark["kind"] for mark in told["marks"]] == ["death", "resumed", "finished"], told["marks"]
    assert "trains again from checkpoint_" in told["marks"][1]["text"]
    [span] = told["lost"]
    assert span["from"] < span["to"] == death["at"] and span["from"] in told["time"]

    job = page.ask("GET", f"api/v1/jobs/{RUN}")[1]
    assert job["curve"] and [fault["service"] for fault in job["faults"]] == [worker]
    assert [group["number"] for group in job["groups"]] == [1, 2] and job["groups"][0]["workers"] == [worker]
    assert job["groups"][0]["why"] and job["attempts"][-1]["outcome"] == "succeeded" and job["checkpoint"]["name"]

    rows = list(csv.DictReader(io.StringIO(lab.labd("jobs", RUN, "--csv").stdout)))
    assert [int(float(row["epoch"])) for row in rows] == told["values"]["epoch"] and rows[0]["checkpoint"].startswith("checkpoint_")
    status, log = page.ask("GET", f"api/v1/jobs/{RUN}/logs?tail=20")
    assert status == 200 and len(log.splitlines()) <= 20 and f"epoch {EPOCHS}/{EPOCHS}" in log, log
