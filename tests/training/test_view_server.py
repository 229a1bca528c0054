"""`view`: what its server refuses."""

import json

import pytest

pytest.importorskip("av")

from view_client import serving, write_folder

from training.labelling import server as server_module
from training.labelling.server import TOKEN_HEADER


@pytest.fixture
def folder(videos, tmp_path):
    return write_folder(videos, tmp_path / "clips")


@pytest.fixture
def client(folder):
    with serving(folder) as client:
        yield client


def test_listens_on_loopback_alone(client):
    assert client.server.server_address[0] == "127.0.0.1"
    assert client.server.url == f"http://{client.host}/{client.server.token}/"
    assert len(client.server.token) >= 32


def test_headers_keep_the_page_to_itself(client):
    status, headers, content = client.request("GET", "")
    assert status == 200
    assert b'src="view.js"' in content
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("path", ["", "state", "view.js", "known/0", "facts/0", "frames/0/0"])
@pytest.mark.parametrize("token", ["", "x", "é"])
def test_refuses_a_wrong_token(client, path, token):
    status, _, content = client.request("GET", path, token=token)
    assert status == 403
    assert "wrong token" in json.loads(content)["error"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "", None])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_refuses_another_host(client, method, host):
    host = host and host.format(port=client.port)
    path, body = ("state", None) if method == "GET" else ("unsaved", b"{}")
    status, _, content = client.request(method, path, body, Host=host)
    assert status == 403
    assert "wrong host" in json.loads(content)["error"]


def test_accepts_the_name_that_a_tunnel_has(client):
    host = f"localhost:{client.port}"
    assert client.request("GET", "state", Host=host)[0] == 200
    assert client.save({}, Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": None}, 403),
        ({TOKEN_HEADER: None}, 403),
        ({TOKEN_HEADER: "x"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Length": None}, 411),
        ({"Content-Length": "-1"}, 411),
        ({"Transfer-Encoding": "chunked"}, 411),
    ],
)
def test_refuses_to_write_for_others(client, folder, headers, status):
    before = (folder / "labels.json").read_bytes()
    body = {"version": client.get("state")["version"], "classes": {}, "entries": {"0": None}}
    got, _, content = client.request("POST", "save", json.dumps(body).encode(), **headers)
    assert got == status, content
    assert (folder / "labels.json").read_bytes() == before


def test_refuses_a_large_body_unread(client, monkeypatch):
    monkeypatch.setattr(server_module, "LARGEST_BODY", 1000)
    status, headers, content = client.request("POST", "save", b"", Content_Length="1001")
    assert status == 413
    assert "1001 bytes, expected at most 1000" in json.loads(content)["error"]
    assert headers["Connection"] == "close"


@pytest.mark.parametrize(
    "path",
    [
        *("labels.json", "../labels.json", "..%2f..%2flabels.json", "server.py", "%2e%2e/store.py"),
        *("frames/0/../../labels.json", "frames/a.mp4/0", "frames/-1/0", "frames/3/0", "facts/³"),
        *("frames/0/1", "frames/0/99999999999999999999", "/etc/passwd", "view.js/", "known/99"),
    ],
)
def test_no_path_leads_to_another_file(client, path):
    status, _, content = client.request("GET", path)
    assert status == 404
    assert set(json.loads(content)) == {"error"}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{", b'{"version": 1}', b"[" * 100_000),
        b'{"version": 1, "classes": {}, "entries": {}}',
        b'{"version": "", "classes": [], "entries": {}}',
        b'{"version": "", "classes": {}, "entries": {"0": 1}}',
        b'{"version": "", "classes": {}, "entries": []}',
    ],
)
def test_names_a_malformed_request(client, body):
    status, _, content = client.request("POST", "save", body)
    assert status == 400
    assert "not a request of the page" in json.loads(content)["error"]


def report(client, tab, count, videos, classes=False):
    body = {"tab": tab, "count": count, "videos": videos, "classes": classes}
    return client.request("POST", "unsaved", json.dumps(body).encode())[0]


def test_each_tab_has_its_unsaved_changes(client):
    folder = client.server.folder
    assert report(client, "a", 1, [0, 2]) == 200
    assert report(client, "b", 1, []) == 200
    assert folder.unsaved == ["a.mp4", "sub/c.mp4"]
    assert report(client, "b", 3, [0, 1], classes=True) == 200
    assert report(client, "b", 2, []) == 200  # overtaken by the third
    assert folder.unsaved == ["a.mp4", "sub/c.mp4", "b.mp4", "names of phases"]
    assert report(client, "a", 2, []) == 200
    assert report(client, "b", 4, []) == 200
    assert folder.unsaved == []


@pytest.mark.parametrize(("tab", "count"), [(["a"], 1), ("a", "1"), ("a", None)])
def test_names_a_malformed_report(client, tab, count):
    assert report(client, tab, count, [0]) == 400
    assert client.server.folder.unsaved == []
