"""The page of `search --serve`: on 127.0.0.1 alone, for browsers that mean it.

A page of another origin can send a browser here under a name of its own that leads to 127.0.0.1 (DNS rebinding); its name
stands in the Host header, so other names than ours are refused. No path of a request is ever a path on disk: items are
known by their row.
"""

import io
import json
import re
import sys
import threading
import time
from collections import OrderedDict
from email.message import Message
from hashlib import sha256
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from accel_train.data.transforms import UnreadableImage, decode, open_image
from accel_train.errors import UserError
from accel_train.tools.search.pages import Asking, whole_page
from accel_train.tools.search.search import Hit, Query, Search
from accel_train.visible import visible

HOST = "127.0.0.1"
MAX_UPLOAD = 32 * 2**20
NUM_UPLOADS = 8
"""Images that are kept, the last ones; in memory."""
MAX_TEXT = 1000
MAX_DIGITS = 12
"""Of a number in a request; Python reads none of thousands."""
METHODS = "GET, HEAD, POST"
MAX_TOP = 200
THUMBNAIL = 360
SECONDS_TO_SEND = 30.0
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
ITEM = re.compile(r"(image|text):(\d{1,12})", re.ASCII)
ROW = re.compile(r"/picture/(\d{1,12})", re.ASCII)
UPLOAD = re.compile(r"/upload/([0-9a-f]{32})", re.ASCII)


