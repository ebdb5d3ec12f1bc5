"""What the tests' own labs must keep to, so that one test's leftovers are never in another's way."""
import collections
import re

from harness.lab import ROOT


def test_each_lab_has_a_subnet_of_its_own():
    """The engine refuses a network that overlaps another: two tests with one subnet fail when the first was killed."""
    users = collections.defaultdict(set)
    for path in [*ROOT.glob("tests/**/*.py"), *ROOT.glob("tests/*.rs"), *ROOT.glob("bench/*.py")]:
        if "unit_scripts" in path.parts:
            continue
        for third in re.findall(r"\b198(?:\.|, )18(?:\.|, )(\d+)", path.read_text()):
            users[int(third)].add(str(path.relative_to(ROOT)))
    assert len(users) > 15, users
    assert not {f"198.18.{third}": sorted(paths) for third, paths in users.items() if len(paths) > 1}
