"""The page over HTTP: what it finds, what it refuses, and that nothing of the disk is reachable."""

import http.client
import io
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

import pytest
from PIL import Image

from accel_train.errors import UserError
from accel_train.tools.search import server as module
from accel_train.tools.search.asked import Asked
from accel_train.tools.search.pages import Asking
from accel_train.tools.search.search import Query, Search, open_search
from accel_train.tools.search.server import SearchServer, serve
from tests.tools.conftest import NUM_IMAGES, NUM_TEXTS, encoded_image
from tests.tools.plain import write_images

BOUNDARY = "xYz"


@dataclass(slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Site:
    def __init__(self, server: SearchServer) -> None:
        self.server = server
        self.own = f"127.0.0.1:{server.port}"

    def ask(self, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Host": self.own} | sent)
        answer = connection.getresponse()
        found = Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        connection.close()
        return found

    def found(self, **asked: str) -> list[dict[str, object]]:
        with urlopen(f"http://{self.own}/results.json?{urlencode(asked)}", timeout=60) as answer:
            listed: list[dict[str, object]] = json.load(answer)["found"]
        return listed

    def upload(self, image: bytes, *, path: str = "/upload", **headers: str) -> Answer:
        body = (
            (
                f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n'
                f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="../../a.png"\r\n'
                "Content-Type: image/png\r\n\r\n"
            ).encode()
            + image
            + f"\r\n--{BOUNDARY}--\r\n".encode()
        )
        return self.ask(
            path, method="POST", body=body, Content_Type=f"multipart/form-data; boundary={BOUNDARY}", **headers
        )


def running(search: Search) -> Iterator[Site]:
    with SearchServer(search, port=0, top=10) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Site(server)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def site(whole_split: Search) -> Iterator[Site]:
    yield from running(whole_split)


def test_a_text_query(site: Site, whole_split: Search) -> None:
    (hits,) = whole_split.find([Query(text="红色的花")], top=4)
    found = site.found(q="红色的花", top="4")
    assert [(one["id"], one["row"]) for one in found] == [(hit.id, hit.row) for hit in hits]
    assert [one["score"] for one in found] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    with urlopen(f"http://{site.own}/?{urlencode({'q': '红色的花', 'top': 4})}", timeout=60) as answer:
        page = answer.read().decode()
    assert "Images for “红色的花”" in page
    assert page.count("<li>") == 4
    for hit in hits:
        assert f'src="/picture/{hit.row}"' in page
        assert f"{hit.score:.3f}" in page


def test_items_and_captions(site: Site) -> None:
    assert len(site.found(like="image:2", top="100")) == NUM_IMAGES - 1
    texts = site.found(like="image:2", find="texts", top="100")
    assert len(texts) == NUM_TEXTS
    assert all(one["text"] for one in texts)
    page = site.ask("/?like=text:1&find=texts&top=3").body.decode()
    assert str(site.found(like="text:1", find="texts")[0]["text"]) in page


def test_an_uploaded_image_finds_itself(site: Site) -> None:
    answer = site.upload(encoded_image(6), path="/upload?find=images&top=3")
    assert answer.status == 303
    to = answer.headers["location"]
    assert to.startswith("/?find=images&top=3&upload=")
    page = site.ask(to).body.decode()
    assert "the same file" in page
    first, second, *_ = site.found(upload=to.rpartition("=")[2], top="3")
    assert (first["id"], first["is_duplicate"], second["is_duplicate"]) == ("img6", True, False)
    shown = site.ask(f"/upload/{to.rpartition('=')[2]}")
    assert Image.open(io.BytesIO(shown.body)).size == (40, 32)


def test_raw_bytes_are_taken_too_and_line_breaks_in_them_are_kept(site: Site) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (3, 3), (13, 10, 13)).save(stream, "BMP")  # bytes that are CR and LF
    for answer in (
        site.ask("/upload", method="POST", body=stream.getvalue(), Content_Type="image/bmp"),
        site.upload(stream.getvalue()),
    ):
        assert answer.status == 303
        assert site.server.uploads[answer.headers["location"].rpartition("=")[2]] == stream.getvalue()


def test_old_uploads_are_forgotten(site: Site) -> None:
    first = site.upload(encoded_image(200)).headers["location"]
    for number in range(module.NUM_UPLOADS):
        site.upload(encoded_image(201 + number))
    assert len(site.server.uploads) == module.NUM_UPLOADS
    answer = site.ask(first)
    assert answer.status == 404
    assert "not here any more" in answer.body.decode()


def test_pictures_are_small_jpegs(site: Site) -> None:
    answer = site.ask("/picture/3")
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.body)).format == "JPEG"
    assert site.ask(f"/picture/{NUM_IMAGES}").status == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example", ""]
)
@pytest.mark.parametrize("path", ["/", "/picture/0", "/results.json?q=a", "/absent"])
def test_a_foreign_host_is_refused(site: Site, host: str, path: str) -> None:
    answer = site.ask(path, Host=host)
    assert answer.status == 403
    assert b"alone" in answer.body
    assert len(answer.body) < 100


