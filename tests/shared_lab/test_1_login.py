"""Who may use the page: nobody, a viewer, an admin, and whoever has a link."""
import json
import re

import pytest

from harness.lab import wait_for

PASSWORD = "a long enough password"
READ = ["api/v1/snapshot", "api/v1/stream", "api/v1/events", "api/v1/events/stream", "api/v1/plan", "metrics", "api/v1/me",
        "api/v1/gpus/history", "api/v1/usage", "api/v1/usage.csv", "api/v1/notify", "api/v1/doctor"]
WRITTEN = ["api/v1/services/jupyter/logs?tail=1", "api/v1/jobs/none", "api/v1/jobs/none/curve", "api/v1/jobs/none/curve.csv", "api/v1/jobs/none/logs"]
ACTS = ["notify/test", "jupyter/ticket", "services/jupyter/restart", "jobs/none/stop", "gpus/SIM-0/release", "gpus/SIM-0/drill/xid-79", "reload", "apply"]
ONLY_HERE = [("POST", "down"), ("GET", "credentials"), ("POST", "links"), ("GET", "users"), ("POST", "users"), ("DELETE", "users/anna"),
             ("POST", "users/anna/password"), ("POST", "users/anna/role"), ("GET", "sessions"), ("DELETE", "sessions/00000000")]


def logged_in(lab, name):
    visitor = lab.visitor()
    status, told = visitor.ask("POST", "api/v1/login", {"name": name, "password": PASSWORD})
    assert (status, told["name"]) == (200, name)
    return visitor


@pytest.fixture(scope="module")
def anna(lab):
    assert "anna can log in as viewer" in lab.add_user("anna", "viewer", PASSWORD).stdout
    return logged_in(lab, "anna")


@pytest.fixture(scope="module")
def bert(lab):
    lab.add_user("bert", "admin", PASSWORD)
    return logged_in(lab, "bert")


def test_without_a_login_there_is_the_login_page_and_nothing_else(lab):
    nobody = lab.visitor()
    page = nobody.ask("GET", "")[1]
    assert "/js/main.js" in page and lab.name not in page and nobody.ask("GET", "healthz")[0] == 200
    for path in READ + WRITTEN:
        status, told = nobody.ask("GET", path)
        assert status == 401 and "labd open" in told["error"], path
    for path in ACTS:
        assert nobody.ask("POST", f"api/v1/{path}")[0] == 401, path
    for method, path in ONLY_HERE:
        status, told = nobody.ask(method, f"api/v1/{path}", {} if method == "POST" else None)
        assert status == 404 and "Unix socket" in told["error"], path


def test_a_viewer_sees_everything_and_changes_nothing(lab, anna):
    assert anna.ask("GET", "api/v1/snapshot")[1]["labd"]["lab"] == lab.name
    assert anna.ask("GET", WRITTEN[0])[0] == 200 and "labd_" in anna.ask("GET", "metrics")[1]
    for path in ACTS:
        status, told = anna.ask("POST", f"api/v1/{path}")
        assert status == 403 and "anna may look" in told["error"], path
    for method, path in ONLY_HERE:
        assert anna.ask(method, f"api/v1/{path}", {} if method == "POST" else None)[0] == 404, path


def test_an_admin_commands_by_labds_own_page_alone_and_the_journal_says_who(lab, bert):
    lab.wait_ready("jupyter")
    before = lab.ids()["jupyter"]
    path = "api/v1/services/jupyter/restart"
    for headers in ({"X_Labd_Csrf": None}, {"X_Labd_Csrf": "0" * 64}, {"Origin": None}, {"Origin": "http://localhost:1"}, {"Origin": "null"}):
        status, told = bert.ask("POST", path, **headers)
        assert status == 403, (headers, told)
    assert bert.ask("POST", path, Sec_Fetch_Site="same-site")[0] == 403
    assert lab.ids()["jupyter"] == before
    assert bert.ask("POST", path) == (200, {"message": "jupyter: is being restarted"})
    wait_for("another run", lambda: lab.ids().get("jupyter", before) != before, 60)
    lab.wait_ready("jupyter")
    assert any(e["kind"] == "person" and e["reason"] == "bert (on the page): restart" for e in lab.events("jupyter"))


def test_a_link_logs_in_once(lab):
    url = lab.labd("open", "--print").stdout.strip()
    page, token = url.split("#link=")
    assert page == lab.link("status page") and re.fullmatch(r"[\w-]{40,}", token)
    visitor, other = lab.visitor(), lab.visitor()
    status, told = visitor.ask("POST", "api/v1/login/link", {"token": token})
    assert (status, told["role"]) == (200, "admin")
    assert other.ask("POST", "api/v1/login/link", {"token": token})[0] == 401
    assert other.ask("GET", "api/v1/me")[0] == 401 and visitor.ask("GET", "api/v1/me")[0] == 200
    # In a place of its own in the address, which nobody is sent, and in no log.
    assert token not in (lab.dir / "labd.log").read_text()


def test_a_session_outlives_labd_and_ends_with_its_logout(lab, anna):
    lab.kill_daemon()
    lab.up()
    assert anna.ask("GET", "api/v1/me")[1]["name"] == "anna"
    other = logged_in(lab, "anna")
    stolen = other.cookie
    assert other.ask("POST", "api/v1/logout")[0] == 200 and other.cookie is None
    assert anna.ask("GET", "api/v1/me", Cookie=stolen)[0] == 401
    assert anna.ask("GET", "api/v1/me", Cookie=f"{anna.cookie}; {anna.cookie}")[0] == 400
    assert anna.ask("GET", "api/v1/me")[0] == 200


