"""Paths: which field of a request each field of the chat request was made from."""

from dataclasses import dataclass, field

from glimt.errors import RequestError


@dataclass
class Paths:
    """`origins`: the client's path by the chat request's path."""

    origins: dict[str, str] = field(default_factory=dict)

    def translated(self, error: RequestError) -> RequestError:
        """The same error, naming the field that the client sent."""
        if error.param is None:
            return error
        param = self.origin_of(error.param)
        message = error.message.replace(error.param, param)
        return type(error)(message, param=param, code=error.code)

    def origin_of(self, path: str) -> str:
        """The client's path for one of the chat request's."""
        for length in range(len(path), 0, -1):
            if (origin := self.origins.get(path[:length])) is not None:
                return origin + path[length:]
        return path
