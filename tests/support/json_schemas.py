"""Values that fit a JSON schema of ours, and values that almost do."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**6) | st.floats(-2, 2) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)
_LETTERS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
# Names and mime types: what all patterns of ours let through.
_NAMES = st.sampled_from(["f", "get_weather", "a-b.c", "image/png"])


class Schemas:
    """The components of a document."""

    def __init__(self, components: dict[str, Schema]) -> None:
        self._components = components
        self._made: dict[tuple[str, int], st.SearchStrategy[Any]] = {}

    def values(self, schema: Schema, depth: int = 0) -> st.SearchStrategy[Any]:
        """Values that the schema allows. Made once, outside of the test that draws them."""
        if "$ref" in schema:
            key = schema["$ref"].rpartition("/")[2], depth
            if key not in self._made:
                self._made[key] = self.values(self._components[key[0]], depth + 1)
            return self._made[key]
        for key in ("enum", "const"):
            if key in schema:
                return st.sampled_from(schema[key] if key == "enum" else [schema[key]])
        if "anyOf" in schema:
            choices = schema["anyOf"]
            if depth > 4:  # where things may nest, the plain ones end it
                choices = [each for each in choices if "$ref" not in each] or choices
            return st.one_of([self.values(each, depth + 1) for each in choices])
        return self._typed(schema, depth)

    def _typed(self, schema: Schema, depth: int) -> st.SearchStrategy[Any]:
        kind = schema.get("type")
        if kind == "object":
            return self._objects(schema, depth)
        if kind == "array":
            low = schema.get("minItems", 0)
            high = min(schema.get("maxItems", 3), low + 2)
            items = self.values(schema.get("items", {}), depth + 1)
            return st.lists(items, min_size=low, max_size=high)
        if kind == "string":
            low = schema.get("minLength", 0)
            high = min(schema.get("maxLength", 12), 12)
            texts = _NAMES if "pattern" in schema else _LETTERS
            return texts.filter(lambda text: low <= len(text) <= high)
        if kind == "integer":
            return st.integers(
                schema.get("minimum", -100), min(schema.get("maximum", 10**6), 10**6)
            )
        if kind == "number":
            low = schema.get("minimum", schema.get("exclusiveMinimum", -5.0))
            high = schema.get("maximum", 5.0)
            exclusive = "exclusiveMinimum" in schema
            return st.floats(low, high, exclude_min=exclusive)
        return {"boolean": st.booleans(), "null": st.none()}.get(kind or "", ANYTHING)

    def _objects(self, schema: Schema, depth: int) -> st.SearchStrategy[Any]:
        fields = schema.get("properties", {})
        required = set(schema.get("required", ()))
        made = {name: self.values(inner, depth + 1) for name, inner in fields.items()}
        optional = {name: made[name] for name in made if name not in required}
        if not made and isinstance(schema.get("additionalProperties"), dict):
            inner = self.values(schema["additionalProperties"], depth + 1)
            return st.dictionaries(st.text(max_size=5), inner, max_size=2)

        @st.composite
        def objects(draw: st.DrawFn) -> dict[str, Any]:
            # A few of the many fields at a time, or most examples fail for the same reason.
            names = (
                draw(st.lists(st.sampled_from(sorted(optional)), max_size=4, unique=True))
                if (optional)
                else []
            )
            whole = {name: draw(made[name]) for name in fields if name in required}
            return whole | {name: draw(optional[name]) for name in names}

        return objects()


@st.composite
def damaged(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> Any:
    """A value with something else in one place of it."""
    value = copy.deepcopy(draw(values))
    places: list[tuple[Any, Any]] = []

    def collect(inner: Any) -> None:
        keys = inner.keys() if isinstance(inner, dict) else range(len(inner))
        for key in keys:
            places.append((inner, key))
            if isinstance(inner[key], dict | list):
                collect(inner[key])

    if isinstance(value, dict | list):
        collect(value)
    if not places:
        return draw(ANYTHING)
    holder, key = draw(st.sampled_from(places))
    holder[key] = draw(ANYTHING)
    return value


def written(value: Any) -> bytes:
    """As JSON."""
    return json.dumps(value, allow_nan=False).encode()
