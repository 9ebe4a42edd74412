"""What nbdev does to a page, set right: settings.ini names these two, and a docs build finds them by PYTHONPATH=tools.

Exported source that stands on the page already holds signature, comments and docstring, so nothing is shown twice;
signatures show no link in Markdown, no address in memory and none of Python's names for `*args`.
"""
import ast
import inspect
import re

from nbdev.process import Processor
from nbdev.showdoc import BasicMarkdownRenderer

FOLD = re.compile(r'#\| code-fold: show\n#\| code-summary: "Exported source"\n')
FENCE = re.compile(r"^```python\n.*?^```$", re.S | re.M)


class Signature(BasicMarkdownRenderer):
    "A symbol's heading and signature; a class is called one."

    def _repr_markdown_(self) -> str:
        text = re.sub(r"\b(\w+):VAR_POSITIONAL", r"*\1", super()._repr_markdown_())
        text = re.sub(r"\b(\w+):VAR_KEYWORD", r"**\1", text)
        text = re.sub(r"<(?:function|class|built-in function) '?([\w.]+)'?(?: at 0x\w+)?>", r"\1", text)
        return re.sub(r"^def (?=\w+\()", "class ", text, flags=re.M) if inspect.isclass(self.sym) else text


class SourceOnce(Processor):
    "Last of the processors: a symbol whose source is on the page keeps its heading, right above the source, unfolded."

    def begin(self):
        cells, sources = [], {}
        for cell in self.nb.cells:
            if cell.cell_type == "code" and FOLD.match(cell.source):
                cell.source = FOLD.sub("", cell.source)
                sources |= {node.name: cell for node in ast.parse(cell.source).body if hasattr(node, "name")}
        above = {id(cell): [] for cell in sources.values()}
        for cell in self.nb.cells:
            symbol = re.search(r"^show_doc\((\w+)(?:\.(\w+))?", cell.source, re.M) if cell.cell_type == "code" else None
            source = sources.get(symbol[2], sources.get(symbol[1])) if symbol else None  # a patched method has its own
            for output in cell.outputs if symbol else ():
                text = "".join(output["data"]["text/markdown"])
                if source is not None:
                    text = text[: FENCE.search(text).start()]
                else:
                    text = FENCE.sub(lambda block: re.sub(r"\[(`[^`]+`)\]\(http[^)]*\)", r"\1", block[0]), text)
                output["data"]["text/markdown"] = text.splitlines(keepends=True)
            (cells if source is None else above[id(source)]).append(cell)
        self.nb.cells = [one for cell in cells for one in (*above.get(id(cell), ()), cell)]
