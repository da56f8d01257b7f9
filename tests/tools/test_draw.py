"""``cortado draw``: places, SVG, pixels, and the page as a real browser runs it."""

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html import unescape
from itertools import combinations, pairwise

import numpy as np
import pytest
from cortado.nets.graph import State, graph
from cortado.nets.siamese import expanded_text
from cortado.nets.specs import path
from cortado.prototxt_like import SpecError, load, loads
from cortado.tools.cli import main
from cortado.tools.draw import Picture, draw
from cortado.tools.layout import Box, Edge, layout, spaced
from PIL import Image
from scipy.optimize import minimize
from shared import SHARED, needs_shared

SVG = "{http://www.w3.org/2000/svg}"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
EVIL = "</script><img src=x onerror=alert(1)>\"'&"
TINY = f"""
name: tiny & small
layer:
- {{name: x, type: Input, top: x, input_param: {{shape: {{dim: [1, 3, 8, 8]}}}}}}
- {{name: t, type: Input, top: t, input_param: {{shape: {{dim: [1, 2]}}}}}}
- siamese:
    input: {{data: [x, x]}}
    output: {{out: [a, b]}}
    layer:
    - {{name: conv, type: Convolution, bottom: data, top: conv,
       convolution_param: {{num_output: 4, kernel_size: 3, weight_filler: {{type: xavier}}}}}}
    - {{name: relu, type: ReLU, bottom: conv, top: conv}}
    - {{name: pool, type: Pooling, bottom: conv, top: out, pooling_param: {{kernel_size: 2}}}}
- {{name: {json.dumps(EVIL)}, type: Concat, bottom: [a, b], top: both}}
- {{name: ip, type: InnerProduct, bottom: both, top: ip, inner_product_param: {{num_output: 2}}}}
- {{name: label, type: Input, top: label, input_param: {{shape: {{dim: 1}}}},
   include: &measured {{stage: measured}}}}
- {{name: accuracy, type: Accuracy, bottom: [ip, label], top: accuracy, include: *measured}}
- {{name: loss, type: EuclideanLoss, bottom: [ip, t], top: loss}}
"""
UNKNOWN = """
layer { name: "x" type: "Teleport" top: "x" }
layer { name: "y" type: "ReLU" bottom: "x" top: "x" }
layer { name: "z" type: "Fold" bottom: "x" top: "z" fold_param { times: 3 } }
"""


def rectangles(picture):
    return [(box.x - box.width / 2, box.y, box.width, box.height) for box in picture.boxes]


def check_places(picture):
    """No box lies on another or outside; every edge leads down, from its tail to its head."""
    rows = rectangles(picture)
    for (x, y, width, height), (x2, y2, width2, height2) in combinations(rows, 2):
        apart = x + width <= x2 or x2 + width2 <= x or y + height <= y2 or y2 + height2 <= y
        assert apart
    for x, y, width, height in rows:
        assert x >= -1e-6
        assert y >= 0
        assert x + width <= picture.width + 1e-6
        assert y + height <= picture.height + 1e-6
    for edge in picture.edges:
        tail, head = picture.boxes[edge.tail], picture.boxes[edge.head]
        assert edge.route[0][1] == tail.y + tail.height
        assert edge.route[-1][1] == head.y
        assert abs(edge.route[0][0] - tail.x) <= tail.width / 2
        assert abs(edge.route[-1][0] - head.x) <= head.width / 2
        assert all(before[1] < after[1] for before, after in pairwise(edge.route))


def crossed(picture):
    """The pairs of an edge and a box that it runs through, straight past a rank."""
    for edge in picture.edges:
        for (x, y), (x2, y2) in pairwise(edge.route):
            for k, (left, top, width, height) in enumerate(rectangles(picture)):
                inside = left < x < left + width and y < top + height and y2 > top
                if x == x2 and inside and k not in (edge.tail, edge.head):
                    yield edge, k


@pytest.mark.parametrize("name", ["ucn_hn_st", "ucn_rn", "scnet_ag_plus"])
@pytest.mark.parametrize("stages", [(), ("deploy",)])
def test_twins_stand_side_by_side(name, stages):
    wired = graph(load(path(name)), State("TEST", 0, stages))
    picture = Picture.of(wired, {})
    check_places(picture)
    assert not list(crossed(picture))
    pairs = [(box, picture.boxes[box.twin_of]) for box in picture.boxes if box.twin_of is not None]
    twins = [node for node in wired.nodes if node.twin_of]
    in_place = [node for node in twins if node.in_place(0)]
    assert len(pairs) == len(twins) - len(in_place)
    first = pairs[0]
    for twin, box in pairs:
        assert twin.y == box.y
        assert twin.x - box.x == pytest.approx(first[0].x - first[1].x)
    (_, _, right, _), (left, *_) = picture.twins()
    assert right < left
    inside = {id(box) for pair in pairs for box in pair}
    for box in picture.boxes:
        if id(box) not in inside and first[1].y <= box.y <= pairs[-1][1].y:
            assert right < box.x - box.width / 2
            assert box.x + box.width / 2 < left


