"""The picture of the ratios: one step of Adam in all its forms, and everything else."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

from .measure import Quartiles, Result
from .trees import TREES

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

STEP = {  # how each form of a step is drawn
    "tree": ("o", "C0"),
    "packed moments": ("^", "C0"),
    "packed parameters": ("s", "C0"),
    "packed": ("D", "C0"),
    "torch, 1 thread": ("4", "C1"),
    "torch, 2 threads": ("2", "C1"),
    "numpy": ("x", "0.5"),
}
PEERS = {
    "optax": "C2",
    "scikit-learn": "C1",
    "numpy": "0.5",
    "paysage": "C4",
    "constant": "C5",
    "bare": "C6",
    "rbms": "C3",
    "products": "black",
    "adabmDCA": "C9",
}
OTHER_PARTS = (
    "training",
    "fifty",
    "compile",
    "bfloat16",
    "schedules",
    "wrappers",
    "shim",
    "rbm",
    "trainers",
    "potts",
    "reporting",
)


def save(path: Path, title: str, results: Mapping[str, list[Result]]) -> None:
    """Draw the results of all parts."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 11), layout="constrained", width_ratios=(1, 0.9))
    figure.suptitle(f"{title}\nmedians and quartiles of ratios of times measured alternately; left of 1 is faster")
    _draw_steps(left, results)
    _draw_others(right, results)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_steps(axes, results):
    rows = [name for name in TREES if name in results]
    for y, name in enumerate(rows):
        adam = [result for result in results[name] if result.title.startswith("adam")]
        # Ours from the first comparison, that with optax alone.
        ratios = {variant: over["optax"] for r in adam[::-1] for variant, over in r.ratios.items() if "optax" in over}
        for offset, (variant, (marker, color)) in enumerate(STEP.items()):
            if variant in ratios:
                _point(axes, ratios[variant], y + 0.11 * (offset - 3), marker, color, variant)
        if "floor" in ratios:
            x, half = ratios["floor"].median, 0.44
            axes.plot([x, x], [y - half, y + half], color="C3", linewidth=2, label="floor: memory bandwidth")
    axes.set_title("One step of Adam: time over optax's")
    places = [(y - 0.5, y + 0.5) for y in range(len(rows))]
    _finish(axes, [f"{name}\n{TREES[name][0]}" for name in rows], places, least=0.015, most=8)


def _draw_others(axes, results):
    labels, places, bottom = [], [], 0.0
    for part in OTHER_PARTS:
        for result in results.get(part, []):
            for variant, over in result.ratios.items():
                over = {peer.partition(",")[0]: ratio for peer, ratio in over.items()}
                shown = [peer for peer in PEERS if peer in over]
                if variant == "floor" or variant.partition(",")[0] in PEERS or not shown:
                    continue
                for line, peer in enumerate(shown):
                    _point(axes, over[peer], bottom + line + 0.5, "o", PEERS[peer], f"over {peer}")
                labels.append(f"{result.title} · {variant}".removeprefix("adam, ").removeprefix("adam with "))
                places.append((bottom, bottom := bottom + len(shown)))
    axes.set_title("Everything else: our time over a peer's")
    _finish(axes, labels, places, least=0.0002, most=40)


def _point(axes, ratio: Quartiles, y, marker, color, label):
    axes.plot([ratio.low, ratio.high], [y, y], color=color, linewidth=1)
    axes.plot(ratio.median, y, marker=marker, color=color, markersize=5, linestyle="none", label=label)
    style = {"textcoords": "offset points", "va": "center", "fontsize": 7, "color": color, "annotation_clip": True}
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
    axes.annotate(f"{ratio.median:.3g}", (max(ratio), y), (5, 0), bbox=behind, **style)


def _legend(axes):
    """Handles and labels, each label once."""
    once = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(once.values()), list(once.keys())


def _finish(axes, labels, places, least, most):
    """Add scales, a labelled band for each place (its top and bottom), and the legend below."""
    axes.axvline(1, color="0.2", linewidth=1, zorder=0)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, least), min(high * 1.8, most))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most / least < 1000 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([(top + bottom) / 2 for top, bottom in places], labels, fontsize=8)
    axes.tick_params(left=False)
    axes.set_ylim(max((bottom for _, bottom in places), default=1), min((top for top, _ in places), default=0))
    for top, bottom in places[1::2]:
        axes.axhspan(top, bottom, color="0.96", zorder=-1)
    axes.legend(
        *_legend(axes),
        loc="upper right",
        bbox_to_anchor=(1, -0.03),
        ncols=3,
        frameon=False,
        fontsize=9,
        columnspacing=1.2,
        handletextpad=0.4,
    )
