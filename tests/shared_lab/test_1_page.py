"""The page in a real browser, as people use it."""
import pytest

from harness.browser import SHOTS, chromium

PASSWORD = "a long enough password"
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
    page.wait_for_selector("#services tbody tr")
    return page


def state(page, name, state, seconds=60):
    page.wait_for_selector(READY.format(name=name, state=state), timeout=seconds * 1000)


def test_a_link_logs_in_and_leaves_no_trace_in_the_address(lab, admin):
    assert admin.url == lab.link("status page")
    assert admin.inner_text("#who-name").endswith("(admin)")
    state(admin, "ray-head", "ready")
    assert "services ready" in admin.inner_text("#verdict")
    admin.screenshot(path=SHOTS / "light.png", full_page=True)


def test_a_worker_that_is_killed_is_seen_to_die_and_come_back_without_reloading(lab, admin):
    lab.wait_ready()
    state(admin, "ray-worker-0", "ready")
    restarts = "#services tbody tr:has(th:text-is('ray-worker-0')) td[data-label='restarts']"
    before = admin.inner_text(restarts)
    lab.sigkill("ray-worker-0")
    admin.wait_for_function("([cell, before]) => document.querySelector(cell).innerText !== before",
                            arg=[f"#services tbody tr:nth-child({1 + list(lab.states()).index('ray-worker-0')}) td[data-label='restarts']", before])
    state(admin, "ray-worker-0", "ready")
    admin.wait_for_selector("#incidents tbody tr:has-text('ray-worker-0')")


def test_a_service_is_stopped_and_started_after_a_question(lab, admin):
    lab.wait_ready("jupyter")
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


def test_rays_dashboard_asks_for_no_token(lab, admin):
    with admin.context.expect_page() as opened:
        admin.click("#links a:text-is('Ray dashboard')")
    ray = opened.value
    ray.wait_for_selector("text=Cluster", timeout=60_000)
    assert "/ray/" in ray.url and not ray.locator("text=Authentication").count()
    ray.screenshot(path=SHOTS / "ray.png")


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
    page.wait_for_selector("#services tbody tr")
    assert page.inner_text("#who-name") == "emil (viewer)" and page.locator("button[data-verb]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing is wider than the phone"
    page.screenshot(path=SHOTS / "phone.png", full_page=True)
    page.focus("#logout")
    page.keyboard.press("Enter")
    page.wait_for_selector("#login-name:focus")
    assert not page.is_visible("#services")


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
    assert not admin.is_visible("#services")
