"""Loader for the golden data in this folder. Needs numpy only."""

import json
import os

import numpy as np


def load(folder):
    """Return (manifest, {'optimizers': npz, 'edge': npz, 'memory': npz, 'magnitude': npz, 'schedulers': npz})."""
    with open(os.path.join(folder, "manifest.json")) as f:
        manifest = json.load(f)
    names = ("optimizers", "edge", "memory", "magnitude", "schedulers")
    return manifest, {n: np.load(os.path.join(folder, n + ".npz")) for n in names}


def leaves(npz, prefix):
    """{leaf path: array} of everything stored under prefix + '/'."""
    pre = prefix + "/"
    return {k[len(pre) :]: npz[k] for k in npz.files if k.startswith(pre)}


def nest(flat):
    """{'layers/0/loc': x, ...} -> {'layers': [{'loc': x}, ...], 'weights': [...]}"""
    out = {}
    for path in sorted(flat):
        group, index, name = path.split("/")
        lst = out.setdefault(group, [])
        while len(lst) <= int(index):
            lst.append({})
        lst[int(index)][name] = flat[path]
    out.setdefault("layers", []), out.setdefault("weights", [])
    return out


def tree_at(npz, case_id, what, t):
    """Tree of `what` ('grad', 'delta', 'param', ...) of one case at row t."""
    return nest({k: v[t].copy() for k, v in leaves(npz, case_id + "/" + what).items()})
