"""What the documentation says is there: files, headings, targets, commands, settings, variables, metrics. No engine needed."""
import functools
import pathlib
import re
import tomllib

import pytest

from harness.lab import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
CONFIG = [*ROOT.glob("src/config/**/*.rs")]
ARGS = (ROOT / "src/cli/args.rs").read_text()
# What a person may read or write that looks like a setting and is a file.
NO_SETTINGS = {"journal.db"}


def text(path):
    return (ROOT / path).read_text()


def code(page):
    """Commands and names: fenced and indented blocks, and what stands in backticks."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", page, re.M | re.S)
    rest = re.sub(r"^```\w*\n.*?^```", "", page, flags=re.M | re.S)
    indented = re.findall(r"^ {4,}(?![-*] )(\S.*)$", rest, re.M)
    return [*fenced, *indented, *re.findall(r"`([^`\n]+)`", rest)]


def slug(heading):
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def headings(path):
    return {slug(h) for h in re.findall(r"^#+ (.*)$", path.read_text(), re.M)}


def kebab(name):
    return re.sub(r"(?<!^)([A-Z])", r"-\1", name).lower()


# ---- what there is ----


@functools.cache
def structs():
    """Fields of every struct of the configuration, by the names that labd.toml has for them."""
    found = {}
    for path in CONFIG:
        struct = r"((?:^#\[[^\n]*\n)*)^pub struct (\w+) \{\n(.*?)^\}"
        for attributes, name, body in re.findall(struct, path.read_text(), re.M | re.S):
            if "Deserialize" in attributes:
                fields = re.findall(r"^    pub (\w+): (.+),$", body, re.M)
                found[name] = {(f.replace("_", "-") if "kebab-case" in attributes else f): type for f, type in fields}
    return found


def settings(name="Config", prefix=""):
    """Every setting by its whole name, such as `services.ray-head.memory`."""
    all, known = set(), structs()
    for field, type in known[name].items():
        inner = re.sub(r"^(Option|Vec)<(.*)>$", r"\2", type)
        all |= settings(inner, f"{prefix}{field}.") if inner in known else {prefix + field}
    return all


def documented():
    """Settings of the tables of docs/configure.md, with each service in place of NAME."""
    services = structs()["Services"]
    all = set()
    for section, body in re.findall(r"^## `\[+([\w.-]+)\]+`\n(.*?)(?=^## |\Z)", text("docs/configure.md"), re.M | re.S):
        for key in re.findall(r"^\| `(\w+)` \|", body, re.M):
            all |= {f"{section.replace('NAME', s)}.{key}" for s in (services if "NAME" in section else [""])}
    return all


def variants(enum):
    """Subcommands of one of clap's enums: word -> type of its arguments."""
    body = re.search(rf"enum {enum} \{{\n(.*?)^\}}", ARGS, re.M | re.S)[1]
    return {kebab(name): type for name, type in re.findall(r"^    ([A-Z]\w*)(?:\((\w+)\))?(?: \{)?,?$", body, re.M)}


# ---- what is said of it ----


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), target
        assert not anchor or anchor in headings(path), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_paths_of_the_repository_are_there(page):
    folders = "|".join(p.name for p in ROOT.iterdir() if p.is_dir() and p.name not in ("target", "dist"))
    for piece in re.findall(rf"(?<![\w/.])((?:{folders})/[\w./*-]+)", " ".join(re.findall(r"`([^`\n]+)`", page.read_text()))):
        path = piece.replace("NAME", "*").rstrip(".")
        assert list(ROOT.glob(path)), piece


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_targets_of_make_are_there(page):
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), re.M))
    for piece in code(page.read_text()):
        assert set(re.findall(r"(?:^|\s)make ([a-z]+)", piece, re.M)) <= targets, piece


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_their_options_are_there(page):
    long = re.findall(r"#\[arg\([^\]]*\blong\b(?! =)[^\]]*\)\]\s*(?:pub(?:\(super\))? )?(\w+)", ARGS)
    flags = {name.replace("_", "-") for name in long} | set(re.findall(r'long = "([\w-]+)"', ARGS)) | {"help", "version"}
    commands = variants("Command")
    called = r"(?:^|sudo |\./|&& |\()labd((?: [a-z][a-z-]*)+)?((?: --?[\w-]+(?:[= ]\S+)?)*)"
    for piece in code(page.read_text()):
        for words, options in re.findall(called, piece, re.M):
            words = words.split()
            if words:
                assert words[0] in commands, piece
                # Of `labd gpu list` the second word, too; what follows `labd jobs` may be an id.
                inner = commands[words[0]]
                if words[1:] and f"enum {inner} {{" in ARGS:
                    assert words[1] in variants(inner), piece
            assert set(re.findall(r"--([\w-]+)", options)) <= flags, piece


