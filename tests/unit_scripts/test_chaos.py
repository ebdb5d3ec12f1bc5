"""What `make chaos` throws for a seed, and how it judges the run at the end. No engine needed."""
from harness import chaos


def test_a_seed_gives_the_same_faults_and_every_kind_first():
    assert chaos.plan(7, 20) == chaos.plan(7, 20) != chaos.plan(8, 20)
    assert {fault.kind for fault in chaos.plan(7, len(chaos.WEIGHTS))} == set(chaos.WEIGHTS)


def test_what_is_wrong_with_a_runs_steps_is_said():
    start = {"at": 0, "after_step": 0, "from": None}
    later = {"at": 9, "after_step": 2, "from": "checkpoint_2"}
    assert chaos.wrong_state({"steps": [1, 2, 3], "starts": [start, later]}, 3) == []
    assert chaos.wrong_state({"steps": [1, 2, 2, 4], "starts": [start, later, start]}, 4) == [
        "steps done more than once: [2]", "steps that are missing: [3]", "a start went back from checkpoint_2 to ",
    ]
