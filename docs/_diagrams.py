"""The diagrams of the site: `python docs/_diagrams.py` writes them to docs/pictures.

Each file works in light and in dark mode: boxes have white text on a dark fill, and everything else is a grey that
contrasts with white and with black.
"""

from html import escape
from pathlib import Path

PICTURES = Path(__file__).parent / "pictures"
BLUE, GREEN, BROWN, SLATE, GREY = "#2f6db3", "#2b7a4b", "#a3560f", "#5b6675", "#7b7b7b"
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"
 width="{width}" height="{height}" role="img">
<title>{title}</title>
<defs><marker id="head" markerWidth="6" markerHeight="6" refX="5" refY="3" orient="auto">
<path d="M0,0 L6,3 L0,6 z" fill="{grey}"/></marker></defs>
<g font-family="system-ui, 'Segoe UI', Helvetica, Arial, sans-serif" font-size="15" text-anchor="middle">
"""


def svg(title, width, height, *shapes):
    """The text of an SVG file with this title and these shapes, each on its own line."""
    return HEAD.format(title=title, width=width, height=height, grey=GREY) + "\n".join(shapes) + "\n</g>\n</svg>\n"


def label(x, y, *lines, fill=GREY):
    """Lines of text, centred at (x, y)."""
    first = y + 5 - 9.5 * (len(lines) - 1)
    return "".join(
        f'<text x="{x:g}" y="{first + 19 * i:g}" fill="{fill}">{escape(line)}</text>' for i, line in enumerate(lines)
    )


def box(x, y, width, height, fill, *lines):
    """A rounded box that contains lines of text; (x, y) is its upper left corner."""
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}"/>'
    return shape + label(x + width / 2, y + height / 2, *lines, fill="#fff")


def line(*points, end=""):
    """A line through the points."""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{GREY}" stroke-width="2"{end}/>'


def arrow(*points):
    """A line through the points, with an arrowhead at the last point."""
    return line(*points, end=' marker-end="url(#head)"')


def layers():
    """The folders of the package, from the highest layer to the lowest."""
    rows = [
        (GREEN, "public", "rbm, extend, packing, states;", "paysage: classic, optimizers, paysage_0_2"),
        (BLUE, "_train", "fit: epochs, history, early stopping,", "checkpoints, devices and processes"),
        (BLUE, "_ebm", "models, estimators, the centred gradient,", "log Z, mixing, metrics"),
        (BLUE, "_optim", "optimizers, chains, schedules, averages,", "groups of leaves, packing"),
        (SLATE, "_core", "pytrees whose fields are checked,", "batches, arrays on devices"),
    ]
    shapes = []
    for i, (fill, name, *text) in enumerate(rows):
        y = 5 + 66 * i
        shapes += [box(5, y, 110, 56, fill, name), box(125, y, 390, 56, fill, *text)]
    return svg("The layers of the package", 615, 335, *shapes, arrow((540, 20), (540, 315)), label(578, 167, "imports"))


def pcd():
    """One step of persistent contrastive divergence."""
    return svg(
        "One step of persistent contrastive divergence",
        720,
        250,
        box(5, 15, 125, 60, GREEN, "batch", "of data"),
        box(5, 130, 125, 60, BROWN, "chains"),
        box(170, 130, 125, 60, BROWN, "transition,", "k steps"),
        box(335, 15, 125, 60, GREEN, "mean of ∇E", "over data"),
        box(335, 130, 125, 60, BROWN, "mean of ∇E", "over chains"),
        box(500, 72, 85, 60, BLUE, "gradient", "g"),
        box(620, 72, 95, 60, BLUE, "optimizer", "θ ← θ + u"),
        arrow((130, 45), (335, 45)),
        arrow((130, 160), (170, 160)),
        arrow((295, 160), (335, 160)),
        arrow((460, 45), (480, 45), (480, 90), (500, 90)),
        arrow((460, 160), (480, 160), (480, 114), (500, 114)),
        label(492, 64, "+"),
        label(492, 143, "−"),
        arrow((585, 102), (620, 102)),
        arrow((232, 190), (232, 222), (67, 222), (67, 190)),
        label(150, 238, "kept for the next batch"),
    )


def run():
    """A run of `fit`: its epochs, the ways it can end, and how it resumes."""
    stages = [
        (BLUE, "epoch: one step", "for each batch"),
        (BLUE, "measure: metrics,", "early stopping"),
        (BLUE, "report: history,", "callback, checkpoint"),
    ]
    endings = [
        ("CONVERGED", "small updates"),
        ("NON_FINITE", "NaN: the last good epoch"),
        ("NOT_IMPROVING", "patience ran out: result.best"),
        ("STOPPED", "the callback returned True"),
        ("EPOCHS_EXHAUSTED", "all epochs were done"),
        ("INTERRUPTED", "an exception: exception.result"),
    ]
    shapes = [box(45, 10 + 92 * i, 180, 60, *stage) for i, stage in enumerate(stages)]
    shapes += [arrow((135, 70), (135, 102)), arrow((135, 162), (135, 194))]
    shapes += [arrow((45, 224), (22, 224), (22, 54), (45, 54)), label(88, 272, "next epoch")]
    for i, (name, text) in enumerate(endings):
        y = 5 + 45 * i
        shapes += [box(290, y, 180, 36, BROWN, name), label(607, y + 18, text)]
        shapes += [arrow((255, y + 18), (290, y + 18))]
    shapes += [line((255, 23), (255, 248)), *(line((225, y), (255, y)) for y in (40, 132, 224))]
    shapes += [box(290, 305, 445, 45, GREEN, "FitResult: parameters, state, history, outcome")]
    shapes += [
        arrow((512, 275), (512, 305)),
        arrow((290, 328), (8, 328), (8, 26), (45, 26)),
        label(180, 312, "resume="),
    ]
    return svg("A run of fit and its six endings", 740, 360, *shapes)


def devices():
    """A run over four devices."""
    shapes = []
    for i in range(4):
        x = 5 + 172 * i
        shapes += [label(x + 79, 14, f"device {i}")]
        shapes += [box(x, 30, 158, 42, GREEN, f"shard {i} of the data")]
        shapes += [box(x, 92, 158, 42, GREEN, "rows of the batch")]
        shapes += [box(x, 144, 158, 42, BROWN, "chains")]
        shapes += [arrow((x + 79, 72), (x + 79, 92)), arrow((x + 79, 186), (x + 79, 212))]
        shapes += [arrow((x + 79, 252), (x + 79, 278))]
        shapes += [box(x, 278, 158, 60, BLUE, "all parameters", "and moments")]
    shapes += [box(5, 212, 674, 40, SLATE, "gradient: both phases summed over the devices")]
    return svg("A run over four devices", 684, 345, *shapes)


DIAGRAMS = {"layers": layers, "pcd": pcd, "run": run, "devices": devices}

if __name__ == "__main__":
    for name, draw in DIAGRAMS.items():
        (PICTURES / f"{name}.svg").write_text(draw())
