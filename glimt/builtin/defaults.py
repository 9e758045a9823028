"""How the built-in model is served where the user says nothing else."""

from dataclasses import replace

from glimt.builtin.model import NAME, SERVED_NAME
from glimt.config import Settings


def with_defaults(settings: Settings) -> Settings:
    """The settings, for the built-in model with what it can do switched on; others unchanged.

    Thoughts are told apart, tools may be called, and the name in answers does not depend on
    where Glimt is installed.
    """
    if settings.model != NAME:
        return settings
    models, server = settings.models, settings.server
    if models.served_model_name is None:
        models = replace(models, served_model_name=[SERVED_NAME])
    if server.reasoning_parser is None:
        server = replace(server, reasoning_parser="glm45")
    if server.tool_call_parser is None:
        server = replace(server, tool_call_parser="glm45", enable_auto_tool_choice=True)
    return replace(settings, models=models, server=server)
