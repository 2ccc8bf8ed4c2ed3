"""Docstrings as the source shows them: indented equations are literal blocks, `names` are links where they can be."""

import ast
import re
import textwrap

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.transforms import SphinxTransform

import paysage_jax

# The module that has the entry of a name; classes are called by their names alone in any text.
HOMES = dict.fromkeys(paysage_jax.__all__, "paysage_jax")
MODULES = (paysage_jax.extend, paysage_jax.packing, paysage_jax.states)
HOMES |= {name: module.__name__ for module in MODULES for name in module.__all__ if name[0].isupper()}
OF_2017 = [name for name in paysage_jax.__all__ if hasattr(paysage_jax.optimizers, name) and name[0].isupper()]
HOMES |= dict.fromkeys(OF_2017, "paysage_jax.optimizers")

SECTION = re.compile(r"(Args|Raises|Returns|Yields|Attributes):$")
NAME = re.compile(r"(?:pj\.|paysage_jax\.)?([A-Za-z_][\w.]*)(?:\(.*\))?$", re.DOTALL)


def as_rst(lines):
    """The lines of a docstring as reStructuredText: code blocks of what is indented, | and * as themselves."""
    result, section, block = [], False, []
    for line in [*lines, "."]:
        if line and not line[0].isspace():
            section = bool(SECTION.match(line))
        if (block or line.startswith("    ")) and not section and (not line or line.startswith("    ")):
            block.append(line)
            continue
        if block:
            result += [f".. code-block:: {_language(block)}", "", *block]
        result.append(line if line.startswith((">>>", "...")) else _escaped(line))
        block = []
    return result[:-1]


def _language(block):
    """Equations and command lines are not Python."""
    try:
        ast.parse(textwrap.dedent("\n".join(block)))
    except SyntaxError:
        return "text"
    return "python"


def _escaped(line):
    """The line with the characters escaped that mean something outside of backticks."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"(\||\*(?=\S))", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def process_docstring(app, what, name, obj, options, lines):
    """Before napoleon reads it. `jax.vmap` puts a text of its own before the docstring of what it maps."""
    if "Original documentation:" in lines:
        del lines[: lines.index("Original documentation:") + 2]
    lines[:] = as_rst(lines)


def process_signature(app, what, name, obj, options, signature, returned):
    """autodoc writes the aliases of types by name, but shows of a union of two how it remembers them."""
    shown = [text and re.sub(r"TypeAliasForwardRef\('([\w.]+)'\)", r"\1", text) for text in (signature, returned)]
    return tuple(shown)


def resolve(app, env, node, contnode):
    """Before intersphinx: `classic.adam` and `Model` are ours in any module, `statistics` is no module of Python."""
    if node.get("reftype") != "obj":
        return None
    name, python = node["reftarget"], env.domains["py"]
    if "." in name or name[0].isupper():
        found = python.resolve_xref(env, node["refdoc"], app.builder, "obj", _full_name(name), node, contnode)
        return found if "." in name else found or contnode
    return contnode


class LinkNames(SphinxTransform):
    """Code in the text that is a public name, `pj.fit` or `Outcome`, becomes a link to its entry."""

    default_priority = 400

    def apply(self, **kwargs):
        for literal in list(self.document.findall(nodes.literal)):
            if isinstance(literal.parent, (pending_xref, nodes.reference, nodes.title)):
                continue
            match = NAME.match(literal.astext())
            if match and match[1].split(".")[0] in HOMES:
                target = {"refdomain": "py", "reftype": "obj", "reftarget": _full_name(match[1])}
                link = pending_xref("", refdoc=self.env.docname, refexplicit=True, refwarn=False, **target)
                literal.replace_self(link)
                link += literal


def _full_name(name):
    home = HOMES.get(name.split(".")[0])
    return f"{home}.{name}" if home else name


def link_back(app, pagename, templatename, context, doctree):
    """In the pages of sources: one source may hold objects of several public modules, each with an entry in its own."""
    if pagename.startswith("_modules/"):
        entry = re.compile(r"#paysage_jax\.(?:(?:extend|packing|states)\.)?(\w+)")
        full = lambda match: f"#{_full_name(match[1])}" if match[1] in HOMES else match[0]  # noqa: E731
        context["body"] = entry.sub(full, context["body"])


def setup(app):
    """Before napoleon, whose handler has the default priority."""
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("autodoc-process-signature", process_signature)
    app.connect("missing-reference", resolve, priority=400)
    app.connect("html-page-context", link_back)
    app.add_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
