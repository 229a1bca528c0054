"""The page's server: one folder, one user, this machine alone.

It listens on 127.0.0.1. Each request must carry the random token of this start in its path, and
name the server's own address as Host, so that neither another user of the machine nor a web site
that points a name at 127.0.0.1 can talk to it. What writes must carry the token in a header too,
and come from a page of this server. No path of a request is ever a path of a file.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fastseq.video import VideoError
from training.data.labels import LabelError
from training.labelling.folder import VideoFolder
from training.labelling.store import Refused

ADDRESS = "127.0.0.1"
TOKEN_HEADER = "X-Fastseq-Token"
LARGEST_BODY = 32 * 1024 * 1024  # bytes of a request
_HERE = Path(__file__).parent
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class _Wrong(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class LabelServer(ThreadingHTTPServer):
    """Serves the page of one folder.

    Args:
        styles: the style sheet that all pages share.
        port: 0 = a free one.
    """

    daemon_threads = True

    def __init__(self, folder: VideoFolder, styles: str, port: int = 0):
        self.folder = folder
        self.token = secrets.token_urlsafe(24)
        files = [path for path in _HERE.iterdir() if path.suffix in _TYPES]
        self.assets = {path.name: (_TYPES[path.suffix], path.read_bytes()) for path in files}
        self.assets["style.css"] = (_TYPES[".css"], styles.encode())
        super().__init__((ADDRESS, port), _Handler)
        number = self.server_address[1]
        # "localhost" is what a browser calls the end of an SSH tunnel, and no name that another
        # site can point here.
        self.hosts = {f"{ADDRESS}:{number}", f"localhost:{number}"}
        self.url = f"http://{ADDRESS}:{number}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    server: LabelServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fastseq", ""
    timeout = 60  # seconds of an idle connection

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, *args: Any) -> None:
        """Nothing: the terminal is the user's."""

    def _answer(self, respond: Callable[[list[str]], None]) -> None:
        try:
            respond(self._parts())
        except _Wrong as error:
            self.close_connection = True  # a body may be left unread
            self._json({"error": str(error)}, error.status)
        except Refused as error:
            content = {"error": str(error), "problems": error.problems, "changed": error.changed}
            self._json(content, HTTPStatus.CONFLICT)
        except (LabelError, VideoError, OSError) as error:
            if isinstance(error, ConnectionError | TimeoutError):  # the page has moved on
                self.close_connection = True
                return
            self._json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)

    def _parts(self) -> list[str]:
        """The request's path behind the token; _Wrong where the request has no right to it."""
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            raise _Wrong(HTTPStatus.FORBIDDEN, "wrong host: open the address that view printed")
        token, *parts = self.path.split("?")[0].lstrip("/").split("/")
        if not self._is_token(token):
            raise _Wrong(HTTPStatus.FORBIDDEN, "wrong token: open the address that view printed")
        return parts

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "replace"), self.server.token.encode())

    def _get(self, parts: list[str]) -> None:
        folder = self.server.folder
        match parts:
            case [""]:
                self._send(*self.server.assets["view.html"])
            case [name] if name in self.server.assets:
                self._send(*self.server.assets[name])
            case ["state"]:
                self._json(folder.state())
            case ["known", first]:
                self._json(folder.known(self._number(first, len(folder.videos) + 1)))
            case ["facts", number]:
                self._json(folder.facts(self._number(number, len(folder.videos))))
            case ["frames", number, chunk]:
                self._frames(self._number(number, len(folder.videos)), self._number(chunk, 10**9))
            case _:
                raise _Wrong(HTTPStatus.NOT_FOUND, "no such page")

    def _post(self, parts: list[str]) -> None:
        body = self._body()
        folder = self.server.folder
        match parts:
            case ["save"]:
                with self._well_formed():
                    version, classes = body["version"], body["classes"]
                    entries = {
                        self._number(str(number), len(folder.videos)): entry
                        for number, entry in body["entries"].items()
                    }
                    if not isinstance(version, str) or not isinstance(classes, dict):
                        raise TypeError("version must be a text, classes an object")
                    for entry in entries.values():
                        if not isinstance(entry, dict | None):
                            raise TypeError("an entry must be an object or null")
                new = folder.save(version, classes, entries)
                self._json({"version": new, "backup": folder.labels.backup})
            case ["unsaved"]:
                with self._well_formed():
                    count = len(folder.videos)
                    numbers = [self._number(str(number), count) for number in body["videos"]]
                    names = [folder.videos[number] for number in numbers]
                    names += ["names of phases"] * bool(body["classes"])
                    tab, place = body["tab"], body["count"]
                    if not isinstance(tab, str) or not isinstance(place, int):
                        raise TypeError("tab must be a text, count a whole number")
                folder.report_unsaved(tab, place, names)
                self._json({})
            case _:
                raise _Wrong(HTTPStatus.NOT_FOUND, "no such page")

    def _body(self) -> Any:
        """The JSON of a request that may write."""
        origins = {f"http://{host}" for host in self.server.hosts}
        if self.headers.get("Origin", "") not in origins:
            raise _Wrong(HTTPStatus.FORBIDDEN, "wrong origin: only this server's page may write")
        if not self._is_token(self.headers.get(TOKEN_HEADER, "")):
            raise _Wrong(HTTPStatus.FORBIDDEN, f"{TOKEN_HEADER} is missing or wrong")
        if self.headers.get_content_type() != "application/json":
            raise _Wrong(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or "Transfer-Encoding" in self.headers:
            raise _Wrong(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
        if int(length) > LARGEST_BODY:
            raise _Wrong(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{length} bytes, expected at most {LARGEST_BODY}",
            )
        data = self.rfile.read(int(length))
        with self._well_formed():
            body = json.loads(data)
            if not isinstance(body, dict):
                raise TypeError("expected an object")
        return body

    @contextlib.contextmanager
    def _well_formed(self):
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            message = f"not a request of the page: {type(error).__name__}: {error}"
            raise _Wrong(HTTPStatus.BAD_REQUEST, message) from error

    def _number(self, text: str, below: int) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < below):
            raise _Wrong(HTTPStatus.NOT_FOUND, f"no such number: {text}")
        return int(text)

    def _frames(self, number: int, chunk: int) -> None:
        try:
            pictures = self.server.folder.chunk(number, chunk)
        except IndexError as error:
            raise _Wrong(HTTPStatus.NOT_FOUND, str(error)) from error
        sizes = ",".join(str(len(picture)) for picture in pictures)
        self._send("application/octet-stream", b"".join(pictures), headers={"X-Sizes": sizes})

    def _json(self, content: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send("application/json", json.dumps(content).encode(), status)

    def _send(
        self,
        kind: str,
        content: bytes,
        status: HTTPStatus = HTTPStatus.OK,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        fixed = {"Content-Type": kind, "Content-Length": str(len(content))}
        for name, value in {**_HEADERS, **fixed, **(headers or {})}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
