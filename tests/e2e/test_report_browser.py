# SPDX-License-Identifier: GPL-3.0-or-later
"""The report in a real browser: it is whole, asks nobody for anything, and nothing overflows."""

from __future__ import annotations

import http.server
import json
import pathlib
import re
import shutil
import subprocess
import threading
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.plugin_utils import _report
from tests.support import synthetic as syn

#: `make setup-dev` installs it; where it is missing the tests fail and name it.
CHROMIUM: t.Final = shutil.which("chromium-browser") or "chromium"
FLAGS: t.Final = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-default-apps",
]

#: Looks at the page as it is laid out and leaves what it saw in the title.
PROBE: t.Final = """
<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("main *")].filter(
    (e) => !e.closest(".scroll") && !e.closest("svg") && e.getBoundingClientRect().right > innerWidth + 1);
  const cut = [...document.querySelectorAll("svg")].flatMap((svg) => {
    const box = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text")].filter((e) => {
      const r = e.getBoundingClientRect();
      return r.left < box.left - 2 || r.right > box.right + 2 || r.top < box.top - 2 || r.bottom > box.bottom + 2;
    });
  });
  const small = [...document.querySelectorAll("svg")].filter((e) => e.getBoundingClientRect().height < 60);
  document.title = JSON.stringify({
    wide: wide.map((e) => e.outerHTML.slice(0, 80)), cut: cut.map((e) => e.textContent), small: small.length,
    svgs: document.querySelectorAll("svg").length, rows: document.querySelectorAll("[data-trial]").length,
    verdict: document.querySelector("#verdict strong").textContent,
    ink: getComputedStyle(document.body).color, paper: getComputedStyle(document.body).backgroundColor,
    fetched: performance.getEntriesByType("resource").map((e) => e.name),
  });
});
</script>
"""


@pytest.fixture
def server(tmp_path: pathlib.Path) -> t.Iterator[tuple[str, list[str]]]:
    """An HTTP server on loopback for `tmp_path`: its address, and every path that it is asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: t.Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, format: str, *args: t.Any) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()
        thread.join()


def chromium(profile: pathlib.Path, *args: str) -> str:
    """What Chromium prints. No name resolves in it, so that it can reach nothing but loopback addresses."""
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    command = [CHROMIUM, *FLAGS, rules, f"--user-data-dir={profile}", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def look(tmp_path: pathlib.Path, address: str, plan: t.Any, objects: syn.Objects, *args: str) -> dict[str, t.Any]:
    """What the browser makes of the report of `objects`; a picture of it is left in `tmp_path`."""
    results = _report.load(syn.results(tmp_path / "results", plan, objects))
    page = _report.render(results)
    _report.write(results, page)
    # The page's own policy forbids scripts: the probe goes into a copy without it.
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    assert policy.search(page)
    (tmp_path / "probe.html").write_text(policy.sub("", page).replace("</body>", f"{PROBE}</body>"))
    (tmp_path / "report.html").write_text(page)
    dom = chromium(tmp_path / "profile", *args, "--dump-dom", "--virtual-time-budget=5000", f"{address}/probe.html")
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    assert "</html>" in dom
    picture = tmp_path / "report.png"
    chromium(tmp_path / "profile", *args, f"--screenshot={picture}", f"{address}/report.html")
    assert picture.stat().st_size > 10_000
    return t.cast(
        "dict[str, t.Any]", json.loads(title[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    )


def broken(plan: t.Any) -> syn.Objects:
    ids = [trial["trial_id"] for trial in plan["trials"]]
    objects = {key: body for key, body in syn.run_objects(plan).items() if ids[2] not in key and ids[3] not in key}
    del objects[f"trials/{ids[0]}/1/party-1/stdout"]
    return objects | syn.aborted(plan["trials"][2], "party-2", at=syn.T0 + 6.2)


def shaped(plan: t.Any) -> syn.Objects:
    """A run whose network is off between some pairs; with a host that measured nothing."""
    objects = syn.run_objects(plan)
    off = {("party-0", "party-1"), ("party-2", "party-5")}
    syn.put_network(objects, plan, syn.measure(plan, off, silent=["party-4"]))
    return objects


LONG = {"a_rather_long_parameter_name": [f"{'x' * 50}{n}" for n in range(25)], "protocol": ["normal", "corrupted"]}


@pytest.mark.parametrize("width", [1200, 500])
@pytest.mark.parametrize(
    ("plan", "make", "verdict", "svgs"),
    [
        pytest.param(syn.plan(parties=8), syn.run_objects, "valid", 3, id="valid"),
        pytest.param(syn.plan(parties=8), broken, "invalid", 3, id="invalid"),
        pytest.param(syn.plan({}, 1), syn.run_objects, "valid", 3, id="one trial"),
        pytest.param(syn.shaped(syn.plan(parties=8)), shaped, "degraded", 4, id="network"),
        pytest.param(syn.plan(LONG, 4, parties=8), syn.run_objects, "valid", 3, id="200 trials with long names"),
    ],
)
def test_layout(
    tmp_path: pathlib.Path,
    server: tuple[str, list[str]],
    plan: t.Any,
    make: t.Callable[[t.Any], syn.Objects],
    verdict: str,
    svgs: int,
    width: int,
) -> None:
    address, asked = server
    seen = look(tmp_path, address, plan, make(plan), f"--window-size={width},2000")
    assert (seen["verdict"], seen["svgs"], seen["rows"]) == (verdict, svgs, len(plan["trials"]))
    assert (seen["wide"], seen["cut"], seen["small"]) == ([], [], 0)
    # A favicon is the browser's own idea; nothing else is asked for, of us or of anybody.
    assert set(asked) <= {"/probe.html", "/report.html", "/favicon.ico"}
    assert seen["fetched"] == []


def test_dark(tmp_path: pathlib.Path, server: tuple[str, list[str]]) -> None:
    plan = syn.plan()
    objects = syn.run_objects(plan)
    light = look(tmp_path, server[0], plan, objects)
    dark = look(tmp_path, server[0], plan, objects, "--blink-settings=preferredColorScheme=0")

    def brightness(color: str) -> int:
        return sum(map(int, re.findall(r"\d+", color)[:3]))

    assert brightness(light["paper"]) - brightness(light["ink"]) > 400
    assert brightness(dark["ink"]) - brightness(dark["paper"]) > 400
