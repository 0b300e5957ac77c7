"""Rewrite a preprocessed .cu for g++: what no macro can do, with every line kept where it is.

A shared variable becomes a reference into the memory of the running block. ``__launch_bounds__``
and ``__cluster_dims__`` become declarations inside their kernel, where template parameters are
known. And every kernel with C linkage is noted, to be found by its name.
"""

import re
from dataclasses import dataclass

_STRING = re.compile(
    r'R"([^(\s]*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])+\'', re.DOTALL
)
_LINE_MARKER = re.compile(r'^# (\d+) "((?:\\.|[^"\\])*)".*$', re.MULTILINE)
_CLOSING_OF = {"(": ")", "{": "}", "[": "]"}
_ALIGNMENT = r"(?:__attribute__|alignas)\s*\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_ATTRIBUTE = re.compile(r"\b(__launch_bounds__|__cluster_dims__|__maxnreg__)\s*(?=\()")
_BRACKETS = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\([^()]*\)")
_BRACES = re.compile(r'(?P<c>\bextern\s+" "\s*)\{|(?P<function>\)\s*)\{|\{|\}')


class SourceError(ValueError):
    """Something in the .cu that this file cannot rewrite; the message names the line."""


@dataclass(frozen=True)
class _Block:
    """What stands between two braces."""

    begin: int
    end: int
    is_function: bool
    is_extern_c: bool


def rewrite(source: str) -> tuple[str, tuple[str, ...]]:
    """Return `source` for g++, and the names of the kernels that have C linkage.

    Parameters
    ----------
    source : str
        Preprocessed: without comments and macros, with line markers.
    """
    return _Rewriting(source).result()


class _Rewriting:
    def __init__(self, source: str) -> None:
        self.source = source
        # The same with strings blanked, so that positions in one hold in the other. "C" becomes
        # one blank between quotes, which is all that _BRACES needs to know it by.
        self.bare = _STRING.sub(_blank, _LINE_MARKER.sub(_blank, source))
        self.blocks = self._blocks()
        self.edits: list[tuple[int, int, str]] = []
        self.names: list[str] = []

    def result(self) -> tuple[str, tuple[str, ...]]:
        for match in re.finditer(r"\b__global__\b", self.bare):
            self._kernel(match)
        for number, match in enumerate(re.finditer(r"\b__shared__\b", self.bare)):
            self._shared_variable(match, number)
        pieces, position = [], 0
        for begin, end, text in sorted(self.edits):
            lost = self.source[begin:end].count("\n") - text.count("\n")
            pieces += [self.source[position:begin], text, "\n" * lost]
            position = end
        return "".join([*pieces, self.source[position:]]), tuple(dict.fromkeys(self.names))

    # --- kernels ---------------------------------------------------------------------------------

    def _kernel(self, match: re.Match[str]) -> None:
        self.edits.append((match.start(), match.end(), ""))
        facts = {"__launch_bounds__": "", "__cluster_dims__": "", "__maxnreg__": ""}
        # Attributes may stand on either side of __global__; the first bracket that belongs to none
        # begins the parameters.
        start = max(self.bare.rfind(c, 0, match.start()) for c in ";}{") + 1
        position = start
        while True:
            opening = self.bare.find("(", max(position, match.end()))
            if opening < 0:
                raise self._error(match.start(), "__global__ without a function")
            attribute = _ATTRIBUTE.search(self.bare, position, opening + 1)
            alignment = re.compile(_ALIGNMENT).search(self.bare, match.end())
            if attribute:
                end = self._closing(attribute.end())
                facts[attribute[1]] = self._words(attribute.end() + 1, end)
                self.edits.append((attribute.start(), end + 1, ""))
                position = end + 1
            elif alignment and alignment.start() < opening < alignment.end():
                position = alignment.end()
            else:
                break
        after = re.compile(r"\s*").match(self.bare, self._closing(opening) + 1)
        body = after.end() if after else opening
        if self.bare[body : body + 1] != "{":
            return  # a declaration; the definition comes elsewhere
        self.edits.append((body, body + 1, "{" + _declaration(facts)))
        name = re.search(r"(\w+)\s*$", self.bare[match.end() : opening])
        is_c = re.search(r'\bextern\s+" "', self.bare[start : match.start()]) or any(
            block.is_extern_c and block.begin < match.start() < block.end for block in self.blocks
        )
        if name and is_c:
            self.names.append(name[1])

    # --- shared memory ---------------------------------------------------------------------------

    def _shared_variable(self, match: re.Match[str], number: int) -> None:
        begin = max(self.bare.rfind(c, 0, match.start()) for c in ";{}") + 1
        end = self.bare.find(";", match.end())
        if end < 0:
            raise self._error(match.start(), "__shared__ without a ';'")
        # What stands between the last statement and the declaration, a label or a pragma, stays.
        qualifiers = rf"(?:\b(?:extern|static|volatile|const)\b\s*|{_ALIGNMENT}\s*)*$"
        before = re.search(qualifiers, self.bare[begin : match.start()])
        begin += before.start() if before else 0
        plain = self.bare[begin : match.start()] + " " + self.bare[match.end() : end]
        words = self._words(begin, match.start()) + " " + self._words(match.end(), end)
        if re.search(r"\bextern\b", plain):
            if not any(b.is_function and b.begin < begin < b.end for b in self.blocks):
                raise self._error(begin, "declare 'extern __shared__' inside the kernel")
            text = self._dynamic(plain, match.start())
        else:
            text = _static(words, plain, number)
        self.edits.append((begin, end + 1, text))

    def _dynamic(self, declaration: str, position: int) -> str:
        words = re.sub(rf"{_ALIGNMENT}|\bextern\b", " ", declaration)
        match = re.fullmatch(r"\s*(.+?)\s*\b(\w+)\s*\[\s*\]\s*", words, re.DOTALL)
        if not match:
            raise self._error(position, "expected 'extern __shared__ TYPE NAME[];'")
        type_ = " ".join(match[1].split())
        return f"{type_}* {match[2]} = reinterpret_cast<{type_}*>(::bed::dynamic_shared());"

    # --- positions -------------------------------------------------------------------------------

    def _words(self, begin: int, end: int) -> str:
        """Return a stretch of the source on one line."""
        return " ".join(_LINE_MARKER.sub("", self.source[begin:end]).split())

    def _closing(self, opening: int) -> int:
        """Return the position of the bracket that closes the one at `opening`."""
        waiting: list[str] = []
        for match in re.compile(r"[(){}\[\]]").finditer(self.bare, opening):
            if match[0] in _CLOSING_OF:
                waiting.append(_CLOSING_OF[match[0]])
            elif match[0] == waiting[-1]:
                waiting.pop()
                if not waiting:
                    return match.start()
        raise self._error(opening, f"'{self.bare[opening]}' is never closed")

    def _blocks(self) -> list[_Block]:
        blocks, waiting = [], []
        for match in _BRACES.finditer(self.bare):
            if match[0] != "}":
                waiting.append(match)
            elif waiting:
                first = waiting.pop()
                is_function, is_c = first["function"] is not None, first["c"] is not None
                blocks.append(_Block(first.end() - 1, match.start(), is_function, is_c))
        return blocks

    def _error(self, position: int, what: str) -> SourceError:
        marker = list(_LINE_MARKER.finditer(self.source, 0, position))[-1]
        line = int(marker[1]) - 1 + self.source.count("\n", marker.end(), position)
        return SourceError(f"{marker[2]}:{line}: {what}")


def _blank(match: re.Match[str]) -> str:
    blanks = re.sub(r"[^\n]", " ", match[0])
    return f'"{blanks[1:-1]}"' if match[0][0] == '"' else blanks


def _declaration(facts: dict[str, str]) -> str:
    dims = f"dim3({facts['__cluster_dims__']})" if facts["__cluster_dims__"] else "dim3(0, 0, 0)"
    return (
        " struct bed_kernel { static ::bed::registry::Facts facts() {"
        f" auto bounds = ::bed::registry::LaunchBounds({facts['__launch_bounds__']});"
        " return {__builtin_FILE(), __builtin_LINE(), bounds.max_threads, bounds.min_blocks,"
        f" {dims}, nullptr, nullptr}}; }} }};"
        " ::bed::declare_kernel<bed_kernel>();"
    )


def _static(words: str, plain: str, number: int) -> str:
    # The variables become members of a struct, which takes any declaration as it stands. Each
    # lives in memory of its own, so that an access past its end does not land in the next.
    flat = re.sub(_ALIGNMENT, " ", plain)
    while _BRACKETS.search(flat):
        flat = _BRACKETS.sub(" ", flat)
    names = [part.split()[-1].lstrip("*&") for part in flat.split(",")]
    members = re.sub(r"\bstatic\b", " ", words)
    struct = f"bed_shared_{number}"
    references = " ".join(
        f"auto& {name} = ::bed::shared<{struct}, decltype({struct}::{name}), {k}>();"
        for k, name in enumerate(names)
    )
    return f"struct {struct} {{ {members}; }}; {references}"
