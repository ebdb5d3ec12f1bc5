"""Who JupyterLab knows, and by what: its server's configuration, beside a server that is a few lines. No engine needed."""
import asyncio
import sys
import types

import pytest

from harness.lab import ROOT

DOOR = "hunter2" * 6


class Server:
    """jupyter_server's own provider, as far as the configuration builds on it."""

    async def _get_user(self, handler):
        return "by the token" if handler.token else None

    def validate_security(self, app, ssl_options=None):
        app.checked = True


@pytest.fixture
def configured(monkeypatch):
    def configure(door):
        for name, members in {
            "jupyter_server": {}, "jupyter_server.auth": {},
            "jupyter_server.auth.identity": {"PasswordIdentityProvider": Server, "User": lambda user, **_: user},
            "tornado": {}, "tornado.web": {"RedirectHandler": "redirect"},
        }.items():
            module = types.ModuleType(name)
            module.__dict__.update(members)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delenv("LABD_JUPYTER_DOOR", raising=False)
        if door is not None:
            monkeypatch.setenv("LABD_JUPYTER_DOOR", door)
        app = types.SimpleNamespace(ServerApp=types.SimpleNamespace())
        made = {"get_config": lambda: app}
        exec((ROOT / "images/run/labd_jupyter.py").read_text(), made)
        return app.ServerApp, made

    return configure


def request(*shown, token=False):
    headers = types.SimpleNamespace(get_list=lambda name: list(shown) if name == "X-Labd-Door" else [])
    return types.SimpleNamespace(request=types.SimpleNamespace(headers=headers), token=token)


def test_by_the_door_comes_only_who_shows_its_secret_once(configured):
    server, made = configured(DOOR)
    user = lambda handler: asyncio.run(server.identity_provider_class()._get_user(handler))
    assert user(request(DOOR)) == "labd"
    for shown in ([], [""], ["wrong"], [DOOR, DOOR], [DOOR, "wrong"], [DOOR + "x"], ["ä"]):
        assert user(request(*shown)) is None, shown
        assert user(request(*shown, token=True)) == "by the token", shown
    assert "LABD_JUPYTER_DOOR" not in made["os"].environ, "kernels have no use for it"


@pytest.mark.parametrize("door", [None, ""])
def test_without_a_secret_the_door_is_shut(configured, door):
    server, _ = configured(door)
    for shown in ([], [""]):
        assert asyncio.run(server.identity_provider_class()._get_user(request(*shown))) is None


def test_the_page_says_no_token_to_who_comes_by_the_door(configured):
    server, _ = configured(DOOR)
    hook = server.tornado_settings["page_config_hook"]
    page = {"token": "t0ken", "other": 1}
    assert hook(request(DOOR), page) == {"token": "", "other": 1}
    assert hook(request(), page) == page == {"token": "t0ken", "other": 1}


def test_addresses_from_before_it_moved_lead_there(configured):
    import re

    server, _ = configured(DOOR)
    added = []
    web = types.SimpleNamespace(add_handlers=lambda host, handlers: added.extend(handlers))
    app = types.SimpleNamespace(base_url="/jupyter/", web_app=web)
    server.identity_provider_class().validate_security(app)
    (pattern, handler, to), = added
    assert app.checked and handler == "redirect" and to == {"url": "/jupyter/{0}", "permanent": False}
    leads = {path: found and found[1] for path in ("/", "/lab", "/lab/tree/a.ipynb", "/jupyter/lab", "/labx", "/api")
             if (found := re.fullmatch(pattern, path)) or True}
    assert leads == {"/": "", "/lab": "lab", "/lab/tree/a.ipynb": "lab/tree/a.ipynb", "/jupyter/lab": None, "/labx": None, "/api": None}
