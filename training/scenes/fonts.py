"""The typefaces of scenes: those for training, and the families kept for the evaluation.

They come from packages (`pip install glimt[training]`); without them Pillow's own face remains,
which is enough for the demo.
"""

import importlib.util
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

Face = ImageFont.FreeTypeFont
PILLOW = "pillow"  # the face inside Pillow

_TRAINING = {
    "matplotlib": (
        "mpl-data/fonts/ttf/",
        "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSans-BoldOblique DejaVuSansMono "
        "DejaVuSansMono-Bold DejaVuSerif DejaVuSerif-Bold DejaVuSerif-Italic STIXGeneral "
        "STIXGeneralBol STIXGeneralItalic cmb10 cmr10 cmss10 cmtt10",
    ),
    "font_source_sans_pro": (
        "files/SourceSansPro-",
        "Regular Bold Semibold Light It BoldIt Black",
    ),
    "font_hanken_grotesk": ("files/HankenGrotesk-", "Regular Bold Italic Medium"),
    "font_manrope": ("files/Manrope-", "Regular Bold Medium"),
    "font_caladea": ("files/Caladea-", "Regular Bold Italic BoldItalic"),
    "font_fredoka_one": ("files/FredokaOne-", "Regular"),
}
_HELD_OUT = {
    "font_roboto": ("files/Roboto-", "Regular Bold Medium Italic BoldItalic"),
    "font_source_serif_pro": ("files/SourceSerifPro-", "Regular Semibold Bold It"),
}


@cache
def training_faces() -> tuple[str, ...]:
    """Names of the faces that training draws with, always in the same order."""
    return (PILLOW, *_installed(_TRAINING))


@cache
def held_out_faces() -> tuple[str, ...]:
    """Names of the faces kept for the evaluation; Pillow's where their packages are missing."""
    return _installed(_HELD_OUT) or (PILLOW,)


@lru_cache(maxsize=1024)
def load(face: str, size: int) -> Face:
    """The face at `size` pixels per em."""
    if face == PILLOW:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("Pillow was built without FreeType: install Pillow's own wheel")
        return font
    return ImageFont.truetype(face, size)


def _installed(packages: dict[str, tuple[str, str]]) -> tuple[str, ...]:
    found = []
    for package, (prefix, names) in packages.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        folder = Path(spec.origin).parent
        for name in names.split():
            files = (folder / f"{prefix}{name}{ending}" for ending in (".ttf", ".otf"))
            found += [str(file) for file in files if file.exists()][:1]
    return tuple(found)
