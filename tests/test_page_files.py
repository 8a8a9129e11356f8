"""The page as it is served: one file, nothing from elsewhere, and nothing else may run in it."""

import base64
import hashlib
import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from serving import running

from mlx_phi4.server.page import MARKDOWN_LIBRARY, SOURCES, joined

MOST_LINES = 220  # of a script
SCRIPTS = sorted(path for path in SOURCES.glob("*.js") if path.name != MARKDOWN_LIBRARY)


@pytest.fixture(scope="module")
def server():
    with running(api_key="secret", max_body=1234) as here:
        yield here


def test_the_page_needs_no_key_and_what_it_calls_does(server):
    page = server.http.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert '<meta name="max-body" content="1234">' in page.text and "{{" not in page.text
    assert server.http.get("/v1/models").status_code == 401
    assert server.http.head("/").status_code == 200 and server.http.post("/").status_code == 405
    again = server.http.get("/", headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert server.http.get("/", headers={"host": "example.org"}).status_code == 403


def test_only_the_page_s_own_scripts_run(server):
    page = server.http.get("/")
    policy = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'" and policy["require-trusted-types-for"] == "'script'"
    assert not re.search(r"unsafe|\*|https?:|strict-dynamic", page.headers["content-security-policy"])
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page.text, re.DOTALL)
    assert policy["script-src"].split() == [*map(source, scripts), "blob:"] and len(scripts) == 2
    (style,) = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)
    assert policy["style-src"] == source(style)
    assert not re.search(r"<[^>]+\s(on\w+|style)=", page.text.replace(scripts[0], "").replace(scripts[1], ""))
    assert page.headers["x-content-type-options"] == "nosniff" and page.headers["referrer-policy"] == "no-referrer"


def source(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_nothing_comes_from_another_host():
    for path in SOURCES.iterdir():
        if path.name in (MARKDOWN_LIBRARY, "marked.LICENSE"):
            continue
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", path.read_text(encoding="utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path  # a name, not an address
    assert "sourceMappingURL" not in joined("main.js")


def test_scripts_are_one_scope_in_order():
    """Each name once in all scripts, each script after those that it takes something from, and all of it taken."""
    text, seen = joined("main.js"), {}
    for path in SCRIPTS:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= MOST_LINES and max(map(len, lines)) <= 120 and lines[0].startswith("// "), path
        for line in lines:
            if found := re.match(r"(?:export )?(?:async )?(?:function\*?|const|let|class) (\w+)", line):
                assert seen.setdefault(found[1], path) == path, found[1]
    assert re.findall(r"^// ([\w-]+\.js)$", text, re.MULTILINE)[-1] == "main.js"
    assert sorted(re.findall(r"^// ([\w-]+\.js)$", text, re.MULTILINE)) == [path.name for path in SCRIPTS]
    assert not re.search(r"^(import|export)\b", text, re.MULTILINE)
    for path in SCRIPTS:
        code = path.read_text(encoding="utf-8")
        for names, other in re.findall(r'^import \{([^}]*)\} from "\./([\w-]+\.js)";$', code, re.MULTILINE):
            for name in filter(None, map(str.strip, names.split(","))):
                exported = rf"^export (?:async )?(?:function\*?|const|let|class) {name}\b"
                assert re.search(exported, (SOURCES / other).read_text(encoding="utf-8"), re.MULTILINE), (path, name)
                assert len(re.findall(rf"\b{name}\b", code)) > 1, f"{path.name} does not use {name}"


def test_no_script_makes_markup_of_a_text():
    for path in SCRIPTS:
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", path.read_text()), path


def test_the_files_are_in_the_package():
    root = Path(__file__).parents[1]
    (patterns,) = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"].values()
    for path in SOURCES.iterdir():
        assert any(fnmatch(path.relative_to(root / "mlx_phi4").as_posix(), pattern) for pattern in patterns), path


def test_answers_say_their_mode_and_adapter(server):
    body = {"model": "phi4-tiny:speech", "messages": [{"role": "user", "content": "What is 27 + 45?"}]}
    key = {"authorization": "Bearer secret"}
    for more in ({}, {"stream": True}):
        headers = server.http.post("/v1/chat/completions", content=json.dumps(body | more), headers=key).headers
        assert (headers["x-phi4-mode"], headers["x-phi4-adapter"]) == ("text", "speech")