def test_twins_are_found_by_shared_parameters_and_suffix():
    message = loads(expanded_text(load(path("ucn_hn"))))
    for layer in message.all("layer"):
        layer.value.fields = [f for f in layer.value.fields if f.name != "twin_of"]
    picture = Picture.of(graph(message, State("TEST", 0, ("deploy",))), {})
    check_places(picture)
    names = [picture.details[rows[0].node]["name"] for rows in picture.rows]
    pairs = {
        names[k]: names[box.twin_of] for k, box in enumerate(picture.boxes) if box.twin_of is not None
    }
    assert pairs["pool1/3x3_s2_p"] == "pool1/3x3_s2"
    assert "image2" not in pairs


@pytest.mark.parametrize("said", ["param: [{name: w}]", "twin_of: ip"])
def test_a_twin_that_reads_the_first_is_none(said):
    text = (
        "layer:\n- {name: x, type: Input, top: x}\n"
        "- {name: ip, type: Odd, bottom: x, top: y, param: [{name: w}]}\n"
        f"- {{name: ip_b, type: Odd, bottom: y, top: z, {said}}}\n"
    )
    picture = Picture.of(graph(loads(text)), {})
    check_places(picture)
    assert not list(picture.twins())


@needs_shared
@pytest.mark.parametrize("net", ["bvlc_googlenet", "bvlc_alexnet"])
def test_nets_of_caffe(net):
    spec = SHARED / f"data/prototxts/bvlc/{net}/train_val.prototxt"
    picture = Picture.of(graph(load(spec), State("TRAIN")), {})
    check_places(picture)
    assert not list(crossed(picture))
    kinds = {row.name: row.kind for rows in picture.rows for row in rows}
    assert kinds["data"] == "data"
    assert "loss" in kinds.values()


def test_layout_of_nothing_and_of_one():
    assert layout([], []) == (0, 0)
    (box,) = boxes = [Box(30, 20)]
    assert layout(boxes, []) == (30, 20)
    assert (box.x, box.y) == (15, 0)


def test_a_long_edge_goes_past_what_is_between():
    boxes = [Box(60, 20) for _ in range(5)]
    edges = [Edge(i, i + 1) for i in range(4)] + [Edge(0, 4, "long")]
    layout(boxes, edges)
    assert len({box.x for box in boxes[1:4]}) == 1
    straight = [(a, b) for a, b in pairwise(edges[-1].route) if a[0] == b[0]]
    assert all(abs(x - boxes[2].x) > 30 for (x, _), _ in straight)
    assert any(b[1] - a[1] >= 20 for a, b in straight)


def test_spaced_is_the_least_squares_solution():
    rng = np.random.default_rng(0)
    for _ in range(5):
        wanted, weights, apart = rng.normal(0, 3, 6), rng.uniform(0.5, 2, 6), rng.uniform(0, 2, 5)
        ours = np.array(spaced(list(wanted), list(weights), list(apart)))
        assert (np.diff(ours) >= apart - 1e-9).all()
        best = minimize(
            lambda x, w=weights, d=wanted: (w * (x - d) ** 2).sum(),
            np.cumsum([0, *apart]),
            constraints={"type": "ineq", "fun": lambda x, a=apart: np.diff(x) - a},
        )
        assert ours == pytest.approx(best.x, abs=1e-3)


def groups(root):
    """The layers of a drawing: the title, class and texts of each."""
    found = {}
    for group in root.iter(f"{SVG}g"):
        if "data-layer" in group.attrib:
            texts = [text.text for text in group.findall(f"{SVG}text")]
            chain = group.find(f"{SVG}g[@class='shares']/{SVG}title")
            shares = "" if chain is None else chain.text
            found[group.find(f"{SVG}title").text] = (group.attrib["class"], texts, shares)
    return found


