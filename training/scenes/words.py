"""Strings for pictures and for tools: words and codes, some kept for the evaluation."""

import random
import string
import zlib

# O and 0, I and 1, l and 1 look alike in many faces, so codes do without them.
CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
CODE_DIGITS = "23456789"
_VOWELS, _CONSONANTS = "aeiou", "bdfghklmnprstvz"
COMMON = (
    "stop open exit push pull sale taxi hotel bank park cafe milk bread fish water fire north "
    "south east west left right start end hello yes next page news open free sun moon tree "
    "house road bus train gate shop menu tea cake rice salt book game play music radio photo "
    "print copy save edit file home back help test code data time date year week day night "
    "light dark hot cold slow fast high low big small new old good best first last star gold "
    "blue red green one two three four five six seven eight nine ten max min go up down in "
    "out on off"
).split()

# Only for training, so that letters stand beside each other as in English: "left", "hello".
_MORE = (
    "able about above after again air all apple arm army art ask autumn back bag ball bath bay "
    "bear bed bell belt bill bird black block board boat body bottle bowl box boy bread bridge "
    "bright brown brush butter button cable camp card care cart case castle chair cheese check "
    "cherry child church city class clean clock cloud club coat coffee cold cook corner cotton "
    "country cross crown cycle dance deep desk dinner doctor dollar door dress drink drive dry "
    "duck dust early earth egg eight engine enter every exam exit extra eye factory fair family "
    "farm fax field film find finger floor flower follow food foot forest fork fox fresh friend "
    "fruit full garden gift girl glass glove gold grass green grey ground group guest guitar hair "
    "half hall hammer hand happy hat health heart hill horse hour ice ink iron island jacket jam "
    "job joy juice jump key kitchen knee knife lake lamp large law leaf leather lemon letter "
    "library life lift line lion list lock long lunch magic mail map market mask math meal meat "
    "metal middle mill mirror mixed money month motor mouse mouth museum nail name neck needle "
    "night north nut oak office oil onion orange order oven oxygen page paint pair paper park "
    "party path pay pencil pepper person piano picture pillow pilot pink pipe pizza place plane "
    "plant plate pocket point police pool post potato power press price prize purple quarter "
    "queen quick quiet rabbit rail rain ready rest ring river rock roof room root rose round "
    "rubber rule safe sand school sea seat second seven shelf ship shirt shoe shower silver "
    "sister sixty skin sky sleep smile smoke snow soap soft sofa soup space spoon sport spring "
    "square stage stairs stamp stone store storm street strong student sugar summer supper sweet "
    "swim switch table tall tax teacher tennis thank ticket tiger toilet tomato tool tooth tower "
    "toy traffic tram travel tree truck twelve twenty uncle under unit vase video view village "
    "voice wait walk wall warm wash watch wax way weather week wheel white window winter wood "
    "wool work world write yard yellow young zebra zoo"
).split()


def is_held_out(text: str) -> bool:
    """Whether this word is kept for the evaluation: one in ten, the same ones for ever."""
    return zlib.crc32(text.lower().encode()) % 10 == 0


def printed(rng: random.Random, held_out: bool) -> str:
    """One to eight characters to print in a picture."""
    for _ in range(50):
        text = _printed(rng) if held_out or rng.random() < 0.7 else _spelt(rng)
        if is_held_out(text) == held_out:
            return text
    return text


def _printed(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.38:
        length = rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8))
        return "".join(rng.choice(CODE_LETTERS + CODE_DIGITS) for _ in range(length))
    if kind < 0.52:
        length = rng.choice((2, 3, 3, 4, 4, 5, 6, 7, 8))
        return "".join(rng.choice("0123456789") for _ in range(length))
    word = rng.choice(COMMON) if kind < 0.76 else pseudo_word(rng, 8)
    if len(word) < 3:
        return word.upper()
    return rng.choice((word.upper(), word.capitalize(), word.lower()))


def _spelt(rng: random.Random) -> str:
    """What invented words of one consonant and one vowel in turn never show: doubled letters,
    clusters, j, x and y in small letters."""
    if rng.random() < 0.5:
        text = rng.choice(_MORE)[:8]
    else:
        length = rng.choice((1, 2, 3, 3, 4, 4, 5, 6, 7, 8))
        text = "".join(rng.choice(string.ascii_lowercase) for _ in range(length))
        if length > 2 and rng.random() < 0.2:
            place = rng.randrange(1, length)
            text = text[:place] + text[place - 1] + text[place + 1 :]
    if len(text) < 3:
        return text.upper().replace("I", "J").replace("O", "C")
    return rng.choice((text.upper(), text.capitalize(), text))


def pseudo_word(rng: random.Random, longest: int) -> str:
    """A word that could be one, of three letters or more."""
    length = rng.randint(3, longest)
    start = rng.random() < 0.3
    letters = [rng.choice(_VOWELS if (i + start) % 2 else _CONSONANTS) for i in range(length)]
    return "".join(letters)
