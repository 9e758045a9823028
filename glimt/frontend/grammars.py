"""Grammars in the client tower: proven compilable before they are sent."""

import asyncio

from glimt.errors import BadGrammar, Overloaded
from glimt.grammar.compiler import GrammarCompiler
from glimt.wire import Grammar

MAX_COMPILING = 64  # grammars


class GrammarChecker:
    """Refuses what does not compile. Lives on the event loop, which never waits for a compilation.

    The engine compiles again, from the text. What is proven here is that it can.
    """

    def __init__(self, compiler: GrammarCompiler, timeout_s: float = 5.0) -> None:
        self._compiler = compiler
        self._timeout_s = timeout_s
        self._num_compiling = 0

    async def check(self, text: str, *, allows_control: bool = False) -> Grammar:
        """The grammar of this text, which `glimt.grammar.source` has written.

        `allows_control` lets it name control tokens; never for a text that holds a client's Lark.
        Raises BadGrammar if it does not compile within its limits, Overloaded.
        """
        compiled = self._compiler.start(text)
        if not compiled.done():
            if self._num_compiling >= MAX_COMPILING:
                raise Overloaded(f"{MAX_COMPILING} grammars are being compiled; try again later")
            self._num_compiling += 1
            try:
                # Shielded: others may wait for the same grammar.
                future = asyncio.shield(asyncio.wrap_future(compiled))
                await asyncio.wait_for(future, self._timeout_s)
            except TimeoutError:
                raise BadGrammar(
                    f"the grammar is not compiled after {self._timeout_s:g} s; make it simpler"
                ) from None
            finally:
                self._num_compiling -= 1
        compiled.result()
        return Grammar(text=text, allows_control=allows_control)

    def close(self) -> None:
        """End the compiler's thread."""
        self._compiler.close()