def test_svg(tmp_path):
    file = tmp_path / "net.svg"
    assert draw(loads(TINY), file, state=State("TEST", 0, ("measured",))) == ()
    root = ET.parse(file).getroot()
    layers = groups(root)
    assert layers["x"] == ("layer data", ["x", "Input", "1 x 3 x 8 x 8"], "")
    assert layers["conv"][1] == ["conv", "Convolution 4 k3", "1 x 4 x 6 x 6"]
    assert layers["relu_p"][:2] == ("layer plain", ["ReLU  relu_p"])
    assert layers["pool_p"][1][-1] == "b: 1 x 4 x 5 x 5"
    kinds = {name: kind.removeprefix("layer ") for name, (kind, *_) in layers.items()}
    assert [kinds[name] for name in ("conv_p", "pool_p", "ip", "loss", "accuracy")] == [
        *("learned", "plain", "learned", "loss", "metric")
    ]
    marked = {name: shares for name, (*_, shares) in layers.items() if shares}
    text = "shares its parameters with "
    assert marked == {"conv": text + "conv_p", "conv_p": text + "conv"}
    assert layers[EVIL][1][0] == EVIL
    edges = [e for e in root.iter(f"{SVG}path") if e.attrib.get("class") == "edge"]
    assert len(edges) == 2 + 2 + 2 + 1 + 4
    blobs = {e.find(f"{SVG}title").text for e in edges}
    assert blobs == {"x", "t", "label", "conv", "conv_p", "a", "b", "both", "ip"}


def test_unknown_layers_are_drawn_and_said(tmp_path, capfd):
    (tmp_path / "odd.prototxt").write_text(UNKNOWN)
    out = tmp_path / "odd.svg"
    with pytest.raises(SystemExit) as end:
        main(["draw", str(tmp_path / "odd.prototxt"), str(out)])
    assert not end.value.code
    assert 'unknown type "Teleport"' in capfd.readouterr().err
    layers = groups(ET.parse(out).getroot())
    assert layers["z"][1] == ["z", "Fold times=3"]
    assert layers["y"][1] == ["ReLU  y"]
    errors = draw(loads(UNKNOWN, notation="prototxt"), out)
    assert ['"Teleport"' in errors[0].message, '"Fold"' in errors[1].message] == [True, True]


