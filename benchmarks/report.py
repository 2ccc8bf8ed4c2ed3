"""Tables on the terminal, figures as JSON, and a picture of the ratios."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from . import picture
from .measure import Quartiles, Result
from .peers import on_cpu

Draw = Callable[[Path, str, Mapping[str, list[Result]]], None]

# --- the computer ------------------------------------------------------------------------------------


def computer() -> str:
    """The processor and its cores, or the accelerator."""
    return f"{_processor()}, {os.cpu_count()} cores" if on_cpu() else jax.devices()[0].device_kind


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def versions():
    """The versions of the compared libraries; None for those that are not installed."""
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    names = ("jax", "jaxlib", "numpy", "optax", "torch", "rbms", "adabmdca", "scikit-learn")
    return {"python": platform.python_version()} | {name: installed.get(name) for name in names}


# --- tables ------------------------------------------------------------------------------------------


def table(result: Result) -> str:
    """A line for each variant: its time, and its ratio to each peer with the quartiles."""
    peers = list(dict.fromkeys(peer for ratios in result.ratios.values() for peer in ratios))
    rows = [["", "time", *(f"over {peer}" for peer in peers)]]
    for name, seconds in result.seconds.items():
        ratios = result.ratios[name] if name not in peers else {}
        rows.append([name, _time(seconds), *(_ratio(ratios.get(peer)) for peer in peers)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    figures = [f"{name}: {value:.4g}" for name, value in result.figures.items()]
    rounds = f" ({result.rounds} rounds)" if result.rounds else ""
    return "\n  ".join([result.title + rounds, *(lines if result.seconds else []), *figures])


def _time(seconds: Quartiles) -> str:
    unit, size = next((u for u in (("s", 1), ("ms", 1e-3)) if seconds.median >= u[1]), ("µs", 1e-6))
    return f"{seconds.median / size:.3g} {unit} [{seconds.low / size:.3g} {seconds.high / size:.3g}]"


def _ratio(ratio: Quartiles | None) -> str:
    return f"{ratio.median:.3g} [{ratio.low:.3g} {ratio.high:.3g}]" if ratio else ""


def heading() -> str:
    """The machine, the versions, and the missing peers."""
    found = versions()
    lines = [computer(), ", ".join(f"{name} {version}" for name, version in found.items() if version)]
    if missing := [name for name, version in found.items() if not version]:
        lines.append(f"not installed and skipped: {', '.join(missing)}")
    if not on_cpu():
        lines.append("skipped on an accelerator, because they run on the CPU here: numpy, torch and scikit-learn")
    return "\n".join(lines)


# --- files -------------------------------------------------------------------------------------------


def keep(results: Mapping[str, list[Result]], folder: Path, suffix: str = "", draw: Draw = picture.save) -> list[Path]:
    """Write the figures and their picture to files named after the machine."""
    folder.mkdir(exist_ok=True)
    figures = {
        "machine": computer(),
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "quartiles": "low, median and high over the rounds",
        "parts": {part: [_as_json(result) for result in of_part] for part, of_part in results.items()},
    }
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    name = re.sub(r"[^a-z0-9]+", "-", computer().lower()) + suffix
    data, image = folder / f"{name}.json", folder / f"{name}.png"
    data.write_text(re.sub(r"\[\s+(\S+)\s+(\S+)\s+(\S+)\s+\]", r"[\1 \2 \3]", text) + "\n")
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
    draw(image, f"{computer()} · {figures['date']} · {libraries}", results)
    return [data, image]


def _as_json(result: Result):
    fields = {"seconds": result.seconds, "ratios": result.ratios, "figures": result.figures}
    return {"title": result.title, "rounds": result.rounds} | {name: _rounded(x) for name, x in fields.items()}


def _rounded(x):
    if isinstance(x, dict):
        return {name: _rounded(value) for name, value in x.items() if value != {}}
    return list(map(_rounded, x)) if isinstance(x, Quartiles) else float(f"{x:.4g}")
