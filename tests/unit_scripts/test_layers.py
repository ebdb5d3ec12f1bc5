"""The layers of ARCHITECTURE.md: no module of labd uses one that stands above it."""
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SRC = ROOT / "src"
# They put the crate together, and are no part of it.
APART = {"lib", "main", "build", "golden"}
NOISE = re.compile(r'r#".*?"#|"(?:[^"\\]|\\.)*"|//[^\n]*|\'(?:[^\'\\\n]|\\[^\n])\'', re.S)


def layers(text):
    """Each module's number, from the list below `## Layers`."""
    rows = re.findall(r"^\d+\. `([\w ]+)`", text.split("\n## Layers\n")[1].split("\n## ")[0], re.M)
    return {module: number for number, row in enumerate(rows) for module in row.split()}


def leaves(tree, above=""):
    """Paths of a `use` tree such as `crate::{a, b::{c, d}}`."""
    head, brace, rest = tree.partition("{")
    if not brace:
        return [above + part.strip() for part in tree.split(",") if part.strip()]
    *before, last = head.split(",")
    found, depth, end = [above + part.strip() for part in before if part.strip()], 1, 0
    while depth and end < len(rest):
        depth += {"{": 1, "}": -1}.get(rest[end], 0)
        end += 1
    return found + leaves(rest[: end - 1], above + last.strip()) + leaves(rest[end:].lstrip(", "), above)


def uses(code, depth):
    """The crate's top modules that a file uses, which lies that many folders below it. Tests may use what they like."""
    code = NOISE.sub('""', re.sub(r"#\[cfg\(test\)\]\n(?:pub(?:\([\w:]+\))? )?mod \w+ \{.*", "", code, flags=re.S))
    trees = re.findall(r"\buse ([^;]+);", code)
    paths = [path for tree in trees for path in leaves(re.sub(r"\s+as\s+\w+|\s+", "", tree))]
    paths += re.findall(r"\bcrate::\w+", re.sub(r"\buse [^;]+;", "", code))
    root = "super::" * depth
    return {re.sub(rf"^(?:crate::|{root})", "", path).split("::")[0] for path in paths if path.startswith(("crate::", root))}


def modules():
    for file in sorted(SRC.rglob("*.rs")):
        parts = file.relative_to(SRC).with_suffix("").parts
        test = {"tests", "testing", "live", "sim"} & set(parts)
        if parts[0] not in APART and not test:
            yield parts[0], file, len(parts) - (parts[-1] == "mod")


def test_no_module_uses_one_above_it():
    rank = layers((ROOT / "ARCHITECTURE.md").read_text())
    there = {module for module, *_ in modules()}
    assert there == set(rank), "every module stands in one layer, and no other does"
    upward = [
        f"{file.relative_to(ROOT)} uses {used}"
        for module, file, depth in modules()
        for used in sorted(uses(file.read_text(), depth) & there)
        if rank[used] > rank[module]
    ]
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize(
    ("code", "depth", "found"),
    [
        ("use crate::{\n    plan::{self, sizes},\n    time,\n};", 2, {"plan", "time"}),
        ("use crate::cli as _;\nuse crate::{db as d, text};", 1, {"cli", "db", "text"}),
        ("use super::plan::Plan;\nuse super::super::nothing;", 1, {"plan", "super"}),
        ("use super::super::http::State;\nuse super::decide;", 2, {"http"}),
        ('let x = crate::cli::run("crate::db"); // crate::text', 1, {"cli"}),
        ("fn a() {}\n#[cfg(test)]\nmod tests {\n    use crate::cli;\n}\n", 1, set()),
    ],
)
def test_what_a_file_uses_is_seen(code, depth, found):
    assert uses(code, depth) == found