def test_localhost_is_our_name_too(site: Site) -> None:
    assert site.ask("/", Host=f"localhost:{site.server.port}").status == 200


def test_two_hosts_are_none(site: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.server.port, timeout=60)
    connection.putrequest("GET", "/", skip_host=True)
    connection.putheader("Host", site.own)
    connection.putheader("Host", "evil.example")
    connection.endheaders()
    assert connection.getresponse().status == 403
    connection.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_other_pages_cannot_send_images(site: Site, headers: dict[str, str]) -> None:
    assert site.upload(encoded_image(1), **headers).status == 403
    assert site.upload(encoded_image(1), Origin=f"http://{site.own}", Sec_Fetch_Site="same-origin").status == 303


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/picture/../../../etc/passwd",
        "/picture/%2e%2e%2fetc%2fpasswd",
        "/picture/..%5c..%5cetc",
        "//etc/passwd",
        "/style.css/../search.py",
        "/picture/-1",
        "/picture/1.png",
        "/picture/٣",
        "/upload/../picture/1",
        "/search.css",
        "/index.json",
    ],
)
def test_no_path_leads_to_the_disk(site: Site, path: str) -> None:
    answer = site.ask(quote(path, safe="/%.\\"))
    assert answer.status == 404
    assert b"root:" not in answer.body
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("like=image:99", 404, "There is no item"),
        ("like=image:-1", 404, "There is no item"),
        ("like=audio:1", 404, "There is no item"),
        ("find=sounds", 400, "find is"),
        ("q=a&top=0", 400, "top is"),
        ("q=a&top=99999999999999999999999", 400, "top is"),
        ("q=a&top=0000000011999999", 400, "top is"),
        ("q=a&top=" + "0" * 5000 + "1", 400, "top is"),
        ("q=a&top=x", 400, "top is"),
        ("q=" + "a" * 1001, 400, "The text has 1001 characters"),
        ("upload=00", 404, "not here any more"),
    ],
)
def test_bad_questions_are_answered_on_the_page(site: Site, query: str, status: int, message: str) -> None:
    answer = site.ask(f"/?{query}")
    assert answer.status == status
    assert message in answer.body.decode()
    assert 'role="alert"' in answer.body.decode()
    assert site.ask(f"/results.json?{query}").status == status


@pytest.mark.parametrize("query", ["", "&" * 100, "q=%ff%fe", "q=" + quote("\x00\x1b[2J"), "a=1&" * 50, "q=%20%20"])
def test_odd_questions_break_nothing(site: Site, query: str) -> None:
    answer = site.ask(f"/?{query}")
    assert answer.status == 200
    assert b"\x1b" not in answer.body


def test_bad_uploads(site: Site) -> None:
    assert "can't be read as an image" in site.upload(b"no image").body.decode()
    assert site.upload(encoded_image(3)[:200]).status == 400
    assert site.ask("/upload", method="POST", body=b"x", Content_Type="text/plain").status == 415
    assert site.ask("/upload", method="POST", body=b"x", Content_Type="multipart/form-data; boundary=y").status == 400
    assert site.ask("/upload", method="POST", body=b"x", Content_Type="multipart/form-data").status == 415
    assert site.ask("/", method="POST", body=b"x", Content_Type="image/png").status == 404
    too_long = str(module.MAX_UPLOAD + 1)
    assert site.ask("/upload", method="POST", Content_Length=too_long, Content_Type="image/png").status == 413
    assert site.ask("/upload", method="POST", Content_Length="-5", Content_Type="image/png").status == 411
    assert site.ask("/upload", method="POST", Content_Length="9" * 5000, Content_Type="image/png").status == 413