def test_every_setting_has_a_row_and_every_row_a_setting():
    assert settings() == documented()


def test_the_commented_file_has_every_setting():
    lines = [re.sub(r"^#: ?", "", line) for line in text("systemd/labd.toml").splitlines()]

    def flat(table, prefix=""):
        for key, value in table.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                for entry in value:
                    yield from flat(entry, f"{prefix}{key}.")
            elif isinstance(value, dict) and prefix + key != "ray.env":
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key

    there = set(flat(tomllib.loads("\n".join(lines))))
    assert there <= settings()
    # Of services, one line shows what all have.
    of_services = {s.split(".")[-1] for s in settings() if s.startswith("services.")}
    assert {s.split(".")[-1] for s in there if s.startswith("services.")} == of_services
    assert {s for s in settings() if not s.startswith("services.")} <= there


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_settings_that_are_named_are_there(page):
    known, sections = settings(), structs()["Config"]
    groups = {s.rsplit(".", 1)[0] for s in known} | set(sections)
    for piece in code(page.read_text()):
        named = []
        if match := re.fullmatch(r"\[\[?([\w.-]+)\]?\](?: ([a-z_]+)( = .*)?)?", piece):
            named = [match[1] + ("." + match[2] if match[2] else "")]
        elif match := re.fullmatch(r"([a-z0-9_-]+(?:\.[a-zA-Z0-9_-]+)+)(?: = .*)?", piece):
            named = [match[1]] if match[1].split(".")[0] in sections and match[1] not in NO_SETTINGS else []
        elif "\n" in piece and piece.startswith("["):
            named = [f"{s}.{k}" for s, t in tomllib.loads(piece).items() for k in t]
        for name in named:
            if "NAME" in name:
                name = name.replace("NAME", "minio")
            assert name in known | groups, piece


def test_every_variable_that_is_read_is_said_and_every_one_that_is_said_is_read():
    where = ("src/**/*.rs", "images/**/*", "scripts/*", "tests/**/*.py", "tests/*.rs", "bench/*.py", "Makefile", ".ci/run")
    files = [p for pattern in where for p in ROOT.glob(pattern) if p.is_file() and p.name != pathlib.Path(__file__).name]
    name = r"LABD_[A-Z][A-Z_]*[A-Z]"
    used = set(re.findall(rf"\b({name})\b", "\n".join(p.read_text(errors="replace") for p in files)))
    # A name of a script's own.
    used -= {"LABD_TARGET"}
    said = set(re.findall(rf"`({name})`", text("docs/environment.md")))
    assert said <= used
    assert {n for n in used - said if not n.startswith("LABD_TEST_")} == set(), "not in docs/environment.md"


def test_every_variable_that_ray_env_may_not_set_is_said():
    own = re.findall(r'^    \("(\w+)", "', text("src/config/environment.rs"), re.M)
    said = set(re.findall(r"`(\w+)`", text("docs/environment.md")))
    assert len(own) > 40 and set(own) <= said, set(own) - said


def test_every_metric_is_said():
    there = set(re.findall(r'(?:family|single)\("(labd_\w+)"', text("src/http/metrics.rs")))
    there |= set(re.findall(r'^    \("(labd_gpu_\w+)", "', text("src/http/metrics.rs"), re.M))
    assert there == set(re.findall(r"`(labd_\w+)`", text("docs/use.md")))


def test_exit_codes_states_and_numbers_are_those_of_the_code():
    use = text("docs/use.md")
    codes = re.findall(r"^    \w+ = (\d+),", text("src/cli/exit.rs"), re.M)
    assert re.findall(r"^\| (\d+) \|", use, re.M) == ["0", *codes]
    words = text("src/snapshot.rs").split("impl ServiceState")[1].split("pub const ALL")[0]
    states = re.findall(r'Self::\w+ => "([\w-]+)"', words)
    assert re.findall(r"^\| `([\w-]+)` \| [^|]*\|$", use.split("## States")[1].split("##")[0], re.M) == states
    rows = str(sum(len(re.findall(r"^    Fault \{", file.read_text(), re.M)) for file in (ROOT / "src/gpus/faults").glob("*.rs")))
    assert f"# {rows} faults" in text("docs/gpus.md")


def test_the_readme_is_one_screen():
    assert len(text("README.md").splitlines()) <= 80
