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
        for length in range(len(error.param), 0, -1):
            origin = self.origins.get(error.param[:length])
            if origin is not None:
                param = origin + error.param[length:]
                message = error.message.replace(error.param, param)
                return type(error)(message, param=param, code=error.code)
        return error