def test_who_has_another_password_or_is_removed_is_logged_out(lab):
    lab.add_user("carl", "admin", PASSWORD)
    carl = logged_in(lab, "carl")
    assert "carl" in lab.labd("user", "sessions").stdout
    lab.labd("user", "role", "carl", "viewer")
    assert carl.ask("GET", "api/v1/me")[0] == 401, "a lower role ends what the higher one had"
    carl = logged_in(lab, "carl")
    assert lab.labd("user", "list", "--json").stdout.count('"carl"') == 1
    lab.labd("user", "remove", "carl")
    assert carl.ask("GET", "api/v1/me")[0] == 401
    status, told = lab.visitor().ask("POST", "api/v1/login", {"name": "carl", "password": PASSWORD})
    assert status == 401 and PASSWORD not in str(told)


def test_passwords_are_not_guessed_and_the_person_still_gets_in(lab, anna):
    # From one address, which is everybody's on this machine.
    tries = [lab.visitor().ask("POST", "api/v1/login", {"name": "anna", "password": f"wrong {n}"})[0] for n in range(12)]
    assert tries[0] == 401 and 429 in tries
    assert anna.ask("GET", "api/v1/me")[0] == 200, "who is in stays in"
    assert lab.log_in().ask("GET", "api/v1/me")[0] == 200, "and there is the link"
    lab.add_user("fred", "viewer", PASSWORD)
    assert logged_in(lab, "fred").ask("GET", "api/v1/me")[0] == 200, "nor is another shut out"


def test_what_is_wrong_with_a_user_is_said_in_a_line(lab):
    for name, password, says in [("-x", PASSWORD, "name"), ("dora", "tiny", "10 characters"), ("dora", "", "no password")]:
        done = lab.add_user(name, "viewer", password, check=False)
        assert done.returncode != 0 and says in done.stderr and (not password or password not in done.stderr), done.stderr
        assert done.stderr.count("\n") == 1
    lab.add_user("dora", "viewer", PASSWORD)
    again = lab.labd("user", "role", "nobody-here", "admin", check=False)
    assert again.returncode != 0 and "labd user list" in again.stderr


# ---- the door to services' own pages ----


def test_one_login_opens_the_services_pages_without_their_secrets(lab, bert):
    lab.wait_ready()
    page = bert.ask("GET", "ray/", Accept="text/html", User_Agent="Mozilla/5.0")[1]
    assert "<title>Ray Dashboard</title>" in page, page[:500]
    assert bert.ask("GET", "ray/api/version")[1]["ray_version"]
    assert bert.ask("GET", "ray/api/authentication_mode")[1] == {"authentication_mode": "disabled"}
    status, told = bert.ask("GET", "prometheus/api/v1/query?query=up")
    assert (status, told["status"]) == (200, "success") and told["data"]["result"]
    assert "<base" in bert.ask("GET", "minio/", Accept="text/html")[1]
    assert bert.ask("GET", "minio/api/v1/buckets")[0] == 200
    secrets = [c["secret"] for c in json.loads(lab.labd("credentials", "--json").stdout)]
    for path in ("ray/api/version", "prometheus/api/v1/status/config", "prometheus/api/v1/status/flags", "minio/api/v1/session"):
        told = str(bert.ask("GET", path)[1])
        assert not [secret for secret in secrets if secret in told], path


def test_ray_hides_peoples_variables_whoever_asks_through_the_door(lab, anna):
    env = json.dumps({"env_vars": {"WANDB_KEY": "hunter2-of-a-student"}})
    lab.exec("jupyter", "ray", "job", "submit", "--submission-id", "with-a-key", "--runtime-env-json", env, "--", "true")
    for agent in ("curl/8", "Mozilla/5.0"):
        told = str(anna.ask("GET", "ray/api/jobs/", User_Agent=agent, Sec_Fetch_Site=None))
        assert "with-a-key" in told and "hunter2-of-a-student" not in told, agent
    for path in ("ray/worker/traceback?pid=1", "ray/task/cpu_profile", "ray/memory_profile?pid=1"):
        assert anna.ask("GET", path)[0] == 403, path
    assert anna.ask("GET", "ray/api/version", Sec_Fetch_Site="same-site", Sec_Fetch_Mode="no-cors")[0] == 403


def test_the_door_is_shut_to_whoever_is_not_known_and_viewers_look_only(lab, anna, bert):
    nobody = lab.visitor()
    for path in ("ray/", "ray/api/version", "prometheus/graph", "minio/", "grafana/"):
        assert nobody.ask("GET", path)[0] == 401, path
        assert nobody.ask("POST", path, {})[0] == 401, path
    assert anna.ask("GET", "ray/api/version")[0] == 200 and anna.ask("GET", "prometheus/api/v1/query?query=up")[0] == 200
    assert anna.ask("GET", "minio/")[0] == 403 and anna.ask("POST", "prometheus/api/v1/query", {})[0] == 403
    submission = {"entrypoint": "python -c 1", "submission_id": "past-the-ledger"}
    for visitor in (anna, bert):
        assert visitor.ask("POST", "ray/api/jobs/", submission)[0] == 403
        assert visitor.ask("POST", "ray/api/authenticate", {})[0] == 403
        assert visitor.ask("GET", "prometheus/debug/pprof/heap")[0] == 403
        for path in ("ray/..%2fminio/", "ray/%2e%2e/minio/", "ray//x", "prometheus/%5cx"):
            assert visitor.ask("GET", path)[0] == 400, path
    assert bert.ask("POST", "prometheus/api/v1/query", {}, Origin="http://localhost:1")[0] == 403
