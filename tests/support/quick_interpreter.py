"""Triton's interpreter without work that shows nothing: half of the time of its tests."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from triton.runtime import interpreter


def make_quick() -> None:
    """For the rest of the process. What is interpreted, and what is checked of it, stays the same.

    - The interpreter replaces the functions of `triton.language` anew at each call within a
      kernel. Here each module that kernels see is done once and stays as it is.
    - It looks for overflows by doing additions again in 64 bits, and does not look at what it
      finds unless it is built for debugging.
    - It builds a table of types to look up one.
    """
    interpreter._patch_lang = _once(interpreter._patch_lang)
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=builder.options.debug)
    interpreter._get_np_dtype = _cached(interpreter._get_np_dtype)


def _once(replace_language: Callable[[Any], Any]) -> Callable[[Any], Any]:
    done: set[frozenset[int]] = set()
    modules = {id(interpreter.tl), id(interpreter.tl.core)}

    def replace_language_once(function: Any) -> Any:
        seen = frozenset(map(id, function.__globals__.values())) & modules
        if seen not in done:
            replace_language(function)
            done.add(seen)
        return interpreter._LangPatchScope()  # nothing to be undone

    return replace_language_once


def _cached(numpy_type: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The NumPy type of one of Triton's; of a block's elements, if it is a block."""
    of_scalar = functools.cache(numpy_type)
    return lambda kind: numpy_type(kind) if kind.scalar.is_ptr() else of_scalar(kind.scalar)
