"""The page of the server in a browser, in windows of both widths: it moves, it can be pushed, and it draws what is imagined."""

import http.client
import http.server
import json
import queue
import shutil
import subprocess
import threading

import pytest

from . import exports
from .processes import Process

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="there is no Chromium here; on Debian `apt-get install chromium` brings one"
)
WIDTHS = (1280, 360)
FLAGS = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
FLAGS += " --disable-sync --disable-dev-shm-usage --window-size=1700,1000"
# What a person would do, and what can be seen after it.
LOOK = """<script>
const complaints = [];
addEventListener("error", event => complaints.push(event.message));
(async () => {
  const wait = async condition => {
    for (let turn = 0; turn < 800 && !condition(); turn += 1) await new Promise(done => setTimeout(done, 50));
    return Boolean(condition());
  };
  const moving = await wait(() => steps > 12 && imagined);
  find("pause").click();
  await wait(() => !running);
  const before = pole[3];
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  const byKey = pole[3] - before, left = world.getBoundingClientRect().left;
  world.dispatchEvent(new PointerEvent("pointerdown", { clientX: left + 5, bubbles: true }));
  const byTouch = pole[3] - before - byKey;
  find("right").click();
  const byButton = pole[3] - before - byKey - byTouch;
  const colours = canvas => {
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set(new Uint32Array(data.buffer)).size;
  };
  const stood = steps;
  find("pause").click();
  const again = await wait(() => steps > stood + 3);
  const told = {
    moving, again, byKey, byTouch, byButton, members, imagined: imagined.length, complaints,
    world: colours(world), fan: colours(fan), scale: colours(find("scale")),
    page: document.documentElement.scrollWidth, width: innerWidth,
    small: [...document.querySelectorAll("#play button")].filter(each => each.offsetHeight < 44).length,
    problem: problem.textContent, served: find("served").textContent,
  };
  paused = true;
  await parent.fetch("/seen", { method: "POST", body: JSON.stringify(told) });
})();
</script>"""


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory):
    """What a script within the page saw of it, by the width of its window."""
    process = Process(exports.write_export(tmp_path_factory.mktemp("served") / "export", preset="cartpole_batch"))
    seen = queue.Queue()
    frames = "".join(f'<iframe src="/frame" style="border:0;width:{width}px;height:900px"></iframe>' for width in WIDTHS)
    both = f'<!doctype html><meta charset="utf-8"><div style="display:flex">{frames}</div>'.encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        """Hands requests on to the server, and puts the script into its page."""

        protocol_version = "HTTP/1.1"

        def handed_on(self, path, body=None):
            with process.connect() as connection:
                headers = {} if body is None else {"content-type": self.headers["content-type"]}
                connection.request(self.command, path, body, headers)
                answer = connection.getresponse()
                return answer.status, answer.headers["content-type"], answer.read()

        def tell(self, status, kind, content):
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            if self.path == "/":
                self.tell(200, "text/html", both)
            elif self.path == "/frame":
                status, kind, content = self.handed_on("/")
                self.tell(status, kind, content.replace(b"</body>", LOOK.encode() + b"</body>"))
            else:
                self.tell(*self.handed_on(self.path))

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/seen":
                seen.put(json.loads(body))
                self.tell(204, "text/plain", b"")
            else:
                self.tell(*self.handed_on(self.path, body))

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        profile = tmp_path_factory.mktemp("browser")
        words = [BROWSER, *FLAGS.split(), f"--user-data-dir={profile}", f"http://127.0.0.1:{server.server_address[1]}/"]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
            try:
                found = [seen.get(timeout=90) for _ in WIDTHS]
            finally:
                browser.terminate()
        server.shutdown()
    process.stop()
    return {told["width"]: told for told in found}


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_the_pole_moves_and_is_pushed_by_key_touch_and_button(looked_at, width):
    told = looked_at[width]
    assert told["moving"]
    assert told["again"]
    assert told["byKey"] == pytest.approx(0.6)
    assert told["byTouch"] == pytest.approx(-0.6)
    assert told["byButton"] == pytest.approx(0.6)
    assert (told["problem"], told["complaints"]) == ("", [])


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_its_window_and_draws_the_fan_in_colour(looked_at, width):
    told = looked_at[width]
    assert told["page"] <= width
    assert told["small"] == 0  # buttons that a finger would miss
    assert told["members"] == 2
    assert told["imagined"] > 1
    assert min(told["world"], told["fan"], told["scale"]) > 10  # colours
    assert told["served"].startswith("export: a policy for CartPole-v1 (")


def test_the_page_asks_no_other_host_for_anything(tmp_path):
    process = Process(exports.write_export(tmp_path / "export"))
    try:
        for path in ("/", "/docs", "/page/page.js", "/page/docs.js", "/page/page.css"):
            with process.connect() as connection:
                connection.request("GET", path)
                answer = connection.getresponse()
                text = answer.read().decode()
                assert answer.status == 200
                assert "default-src 'self'" in answer.headers["content-security-policy"]
                assert "http://" not in text
                assert "https://" not in text
        with process.connect() as connection:
            connection.request("GET", "/page/../app.py")
            assert connection.getresponse().status == http.client.NOT_FOUND
    finally:
        process.stop()