class Refused(Exception):
    """A request that gets no answer but the reason."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class SearchServer(ThreadingMixIn, TCPServer):
    """Several connections at once, since browsers open several; the model answers one query after another.

    A plain TCPServer, since http.server's own looks the host's name up, which may ask the network.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, search: Search, *, port: int, top: int) -> None:
        """Raises UserError if the port is taken."""
        self.search = search
        self.top = min(top, MAX_TOP)
        self.model = threading.Lock()
        self.uploads: OrderedDict[str, bytes] = OrderedDict()
        own = files("accel_train.tools")
        shared = own.joinpath("page", "page.css").read_text(encoding="utf-8")
        self.style = shared + own.joinpath("search", "search.css").read_text(encoding="utf-8")
        self.script = own.joinpath("search", "search.js").read_text(encoding="utf-8")
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise UserError(
                f"--port: {HOST}:{port} can't be listened on ({error.strerror}). Choose another one."
            ) from error
        self.port: int = self.server_address[1]
        self.names = {f"{name}:{self.port}" for name in (HOST, "localhost")}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news; anything else is a fault of ours, with its traceback."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def serve(search: Search, *, port: int, top: int) -> None:
    """Serves until Ctrl-C. Raises UserError."""
    with SearchServer(search, port=port, top=top) as server:
        print(f"http://{HOST}:{server.port}/ (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended", flush=True)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: SearchServer
    timeout = SECONDS_TO_SEND
    server_version = "accel-train"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server refuses by itself, with our headers and without its page. Other methods it calls unknown."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            allowed = {"Allow": METHODS}
            self._send(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", f"{METHODS} are answered here.\n", allowed)
        else:
            self._send(HTTPStatus(code), "text/plain", visible(f"{message or HTTPStatus(code).phrase}\n"))

    def _answer(self, act: Any) -> None:
        try:
            address = urlsplit(self.path)
        except ValueError:  # half an address of IPv6, for example
            self._send(HTTPStatus.BAD_REQUEST, "text/plain", "The address can't be read.\n")
            return
        asked = {name: values[-1] for name, values in _fields(address.query).items()}
        try:
            self._check_origin()
            act(address.path, asked)
        except (Refused, UserError) as error:
            status = error.status if isinstance(error, Refused) else HTTPStatus.BAD_REQUEST
            if address.path == "/" and status is not HTTPStatus.FORBIDDEN:
                plain = Asking(self.server.search.kinds[0], self.server.top)
                self._send(status, "text/html", whole_page(self.server.search, plain, None, 0.0, error=str(error)))
            else:
                self._send(status, "text/plain", visible(f"{error}\n"))

    def _check_origin(self) -> None:
        """Raises Refused for a request that a page of another origin sent, or sent under another name."""
        names = self.server.names
        if self.headers.get_all("Host") is None or any(host not in names for host in self.headers.get_all("Host", [])):
            raise Refused(HTTPStatus.FORBIDDEN, f"This page is at http://{HOST}:{self.server.port}/ alone.")
        origin = self.headers.get("Origin")
        foreign = origin is not None and origin not in {f"http://{name}" for name in names}
        if self.command == "POST" and (
            foreign or self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none")
        ):
            raise Refused(HTTPStatus.FORBIDDEN, "An image can be sent from this page alone.")

    def _get(self, path: str, asked: dict[str, str]) -> None:
        server = self.server
        if path == "/":
            asking = self._asking(asked)
            found, seconds = self._find(asking)
            self._send(HTTPStatus.OK, "text/html", whole_page(server.search, asking, found, seconds))
        elif path == "/results.json":
            found, seconds = self._find(self._asking(asked))
            if found is None:
                raise Refused(HTTPStatus.BAD_REQUEST, "nothing was asked; give q, like or upload.")
            listed = [
                {"id": h.id, "row": h.row, "score": h.score, "text": h.text, "is_duplicate": h.is_duplicate}
                for h in found
            ]
            self._send(HTTPStatus.OK, "application/json", json.dumps({"found": listed, "seconds": seconds}))
        elif path == "/style.css":
            self._send(HTTPStatus.OK, "text/css", server.style)
        elif path == "/script.js":
            self._send(HTTPStatus.OK, "text/javascript", server.script)
        elif found_row := ROW.fullmatch(path):
            self._send(HTTPStatus.OK, "image/jpeg", self._thumbnail_of(int(found_row[1])))
        elif upload := UPLOAD.fullmatch(path):
            self._send(HTTPStatus.OK, "image/jpeg", thumbnail(self._uploaded(upload[1])))
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "There is nothing at this address.")

    def _post(self, path: str, asked: dict[str, str]) -> None:
        if path != "/upload":
            raise Refused(HTTPStatus.NOT_FOUND, "There is nothing at this address.")
        asking = self._asking(asked)
        image = sent_image(self.headers.get("Content-Type", ""), self._body())
        try:
            thumbnail(image)
        except UnreadableImage as error:
            raise Refused(HTTPStatus.BAD_REQUEST, f"The file can't be read as an image: {error}.") from error
        name = sha256(image).hexdigest()[:32]
        with self.server.model:
            self.server.uploads[name] = image
            self.server.uploads.move_to_end(name)
            while len(self.server.uploads) > NUM_UPLOADS:
                self.server.uploads.popitem(last=False)
        to = Asking(asking.kind, asking.top, upload=name).address()
        self._send(HTTPStatus.SEE_OTHER, "text/plain", f"{to}\n", {"Location": to})

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "The request doesn't say how long it is.")
        if len(length) > MAX_DIGITS or int(length) > MAX_UPLOAD:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"An image may have {MAX_UPLOAD:,} bytes.")
        return self.rfile.read(int(length))

    def _asking(self, asked: dict[str, str]) -> Asking:
        """Raises Refused for what isn't there."""
        search = self.server.search
        kinds, top = {f"{kind}s": kind for kind in search.kinds}, asked.get("top", str(self.server.top))
        find = asked.get("find", next(iter(kinds)))
        if find not in kinds:
            raise Refused(HTTPStatus.BAD_REQUEST, f"find is {find!r}; there are {' and '.join(kinds)} here.")
        if not (top.isascii() and top.isdecimal() and len(top) <= MAX_DIGITS and 1 <= int(top) <= MAX_TOP):
            raise Refused(HTTPStatus.BAD_REQUEST, f"top is {top!r}; it must be 1 to {MAX_TOP}.")
        text = asked.get("q", "").strip()
        if len(text) > MAX_TEXT:
            raise Refused(HTTPStatus.BAD_REQUEST, f"The text has {len(text)} characters; {MAX_TEXT} are allowed.")
        item = None
        if "like" in asked:
            found = ITEM.fullmatch(asked["like"])
            if found is None or found[1] not in search.searched or int(found[2]) >= len(search.searched[found[1]]):
                raise Refused(HTTPStatus.NOT_FOUND, f"There is no item {asked['like']!r} here.")
            item = found[1], int(found[2])
        return Asking(kinds[find], int(top), text, item, asked.get("upload", ""))

    def _find(self, asking: Asking) -> tuple[list[Hit] | None, float]:
        """What is found, None if nothing was asked, and the seconds it took."""
        if asking.upload:
            query = Query(image=self._uploaded(asking.upload))
        elif asking.item is not None:
            query = Query(item=asking.item)
        elif asking.text:
            query = Query(text=asking.text)
        else:
            return None, 0.0
        with self.server.model:
            began = time.perf_counter()
            (found,) = self.server.search.find([query], kind=asking.kind, top=asking.top)
            return found, time.perf_counter() - began

    def _uploaded(self, name: str) -> bytes:
        image = self.server.uploads.get(name)
        if image is None:
            raise Refused(HTTPStatus.NOT_FOUND, "This image is not here any more. Choose it again.")
        return image

    def _thumbnail_of(self, row: int) -> bytes:
        images = self.server.search.searched.get("image")
        content = images.content(row) if images is not None and row < len(images) else None
        if not isinstance(content, bytes):
            raise Refused(HTTPStatus.NOT_FOUND, "There is no picture of this item.")
        try:
            return thumbnail(content)
        except UnreadableImage as error:
            raise Refused(HTTPStatus.NOT_FOUND, f"The picture can't be read: {error}.") from error

    def _send(self, status: HTTPStatus, kind: str, content: str | bytes, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", kind if kind.startswith("image/") else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (HEADERS | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal shows what went wrong alone."""


def thumbnail(encoded: bytes) -> bytes:
    """A JPEG of at most THUMBNAIL pixels a side. Raises UnreadableImage."""
    picture = decode(open_image(encoded))
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90, subsampling=0)
    return stream.getvalue()


def sent_image(content_type: str, body: bytes) -> bytes:
    """The image of a request: the whole body, or the field `image` of a form. Raises Refused."""
    header = Message()
    header["Content-Type"] = content_type
    if header.get_content_maintype() == "image":
        return body
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "An image is sent as image/* or in a form's field `image`.")
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary.encode("utf-8", "replace"))[1:-1]:
        about, _, content = part.partition(b"\r\n\r\n")
        if re.search(rb'(?i)^content-disposition:[^\r\n]*\bname="image"', about, re.MULTILINE):
            return content
    raise Refused(HTTPStatus.BAD_REQUEST, "The form has no field `image`.")


def _fields(query: str) -> dict[str, list[str]]:
    try:
        return parse_qs(query, max_num_fields=20, errors="replace")
    except ValueError:
        return {}
