"""A folder to label, the server of `view` on it, and requests as its page sends them."""

import contextlib
import http.client
import json
import threading

from training.labelling.folder import VideoFolder
from training.labelling.server import TOKEN_HEADER, LabelServer

CONTENT = {
    "source": "counted by hand",
    "classes": {"jump": ["stand", "fly", "land"]},
    "videos": {
        "a.mp4": {"action": "jump", "boundaries": [10, 20], "remark": "ünclear"},
        "b.mp4": {"action": "jump", "split": "test", "phases": [-1] * 4 + [0] * 4 + [1] * 4},
        "gone.mp4": {"split": "test"},
    },
}


def write_folder(videos, target):
    """Three videos (30, 12 and 6 frames), one of them in a folder, and labels of two."""
    (target / "sub").mkdir(parents=True)
    for source, name in (("a", "a"), ("b", "b"), ("c", "sub/c")):
        (target / f"{name}.mp4").write_bytes((videos / f"{source}.mp4").read_bytes())
    (target / "labels.json").write_text(json.dumps(CONTENT), encoding="utf-8")
    return target


class Connection(http.client.HTTPConnection):
    """One that sends what it is told, ASCII or not."""

    def _encode_request(self, request):
        return request.encode()


class Client:
    """Requests as the page sends them, but for what a test changes."""

    def __init__(self, server: LabelServer):
        self.server = server
        self.port = server.server_address[1]
        self.host = f"127.0.0.1:{self.port}"

    def request(self, method, path, body=None, *, token=None, **headers):
        """(status, headers, body); a header that is None is left out."""
        token = self.server.token if token is None else token
        sent = {"Host": self.host}
        if method == "POST":
            sent |= {
                "Origin": f"http://{self.host}",
                TOKEN_HEADER: self.server.token,
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
            }
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = Connection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, f"/{token}/{path}", skip_host=True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.headers, content

    def get(self, path):
        status, _, content = self.request("GET", path)
        assert status == 200, content
        return json.loads(content)

    def save(self, entries, *, classes=None, version=None, **headers):
        """(status, what the server answers)."""
        state = self.get("state")
        body = {
            "version": state["version"] if version is None else version,
            "classes": state["classes"] if classes is None else classes,
            "entries": entries,
        }
        status, _, content = self.request("POST", "save", json.dumps(body).encode(), **headers)
        return status, json.loads(content)


@contextlib.contextmanager
def serving(folder):
    server = LabelServer(VideoFolder(folder), "")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield Client(server)
    finally:
        server.shutdown()
        server.server_close()
        server.folder.close()
