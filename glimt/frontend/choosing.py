"""Which of several engines a prompt goes to: the one asked for, or that with the least to do."""

from collections.abc import Collection, Mapping

from glimt.board import Board
from glimt.errors import EngineDied, InvalidRequest
from glimt.frontend.engine_view import COPY_HEADER, EngineView
from glimt.frontend.prompt import Prompt
from glimt.frontend.routing import Footprint


def engine_of_copy(
    engines: Mapping[int, EngineView], copies: Collection[int], index: int
) -> EngineView:
    """The engine of the copy that a client asks for, out of `copies`. Raises InvalidRequest for a
    copy that this server has not, EngineDied for one that takes no requests now.
    """
    if index not in copies:
        raise InvalidRequest(
            f"{COPY_HEADER}: there is no copy {index} here; this server has "
            f"{', '.join(map(str, sorted(copies)))}",
            param=COPY_HEADER,
        )
    engine = engines.get(index)
    if engine is None or engine.is_leaving:
        raise EngineDied(f"copy {index} takes no requests now; try again, or leave the choice open")
    return engine


def choose(
    engines: Collection[EngineView],
    board: Board,
    prompt: Prompt,
    salt: bytes,
    wish: EngineView | None,
    *,
    weighs_caches: bool,
) -> tuple[EngineView, int]:
    """(of the engines that take requests the one that will have the least to do, or `wish`; what
    this prompt adds to it, in tokens), by what all servers on `board` have given them. If it
    `weighs_caches`, what an engine has cached of the prompt is nothing to do.
    """
    takers = [each for each in engines if not each.is_leaving]
    candidates = takers if wish is None else [wish]
    if len(takers) == 1 or not weighs_caches:
        engine = min(candidates, key=lambda each: board.outstanding_tokens(each.index))
        return engine, prompt.num_tokens
    footprint = Footprint.of(prompt, salt)
    works = [each.memory.work(footprint) for each in candidates]
    pairs = zip(candidates, works, strict=True)
    engine, work = min(pairs, key=lambda pair: board.outstanding_tokens(pair[0].index) + pair[1])
    engine.memory.note(footprint)
    return engine, work
