"""Settings of the documentation: `make docs` builds it from docs/, notebooks/ and the docstrings, without the network.

Not here: the pages, and the running of notebooks (`make notebooks`): what they show is what was committed.
"""

import json
import re
import shutil
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from sb3_simple_ddpg import __version__

project = "sb3-simple-ddpg"
copyright = "sb3-simple-ddpg maintainers, MIT licence"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
default_role = "code"  # docstrings write `name`

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_inherit_docstrings = False  # those of SB3 are not ours to repeat
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_default_options = {"members": True, "show-inheritance": True}

html_theme = "furo"
html_title = f"sb3-simple-ddpg {__version__}"
html_static_path = ["_static"]
html_favicon = "_static/icon.svg"
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_domain_indices = False  # its paths of modules are wider than a phone; the API page lists what users call


# Sphinx reads below docs/ only; tutorials/ is not committed.
HERE = Path(__file__).parent
(HERE / "tutorials").mkdir(exist_ok=True)
for pattern in ("*.ipynb", "*.py"):  # the code beside a notebook is linked there
    for file in (HERE.parent / "notebooks").glob(pattern):
        shutil.copy(file, HERE / "tutorials")

#: Links that are right for a reader of the repository, and what they become here.
LINKS = {
    "](../SECURITY.md)": "](security.md)",
    "[tests](../tests)": "`tests`",
    "](../notebooks/": "](tutorials/",
    "](../../notebooks/": "](../tutorials/",
    "](../docs/": "](../",
}


def _prepare(app: Sphinx, page: str, source: list[str]) -> None:
    """Links; the names of compared folders in the titles of their pages; and what they found on the page of results."""
    for link, other in LINKS.items():
        source[0] = source[0].replace(link, other)
    if page == "results":
        source[0] = re.sub("<!-- comparisons: .*? -->", lambda _: _comparisons(app), source[0])
    elif page.startswith(("results/", "study/")) and page != "study/summary":
        source[0] = source[0].replace("# ", f"# {page.split('/')[1]}: ", 1)


def _comparisons(app: Sphinx) -> str:
    found = []
    for path in sorted((HERE / "results").glob("*/summary.json")):
        app.env.note_dependency(path)
        folder, summary = path.parent.name, json.loads(path.read_text("utf-8"))
        found += [f"## {folder}", *(f"- {sentence}" for sentence in summary["sentences"]), ""]
        found += ["```", summary["plan"]["command"], "```", f"[Tables and settings](results/{folder}/summary.md)", ""]
        found += [f"![Learning curves: {summary['sentences'][0]}](results/{folder}/learning_curves.png)", ""]
    return "\n".join(found)


def _inline(translator: HTML5Translator, node: nodes.Element) -> None:
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.Element) -> None:
    translator.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Formulas as MathML, which browsers draw themselves: MathJax would come from the network."""
    app.connect("source-read", _prepare)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