def test_the_wiring_is_drawn_without_torch(tmp_path):
    code = (
        "import sys\nfrom cortado.tools.cli import cli\n"
        f"cli(args=['draw', {str(path('ucn_hn_st'))!r}, {str(tmp_path / 'net.html')!r}, '--no-shapes'],"
        " prog_name='cortado', standalone_mode=False)\n"
        "assert not {'torch', 'numpy', 'matplotlib'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "inception_4a/3x3_patches_p" in (tmp_path / "net.html").read_text(encoding="utf-8")


def test_png(tmp_path):
    file = tmp_path / "net.png"
    message = loads(TINY)
    draw(message, file)
    picture = Picture.of(graph(message), {})
    pixels = np.asarray(Image.open(file).convert("RGB"))
    assert pixels.shape[1] >= 2 * picture.width
    colors = {tuple(color) for color in pixels[::2, ::2].reshape(-1, 3)}
    assert {(0xDF, 0xF3, 0xE3), (0xDB, 0xE8, 0xFB), (0xF8, 0xD3, 0xD0)} <= colors


def test_a_graph_can_be_given(tmp_path):
    wired = graph(loads(TINY), State("TRAIN"))
    draw(wired, tmp_path / "a.svg")
    draw(loads(TINY), tmp_path / "b.svg", state=State("TRAIN"))
    assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()


def test_what_cannot_be_drawn(tmp_path, capfd):
    with pytest.raises(ValueError, match=r"ends in \.svg, \.png, \.html, got net\.gif"):
        draw(loads(TINY), "net.gif")
    broken = loads(TINY.replace("bottom: both", "bottom: bath"), name="broken.yaml")
    with pytest.raises(SpecError, match='reads "bath"'):
        draw(broken, tmp_path / "net.svg")
    with pytest.raises(SystemExit) as end:
        main(["draw", str(path("ucn_hn")), str(tmp_path / "net.pdf")])
    assert end.value.code == 2
    assert "OUT: expected a name that ends in" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_page_stands_by_itself(tmp_path):
    file = tmp_path / "net.html"
    draw(loads(TINY), file)
    text = file.read_text(encoding="utf-8")
    assert "{{" not in text
    assert EVIL not in text
    assert set(re.findall(r"https?://[^\"' <>]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<link|<img|@import|url\((?!#)|\bsrc\s*=", text.replace("src=x onerror", ""))
    data = re.search(r'<script type="application/json" id="layers">(.*?)</script>', text, re.DOTALL)
    layers = json.loads(data[1])
    assert layers[-3]["name"] == EVIL
    assert layers[2]["spec"].startswith("convolution_param:\n  num_output: 4\n  kernel_size: 3\n")


ACTIONS = """
<script>
const result = {}, at = { clientX: 300, clientY: 200, bubbles: true, cancelable: true };
const place = () => [scale, left, top_];
const layer = name => groups.get(layers.findIndex(l => l.name === name));
const names = mark => layers.filter((l, i) => groups.get(i).classList.contains(mark)).map(l => l.name);
const click = name => layer(name).dispatchEvent(new MouseEvent("click", at));
const key = (target, key) => target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
result.start = panel.innerText;
const [s, l, t] = place();
picture.dispatchEvent(new WheelEvent("wheel", { ...at, deltaY: -400 }));
result.zoom = scale / s;
result.still = [(300 - l) / s - (300 - left) / scale, (200 - t) / s - (200 - top_) / scale];
const before = place();
picture.dispatchEvent(new PointerEvent("pointerdown", { ...at, pointerId: 1 }));
const to = { clientX: 340, clientY: 190 };
window.dispatchEvent(new PointerEvent("pointermove", { ...at, ...to, pointerId: 1 }));
window.dispatchEvent(new PointerEvent("pointerup", { ...at, pointerId: 1 }));
result.drag = [left - before[1], top_ - before[2]];
click("conv");
result.ignored = names("chosen");
picture.dispatchEvent(new PointerEvent("pointerdown", { ...at, pointerId: 1 }));
window.dispatchEvent(new PointerEvent("pointerup", { ...at, pointerId: 1 }));
click("conv_p");
result.chosen = names("chosen");
result.shared = names("shared");
result.near = [...document.querySelectorAll(".near title")].map(title => title.textContent);
result.panel = panel.innerText;
result.address = location.hash;
panel.querySelector("a:nth-of-type(1)").click();
result.followed = names("chosen");
key(window, "/");
result.focus = document.activeElement.id;
find.value = "POOL";
find.dispatchEvent(new Event("input"));
result.found = names("found");
key(find, "Enter");
key(find, "Enter");
result.second = names("chosen");
result.count = count.textContent;
const box = layer("pool_p").getBoundingClientRect(), view = picture.getBoundingClientRect();
result.centre = [box.left + box.width / 2 - view.width / 2, box.top + box.height / 2 - view.height / 2];
key(find, "Escape");
key(window, "Escape");
result.cleared = [names("chosen"), names("found"), location.hash];
document.getElementById("fit").click();
const whole = document.getElementById("scene").getBoundingClientRect();
result.fits = whole.width <= view.width && whole.height <= view.height;
click(layers.at(-3).name);
result.evil = [panel.querySelector("h2").textContent, document.querySelectorAll("img").length];
const pre = document.createElement("pre");
pre.id = "result";
pre.textContent = JSON.stringify(result);
document.body.append(pre);
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian's package chromium)")
def test_the_page_in_a_browser(tmp_path):
    file = tmp_path / "net.html"
    draw(loads(TINY), file)
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("</body>", ACTIONS + "</body>"), encoding="utf-8")
    done = browse(file.as_uri(), tmp_path)
    assert "Uncaught" not in done.stderr
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    result = json.loads(unescape(found[1]))
    for line in ("tiny & small (phase TEST)", "layers\t11", "parameters\t514", "multiply-adds\t8,176"):
        assert line in result["start"]
    assert result["zoom"] == pytest.approx(np.e)
    assert result["still"] == pytest.approx([0, 0], abs=1e-6)
    assert result["drag"] == [40, -10]
    assert result["ignored"] == []  # the end of a drag is no click
    assert result["chosen"] == ["conv_p"]
    assert result["shared"] == ["conv"]
    assert sorted(result["near"]) == ["conv_p", "x"]
    for line in ("Convolution", "conv_p: 1 x 4 x 6 x 6", "3,888", "3 pixels", "kernel_size: 3"):
        assert line in result["panel"]
    assert result["address"] == "#conv_p"
    assert result["followed"] == ["x"]
    assert result["focus"] == "find"
    assert result["found"] == ["pool", "pool_p"]
    assert (result["second"], result["count"]) == (["pool_p"], "2 of 2")
    assert result["centre"] == pytest.approx([0, 0], abs=1)
    assert result["cleared"] == [[], [], ""]
    assert result["fits"]
    assert result["evil"] == [EVIL, 0]


def browse(address, folder):
    """The page's DOM after its scripts, as Chromium prints it, and its console."""
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,800")
    own = f"--user-data-dir={folder / 'profile'}"
    more = ("--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom")
    command = [CHROMIUM, *options, own, *more, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
