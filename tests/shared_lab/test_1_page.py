"""The page in a real browser, as people use it."""
import contextlib
import json

import pytest

from harness.browser import SHOTS, accessibility, chromium
from harness.lab import wait_for

PASSWORD = "a long enough password"
VIEWS = ("Overview", "Jobs", "GPUs", "Services", "Timeline", "Metrics", "Usage", "Doctor")
# What a browser says of a tab that somebody covers with another, or looks at again: a headless one takes all for looked at.
HIDDEN = """(is) => {
  Object.defineProperty(document, 'hidden', { value: is, configurable: true });
  document.dispatchEvent(new Event('visibilitychange'));
}"""
READY = "#services tbody tr:has(th:text-is('{name}')) .state:text-is('{state}')"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser, lab):
    """Opens the page as somebody new; what the page complains of in its console fails the test."""
    contexts, said = [], []

    def visit(url, **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        # An answer that refuses something is part of what is tested.
        page.on("console", lambda line: said.append(line.text) if line.type == "error" and "Failed to load resource" not in line.text else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not said, said


@pytest.fixture
def admin(lab, visit):
    page = visit(lab.labd("open", "--print").stdout.strip())
    try:
        page.wait_for_selector("#gpu-cards li")
    except Exception as error:
        raise AssertionError(f"it shows {page.inner_text('body')!r}") from error
    return page


def go(page, view):
    """What somebody does who presses a view's name in the menu."""
    page.click(f"nav a:text-is('{view}')")
    page.wait_for_selector(f"nav a[aria-current]:text-is('{view}')")


def state(page, name, state, seconds=60):
    page.wait_for_selector(READY.format(name=name, state=state), timeout=seconds * 1000)


def test_a_link_logs_in_and_leaves_no_trace_in_the_address(lab, admin):
    assert admin.url == lab.link("status page")
    assert admin.inner_text("#who-name").endswith("(admin)")
    assert "services ready" in admin.inner_text("#verdict")
    admin.screenshot(path=SHOTS / "light.png", full_page=True)
    go(admin, "Services")
    state(admin, "ray-head", "ready")


def test_a_worker_that_is_killed_is_seen_to_die_and_come_back_without_reloading(lab, admin):
    lab.wait_ready()
    go(admin, "Services")
    state(admin, "ray-worker-0", "ready")
    restarts = "#services tbody tr:has(th:text-is('ray-worker-0')) td[data-label='restarts']"
    before = admin.inner_text(restarts)
    lab.sigkill("ray-worker-0")
    admin.wait_for_function("([cell, before]) => document.querySelector(cell).innerText !== before",
                            arg=[f"#services tbody tr:nth-child({1 + list(lab.states()).index('ray-worker-0')}) td[data-label='restarts']", before])
    state(admin, "ray-worker-0", "ready")
    go(admin, "Timeline")
    admin.wait_for_selector("#incidents tbody tr:has-text('ray-worker-0')")
    # One line for a death and its recovery.
    told = admin.locator(".lines li:has(b:text-is('ray-worker-0'))")
    admin.wait_for_selector(".lines li:has(b:text-is('ray-worker-0')):has-text('ready after')")
    before = told.count()
    admin.check("text=every step")
    assert told.count() > before
    admin.screenshot(path=SHOTS / "timeline.png")


def test_a_service_is_stopped_and_started_after_a_question(lab, admin):
    lab.wait_ready("jupyter")
    go(admin, "Services")
    state(admin, "jupyter", "ready")
    press = admin.get_by_role("button", name="stop jupyter")
    press.click()
    admin.get_by_role("button", name="Cancel").click()
    assert lab.states()["jupyter"] == "ready"
    press.click()
    admin.wait_for_selector("dialog[open]")
    admin.screenshot(path=SHOTS / "question.png")
    admin.get_by_role("button", name="Stop", exact=True).click()
    state(admin, "jupyter", "held")
    admin.get_by_role("button", name="start jupyter").click()
    admin.get_by_role("button", name="Start", exact=True).click()
    state(admin, "jupyter", "ready", 120)
    lab.wait_ready("jupyter")


def test_a_jobs_curve_shows_the_death_of_its_worker_without_reloading(lab, admin):
    lab.wait_ready()
    # Long enough for its actors to be in what Prometheus has: Ray tells of them every 10 s, and is asked as often.
    lab.submit("page-curve", "python", "train.py", "--name", "page-curve", "--epochs", "50", "--seconds-per-epoch", "1")
    go(admin, "Jobs")
    admin.click("#jobs a:text-is('page-curve')")
    admin.wait_for_selector("#curve canvas", timeout=90_000)
    worker = wait_for("it says where it trains", lambda: lab.worker_of("page-curve"), 30, every=0.5)
    lab.sigkill(worker)
    admin.wait_for_selector(f"#marks .death:has-text('{worker} died')", timeout=60_000)
    admin.wait_for_selector("#marks .resumed:has-text('trains again from checkpoint_')", timeout=60_000)
    admin.wait_for_selector("#curve-words:has-text('work that was done again')")
    admin.wait_for_selector(".log pre:has-text('epoch')")
    wait_for("it goes on", lambda: int(admin.inner_text("#curve-words").split()[0]) > 12, 60)
    admin.screenshot(path=SHOTS / "curve.png", full_page=True)
    admin.get_by_role("button", name="epoch").click()
    admin.wait_for_selector("#curve button[aria-pressed=true]:text-is('epoch')")
    with admin.expect_download() as download:
        admin.click("#curve a:text-is('CSV')")
    assert download.value.suggested_filename == "page-curve-curve.csv"
    go(admin, "GPUs")
    admin.wait_for_selector(".charts canvas")
    admin.screenshot(path=SHOTS / "gpus.png", full_page=True)
    name = admin.locator(".charts .u-legend th[role=button][aria-pressed=true]").first
    name.focus()
    admin.keyboard.press("Enter")
    admin.wait_for_selector(".charts .u-legend th[aria-pressed=false]")
    go(admin, "Metrics")
    # Ray's own panels; what they call by its address has labd's name.
    admin.wait_for_selector("#panels .panel:has(h3:text-is('Cluster Utilization')) .u-legend:has-text('CPU (physical)')", timeout=60_000)
    admin.locator("#panels h3:text-is('Node CPU Usage %')").scroll_into_view_if_needed()
    admin.wait_for_selector("#panels .panel:has(h3:text-is('Node CPU Usage %')) .u-legend:has-text('ray-worker-0')")
    admin.click("#panels summary:text-is('Ray Tasks, Actors and Placement Groups')")
    admin.locator("#panels h3:text-is('Alive Actors by State')").scroll_into_view_if_needed()
    admin.wait_for_selector("#panels .panel:has(h3:text-is('Alive Actors by State')) canvas", timeout=60_000)
    admin.screenshot(path=SHOTS / "metrics.png", full_page=True)
    admin.click(".choices button:text-is('Train')")
    admin.wait_for_selector("#panels summary:text-is('Train Metrics')")
    go(admin, "Usage")
    admin.wait_for_selector("#usage-h")
    lab.wait_job("page-curve")


def test_jupyterlab_opens_from_the_page(lab, admin):
    lab.wait_ready("jupyter")
    with admin.context.expect_page() as opened:
        admin.get_by_role("button", name="JupyterLab").click()
    jupyter = opened.value
    jupyter.wait_for_url("**/jupyter/lab**", timeout=60_000)
    assert jupyter.url.startswith("http://jupyter.localhost:") and "ticket" not in jupyter.url
    jupyter.wait_for_selector("#jp-top-panel, .jp-LabShell", timeout=60_000)


def test_rays_dashboard_asks_for_no_token_and_has_its_time_series(lab, admin):
    with admin.context.expect_page() as opened:
        admin.click("#links a:text-is('Ray dashboard')")
    ray = opened.value
    ray.wait_for_selector("text=Cluster", timeout=60_000)
    assert "/ray/" in ray.url and not ray.locator("text=Authentication").count()
    # What it embeds of Grafana is drawn by labd.
    utilization = ray.frame_locator("iframe[src*='panelId=41']")
    utilization.locator(".u-legend:has-text('CPU (physical)')").wait_for(timeout=60_000)
    assert utilization.locator("canvas").count()
    ray.screenshot(path=SHOTS / "ray.png")
    ray.click("a:text-is('Metrics')")
    ray.frame_locator("iframe[src*='/grafana/d/']").locator("h3:text-is('Node Count')").wait_for()


def test_an_account_logs_in_by_keyboard_alone_on_a_phone_in_the_dark(lab, visit):
    lab.add_user("emil", "viewer", PASSWORD)
    page = visit(lab.link("status page"), viewport={"width": 390, "height": 800}, color_scheme="dark")
    page.wait_for_selector("#login-name:focus")
    page.screenshot(path=SHOTS / "login.png")
    page.keyboard.type("emil")
    page.keyboard.press("Tab")
    page.keyboard.type("not the password")
    page.keyboard.press("Enter")
    page.wait_for_selector("#login-trouble:text('wrong')")
    page.fill("#login-password", "")
    page.focus("#login-password")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_selector("#gpu-cards li")
    assert page.inner_text("#who-name") == "emil (viewer)"
    for view in VIEWS:
        page.focus(f"nav a:text-is('{view}')")
        page.keyboard.press("Enter")
        page.wait_for_selector(f"nav a[aria-current]:text-is('{view}')")
        assert page.locator("button[data-verb]").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, f"{view}: nothing is wider than the phone"
        page.screenshot(path=SHOTS / f"phone-{view.lower()}.png", full_page=True)
    page.focus("#logout")
    page.keyboard.press("Enter")
    page.wait_for_selector("#login-name:focus")
    assert not page.is_visible("nav")


def test_a_second_tab_asks_for_a_login_of_its_own_and_loses_nothing_of_it(lab, admin):
    lab.add_user("gerda", "admin", PASSWORD)
    tab = admin.context.new_page()
    tab.set_default_timeout(30_000)
    tab.goto(lab.link("status page") + "#/services")
    state(tab, "ray-head", "ready")
    assert tab.locator("button[data-verb]").count() == 0, "another tab's login is none of this one"
    tab.click("#enter")
    tab.wait_for_selector("#login-name:focus")
    tab.click("#login-cancel")
    state(tab, "ray-head", "ready")
    tab.click("#enter")
    tab.fill("#login-name", "gerda")
    # Whoever looks up a password in another tab finds the form as it was.
    for is_hidden in (True, False):
        with tab.expect_response("**/api/v1/me") if not is_hidden else contextlib.nullcontext():
            tab.evaluate(HIDDEN, is_hidden)
    tab.screenshot(path=SHOTS / "login-again.png")
    assert tab.input_value("#login-name") == "gerda"
    tab.fill("#login-password", PASSWORD)
    tab.keyboard.press("Enter")
    tab.wait_for_selector("button[data-verb][aria-label='stop jupyter']")
    assert tab.inner_text("#who-name") == "gerda (admin)" and "#/services" in tab.url
    # That took the place of what the first tab had.
    admin.wait_for_selector("#enter", timeout=40_000)
    assert admin.inner_text("#who-name") == "gerda (admin)" and admin.get_by_role("button", name="JupyterLab").count() == 0


def test_tabs_that_nobody_looks_at_take_nothing_from_the_one_that_somebody_does(lab, admin):
    # A browser has six connections to one origin. Each tab is covered by another, or opened behind one.
    tabs = [admin.context.new_page() for _ in range(14)]
    for n, tab in enumerate(tabs):
        if n % 2:
            tab.add_init_script(f"({HIDDEN})(true)")
        tab.goto(lab.link("status page") + "#/logs/ray-head")
        if not n % 2:
            tab.wait_for_selector(".log [role=status]:has-text('live')")
            tab.evaluate(HIDDEN, True)
    go(admin, "Doctor")
    admin.wait_for_selector("#checks li", timeout=60_000)
    tabs[-1].evaluate(HIDDEN, False)
    tabs[-1].wait_for_selector(".log pre:has-text('Ray runtime started')")
    tabs[-1].wait_for_selector("#connection:text('live')")


def test_what_is_older_comes_by_a_button_and_a_job_that_was_lost_is_no_row_of_its_own(lab, admin):
    # A long history, told to the page in labd's place.
    def job(n, **more):
        return {"submission_id": f"job-{n}", "status": "SUCCEEDED", "entrypoint": "python train.py", "submitted_at": f"2026-01-01T00:00:{n:02}Z", **more}

    def incident(n):
        at = f"2026-01-01T00:00:{n:02}Z"
        return {"service": f"service-{n}", "cause": "killed", "why": "SIGKILL", "died_at": at, "running_at": at, "ready_at": at, "training": []}

    jobs = [job(n) for n in range(59, 9, -1)]
    jobs[4] = job(55, resubmitted_as="job-56", outcome="lost")
    long = lab.snapshot() | {"jobs": jobs, "incidents": [incident(n) for n in range(59, 39, -1)]}
    older = {"jobs": [*jobs, *(job(n) for n in range(9, -1, -1))], "next": None}
    pages = {"before=": {"incidents": [incident(n) for n in range(9, -1, -1)], "next": None},
             "": {"incidents": [incident(n) for n in range(59, 9, -1)], "next": "1-7"}}
    def tell(what, kind, answer):
        admin.route(f"**/api/v1/{what}", lambda route: route.fulfill(body=answer(route.request.url), content_type=kind))

    tell("stream?*", "text/event-stream", lambda _: f"event: snapshot\ndata: {json.dumps(long)}\n\n")
    tell("jobs?*", "application/json", lambda _: json.dumps(older))
    tell("incidents?*", "application/json", lambda url: json.dumps(next(told for part, told in pages.items() if part in url)))
    admin.reload()
    go(admin, "Jobs")
    rows = admin.locator("#jobs tbody tr")
    admin.wait_for_selector("#jobs tr:has-text('job-10')")
    assert rows.count() == 49 and not admin.locator("#jobs th:has-text('job-55')").count()
    button = admin.get_by_role("button", name="older jobs")
    button.click()
    admin.wait_for_selector("#jobs th a:text-is('job-0')")
    assert rows.count() == 59 and button.count() == 0, "each once, and there is no more"
    go(admin, "Timeline")
    rows, button = admin.locator("#incidents tbody tr"), admin.get_by_role("button", name="older incidents")
    assert rows.count() == 20
    button.click()
    admin.wait_for_selector("#incidents th:text-is('service-10')")
    button.click()
    admin.wait_for_selector("#incidents th:text-is('service-0')")
    assert rows.count() == 60 and button.count() == 0


def test_logs_are_followed_and_searched(lab, admin):
    go(admin, "Services")
    admin.click("a[aria-label='logs of ray-head']")
    admin.wait_for_selector(".log pre:has-text('Ray runtime started')")
    admin.fill("#log-search", "ray RUNTIME started")
    admin.wait_for_selector(".log .count:has-text('of')")
    assert all("Ray runtime started" in line for line in admin.inner_text(".log pre").splitlines())


def test_the_doctor_says_on_the_page_what_it_says_in_a_terminal(lab, admin):
    go(admin, "Doctor")
    admin.wait_for_selector("#checks li", timeout=60_000)
    names = set(admin.locator("#checks h3").all_inner_texts())
    assert {"labd.toml", "daemon", "engine", "disk", "subnet"} <= names, names


def test_everything_can_be_read_by_a_machine_that_reads_aloud(lab, visit):
    page = visit(lab.labd("open", "--print").stdout.strip(), bypass_csp=True)
    page.wait_for_selector("#gpu-cards li")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for view in [*VIEWS, "wall"]:
            page.goto(lab.link("status page") + ("#wall" if view == "wall" else "#/" + ("" if view == "Overview" else view.lower())))
            page.wait_for_selector(".wall" if view == "wall" else f"nav a[aria-current]:text-is('{view}')")
            assert accessibility(page) == [], (scheme, view)


def test_the_wall_has_no_controls(lab, admin):
    admin.goto(lab.link("status page") + "#wall")
    admin.wait_for_selector(".wall .card")
    assert admin.locator("button, a, input").count() == 0
    admin.set_viewport_size({"width": 1920, "height": 1080})
    admin.screenshot(path=SHOTS / "wall.png")


def test_a_first_visit_is_small_soon_there_and_asks_nobody_else(lab, visit):
    page = visit("about:blank", viewport={"width": 390, "height": 800})
    # Lighthouse's "slow 4G".
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    network.send("Network.emulateNetworkConditions", {"offline": False, "latency": 150, "downloadThroughput": 1.6e6 / 8, "uploadThroughput": 750e3 / 8})
    asked, sizes = [], []
    page.on("request", lambda request: asked.append(request.url))
    network.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto(lab.link("status page"))
    page.wait_for_selector("#login-name")
    assert all(url.startswith(lab.link("status page")) for url in asked), asked
    assert sum(sizes) < 100_000, sizes
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    first = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(f"first paint after {first:.0f} ms")


def test_a_page_whose_labd_is_gone_says_so_and_comes_back(lab, admin):
    admin.wait_for_selector("#connection:text('live')")
    lab.kill_daemon()
    admin.wait_for_selector("#connection.lost", timeout=40_000)
    lab.up()
    admin.wait_for_selector("#connection:text('live')", timeout=40_000)
    assert admin.inner_text("#who-name").endswith("(admin)"), "the session outlives labd"


def test_a_session_that_is_ended_elsewhere_ends_the_page(lab, admin):
    session = lab.labd("user", "sessions").stdout.splitlines()[1].split()[0]
    lab.labd("user", "end", session)
    admin.wait_for_selector("#login-name:focus", timeout=40_000)
    assert not admin.is_visible("nav")