@pytest.mark.parametrize("method", ["DELETE", "OPTIONS", "PATCH", "PUT"])
def test_other_methods_are_named(site: Site, method: str) -> None:
    answer = site.ask("/results.json?q=a", method=method, body=b"x")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, POST")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_head_is_get_without_its_body(site: Site) -> None:
    for path in ("/", "/picture/0", "/absent"):
        get, head = site.ask(path), site.ask(path, method="HEAD")
        assert (head.status, head.headers["content-type"], head.body) == (get.status, get.headers["content-type"], b"")
    assert (
        site.ask("/style.css", method="HEAD").headers["content-length"]
        == site.ask("/style.css").headers["content-length"]
    )


def test_an_address_that_is_none_is_refused_in_words(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    assert site.ask("http://[/").status == 400
    assert site.ask("/" + "a" * 70_000).status == 414
    assert capfd.readouterr().err == ""


def test_headers_let_nothing_else_in(site: Site) -> None:
    for path in ("/", "/picture/0", "/absent", "/style.css", "/script.js"):
        headers = site.ask(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.labels: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.found += [value for name, value in attrs if name in ("src", "href", "action") and value is not None]
        if tag == "img":
            self.labels.append(named)


def test_every_link_of_the_pages_works_and_is_ours(site: Site) -> None:
    for path in ("/", "/?q=a&top=2", "/?like=image:1&top=2", "/?like=text:3&find=texts&top=2", "/?like=text:3&top=2"):
        links = Links()
        links.feed(site.ask(path).body.decode())
        for link in links.found:
            assert link.startswith(("/", "#", "data:,")) and not link.startswith("//")
            if link.startswith("/") and not link.startswith("/upload?"):
                assert site.ask(link).status == 200, link
        assert all("alt" in image for image in links.labels)
    style = site.ask("/style.css").body.decode() + site.ask("/script.js").body.decode()
    assert not re.search(r"https?:|@import|url\(", style)


def test_names_are_shown_and_never_interpreted(exported: str, tmp_path: Path) -> None:
    odd = "<script>alert(1)<⁄script>\u202e&amp;.png"
    write_images(tmp_path / "photos", {odd: encoded_image(1), "b.png": encoded_image(2)})
    with open_search(exported, Asked(images=str(tmp_path / "photos")), show_progress=False) as search:
        for site in running(search):
            answer = site.ask("/?" + urlencode({"q": '"><script>x</script>'}))
            page = answer.body.decode()
            assert "<script>alert" not in page and "<script>x" not in page and "\u202e" not in page
            assert "&lt;script&gt;alert(1)" in page and "\\u202e&amp;amp;.png" in page
            assert "find=texts" not in page
            (tmp_path / "photos" / "b.png").unlink()  # a picture that goes away is one that is missing, not an error
            assert {site.ask(f"/picture/{row}").status for row in range(2)} == {200, 404}
            assert site.ask("/?like=image:0").status == 200


def test_it_listens_on_this_machine_alone(site: Site) -> None:
    assert site.server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken(site: Site, whole_split: Search) -> None:
    with pytest.raises(UserError, match=rf"--port: 127\.0\.0\.1:{site.server.port} can't be listened on"):
        SearchServer(whole_split, port=site.server.port, top=10)


def test_ctrl_c_ends_it(
    whole_split: Search, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(server: SearchServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SearchServer, "serve_forever", interrupted)
    serve(whole_split, port=0, top=10)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ \(Ctrl-C ends it\)\nended\n", capsys.readouterr().out)


def test_addresses_keep_what_was_asked() -> None:
    assert Asking("image", 20, text="a b").address() == "/?find=images&top=20&q=a+b"
    assert Asking("text", 5, item=("image", 3)).address() == "/?find=texts&top=5&like=image%3A3"
    assert Request("http://x" + Asking("image", 1, upload="ab").address()).selector == "/?find=images&top=1&upload=ab"
