"""A description in words to phrases whose colours are bound to their garments: "red jacket, blue jeans" is not "blue jacket, red jeans".

Rules and a small lexicon, no network. Words that would label people by ethnicity, religion or health are never used; they are reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field


def _set_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


Term = tuple[str, str]  # (attribute name, value), for example ("upper colour", "red"): the names and values of Attribute

COLOURS = ("black", "grey", "white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "beige")

# word -> (colour, tone); "" where the word says only one of them
COLOUR_WORDS: dict[str, tuple[str, str]] = {colour: (colour, "") for colour in COLOURS}
COLOUR_WORDS.update(dict.fromkeys(("dark", "darker", "darkly", "blackish", "deep"), ("", "dark")))
COLOUR_WORDS.update(dict.fromkeys(("light", "lighter", "pale", "lightly", "faded", "whitish"), ("", "light")))
for _colour, _tone, _words in (
    ("grey", "", "gray greyish grayish silver ash"),
    ("grey", "dark", "charcoal slate"),
    ("white", "light", "whit ivory"),
    ("black", "dark", "jet"),
    ("red", "", "reddish scarlet crimson rust coral"),
    ("red", "dark", "burgundy maroon wine"),
    ("orange", "", "peach apricot ginger"),
    ("yellow", "", "gold golden mustard yellowish lemon blond blonde"),
    ("green", "", "greenish lime mint emerald olive"),
    ("blue", "", "bluish turquoise teal aqua cyan azure"),
    ("blue", "dark", "navy indigo"),
    ("purple", "", "violet lilac lavender mauve plum"),
    ("pink", "", "pinkish magenta fuchsia salmon rose"),
    ("brown", "", "brownish caramel chocolate bronze auburn chestnut"),
    ("beige", "", "tan cream khaki camel sand ecru taupe"),
):
    COLOUR_WORDS.update(dict.fromkeys(_words.split(), (_colour, _tone)))

# region and type of a garment, a carried thing or a person -> the words for it
_THINGS = {
    ("upper", "jacket"): "jacket windbreaker blazer fleece cardigan anorak bomber jackets cagoule",
    ("upper", "coat"): "coat overcoat parka trenchcoat raincoat coats cloak",
    ("upper", "shirt"): "shirt shirts blouse button-up flannel tunic",
    ("upper", "t-shirt"): "tshirt tee polo undershirt jersey",
    ("upper", "sweater"): "sweater jumper pullover sweatshirt turtleneck knit",
    ("upper", "hoodie"): "hoodie hoody",
    ("upper", "vest"): "vest waistcoat gilet tank-top singlet",
    ("upper", "top"): "top tops",
    ("whole", "dress"): "dress gown",
    ("whole", "suit"): "suit tracksuit uniform overalls jumpsuit dungarees",
    ("whole", "clothes"): "clothes clothing outfit attire garments",
    ("lower", "trousers"): "trousers pants pant slacks chinos sweatpants khakis bottoms bottom legwear corduroys",
    ("lower", "jeans"): "jeans jean denims bluejeans",
    ("lower", "shorts"): "shorts bermudas",
    ("lower", "skirt"): "skirt miniskirt kilt",
    ("lower", "leggings"): "leggings tights stockings pantyhose",
    ("lower", "capris"): "capris capri",
    ("shoes", "shoes"): "shoes shoe shes footwear flats loafers heels slippers shoees",
    ("shoes", "sneakers"): "sneakers sneaker trainers runners converse",
    ("shoes", "boots"): "boots boot",
    ("shoes", "sandals"): "sandals sandal flip-flops flipflops",
    ("socks", "socks"): "socks sock",
    ("carrying", "backpack"): "backpack backpacks rucksack knapsack",
    ("carrying", "shoulder bag"): "shoulder-bag satchel messenger-bag crossbody-bag crossbody",
    ("carrying", "handbag"): "handbag purse tote clutch hand-bag",
    ("carrying", "bag"): "bag bags briefcase holdall pouch plastic-bag shopping-bag luggage suitcase duffel",
    ("carrying", "umbrella"): "umbrella parasol",
    ("carrying", "phone"): "phone cellphone smartphone",
    ("carrying", "papers"): "papers paper folder book books notebook newspaper sheets documents",
    ("wearing", "hat"): "hat cap beanie helmet hats beret bonnet fedora trilby",
    ("wearing", "glasses"): "glasses eyeglasses spectacles sunglasses glass",
    ("wearing", "scarf"): "scarf muffler shawl muffle",
    ("wearing", "gloves"): "gloves mittens",
    ("wearing", "tie"): "tie necktie",
    ("hair", "hair"): "hair haired haircut",
    ("hair", "tied"): "ponytail pigtail pigtails bun braid braids",
    ("hair", "bald"): "bald balding",
    ("person", "man"): "man male guy gentleman boy men he his him",
    ("person", "woman"): "woman female lady girl women she her",
    ("person", "child"): "child kid toddler children",
}
THINGS: dict[str, tuple[str, str]] = {word: thing for thing, words in _THINGS.items() for word in words.split()}

# a part of a garment -> what it says about that garment beside its own colour
PARTS: dict[str, str] = {
    **dict.fromkeys(("stripe", "stripes", "strip", "strips"), "striped"),
    **dict.fromkeys(
        ("logo", "graphic", "print", "writing", "lettering", "letters", "emblem", "design", "designs", "picture", "image"), "printed"
    ),
    **dict.fromkeys(("hood",), "hooded"),
    **dict.fromkeys(("sleeve", "sleeves", "sleeved"), "sleeves"),
    **dict.fromkeys(("dots", "dot", "checks", "checker"), "plaid"),
    **dict.fromkeys(
        _set_of(
            "collar trim soles sole strap straps laces lining hem cuffs panels panel buttons button zipper zip pocket pockets edges edging "
            "accents details patch yoke fur handle handles band toe toes necktie belt neck neckline shoulders"
        ),
        "",
    ),
}
LOOKS: dict[str, str] = {  # adjectives that are attributes themselves
    **dict.fromkeys(("striped", "stripped", "stripy"), "striped"),
    **dict.fromkeys(("plaid", "checked", "checkered", "chequered", "tartan", "checker-ed", "dotted"), "plaid"),
    **dict.fromkeys(("printed", "patterned", "floral", "graphic", "camouflage", "camo", "flowered"), "printed"),
    **dict.fromkeys(("hooded",), "hooded"),
    **dict.fromkeys(("long", "length"), "long"),
    **dict.fromkeys(("short", "cropped", "mini"), "short"),
    **dict.fromkeys(("sleeveless",), "sleeveless"),
    **dict.fromkeys(("tied",), "tied"),
    **dict.fromkeys(("denim",), "denim"),
    **dict.fromkeys(("leather",), "leather"),
}

FORBIDDEN = _set_of(
    "asian african caucasian european indian chinese japanese korean arab latino latina hispanic oriental ethnic ethnicity race racial "
    "white-skinned black-skinned dark-skinned light-skinned skin skinned complexion nationality foreign foreigner gypsy roma "
    "muslim islamic christian jewish jew hindu sikh buddhist religious religion hijab burqa niqab turban kippah yarmulke crucifix "
    "disabled disability wheelchair crutches blind deaf sick ill pregnant handicapped autistic limping lame obese mentally"
)

_JOINED = (  # several words that are one
    (r"\bt[ -]?shirts?\b", "tshirt"),
    (r"\btee[ -]shirts?\b", "tshirt"),
    (r"\bpolo shirts?\b", "polo"),
    (r"\btank[ -]tops?\b", "tank-top"),
    (r"\bflip[ -]?flops?\b", "flip-flops"),
    (r"\bsweat[ -]shirts?\b", "sweatshirt"),
    (r"\bsweat[ -]pants\b", "sweatpants"),
    (r"\bsweat[ -]suit\b", "tracksuit"),
    (r"\bback[ -]packs?\b|\bbook[ -]?bags?\b|\bschool ?bags?\b", "backpack"),
    (r"\b(shoulder|messenger|cross[ -]?body|sling) bags?\b", "shoulder-bag"),
    (r"\b(hand) bags?\b", "handbag"),
    (r"\b(tote|purse) bags?\b", "tote"),
    (r"\b(plastic|shopping|carrier|gym|paper) bags?\b", "plastic-bag"),
    (r"\b(pony|pig)[ -]tails?\b", "ponytail"),
    (r"\b(tennis|running|gym|sports?|athletic) (shoes?|shes)\b", "sneakers"),
    (r"\b(cell|mobile) ?phones?\b", "cellphone"),
    (r"\bbutton[ -](up|down)( shirts?)?\b", "shirt"),
    (r"\b(dress) (shirts?|shoes|pants)\b", r"\2"),
    (r"\b(knee|mid|full|calf|thigh|ankle)[ -](length|long)\b", "long"),
    (r"\b(shoulder|collar|chin)[ -]length\b", "medium"),
    (r"\b(suit|winter|puffer|sports?) (jackets?|coats?)\b", r"\2"),
    (r"\blight(ly)?[ -](weight|build)\b", ""),
    (r"\bcamera\b.*?\blight\b", "camera"),
)
_NEGATIONS = _set_of("no without not isn't doesn't don't never nor lacks lacking hatless sin ohne sans kein keine")
_STOPS = _set_of("but wearing wears wear carrying carries has have holding holds dressed with plus while who con mit avec")
_ARTICLES = _set_of("a an the his her their some any of very")
_JOINS = _set_of("and or y und et e o oder ou & /")
_NEUTRAL = _set_of(
    "a an the his her their its some any of very on in at to from by is are was be being been that this which it as for into onto "
    "over under underneath beneath up down out off also who they them him one two three both each other another all and or while "
    "walking walks walk standing stands stand walker person people pedestrian individual someone somebody adult young old older "
    "elderly teenage teen teenager aged middle right left hand hands arm arms side sides front back behind head shoulder shoulders "
    "face facing looking looks look seen camera away towards toward forward along across appears seems pair with wearing wears "
    "wear carrying carries has have had holding holds dressed bright vivid royal sky neon hot medium coloured colored color colour "
    "coloring colours clothed slim loose tight skinny baggy straight fitted fitting slightly large small big little tall wide "
    "narrow open closed buttoned zipped unzipped rolled something object item body chest waist hip knee knees leg legs foot feet "
    "ankle ankles thigh thighs wrist neck elbow bent swinging talking reading using smiling running crossing slung hanging worn "
    "held tucked turned casual casually style plain padded quilted thick thin soft heavy lightweight canvas cotton wool leather "
    "denim plastic mostly entirely visible street sidewalk road ground view then there not no than like maybe possibly probably "
    "likely almost about around near next against below above can may must find show me please someone's s t ed multi "
    "multicoloured colourful patterned watch ring bottle water cup drink wristwatch bracelet necklace curly wavy messy spiky bangs "
    "fringe bob bobbed pulled length mid high low flat slip ballet high-heeled heeled tone toned build stride striding strides "
    "strap man's woman's day night yesterday today do does did i we you your my our want search us picture el la los las un una de "
    "del der die das ein eine einen einem einer mit und con y le les des du et en im e il lo gli un' uno who's whom cargo track "
    "school business office work winter summer sport sports athletic tennis oversized hangs hang his/her he's hung carried carry "
    "placed crossed "
    "collared prescription cut washed opposite shiny direction well showing col past trimmed ear pattern folded raised step laptop "
    "case inside v takes pushed bare framed bulky strapped piece nike type covering eye ahead reaching falling extended matching "
    "box level polka round puffy half what full draped made elbows steps talks horizontally flared untucked opened soled curved "
    "computer hips covered square mouth horizontal shaggy slender rimmed ending falls covers rectangular beside furry knitted "
    "cuffed forearm sideways vertical edged car quarter railing forehead calf raises smart nice flowing device walkway line single "
    "bends briskly paired including lined outdoor several goes calves quickly formally sporty keeps here longer lines wall sun "
    "empty appear part through either only just person's photo number "
)
_ODD = _set_of("top tops bottom backpacks shoe sock tie bags clothing pant kid capri jean")  # too short or too near to other words
_PRONOUNS = frozenset({"he", "his", "him", "she", "her"})
_IGNORED = "#"
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|[.,;:!?/&]")


@dataclass(frozen=True, slots=True)
class Phrase:
    """One thing that is said: where (region), what (kind), its colours, tones (dark, light), looks (striped, long, ...), accents.

    region: upper, lower, whole, shoes, socks, carrying, wearing, hair or person; accents: colours of parts such as sleeves;
    is_negated: the person does not have it ("no bag").
    """

    region: str
    kind: str
    colours: tuple[str, ...] = ()
    tones: tuple[str, ...] = ()
    looks: tuple[str, ...] = ()
    accents: tuple[str, ...] = ()
    is_negated: bool = False

    @property
    def text(self) -> str:
        """The phrase in plain words, for example "dark blue jacket" or "no bag"."""
        words = [*self.tones, *self.looks, *self.colours, self.kind]
        return ("no " if self.is_negated else "") + " ".join(dict.fromkeys(words))

    def terms(self) -> tuple[Term, ...]:
        """What can be looked for in a picture, as attribute names and values; a negated phrase gives the terms it denies."""
        found: list[Term] = []
        if self.is_negated and self.region not in ("person",):
            return tuple(_kind_terms(self)) or tuple(_colour_terms(self))
        found += _kind_terms(self)
        found += _colour_terms(self)
        found += _look_terms(self)
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Description:
    """A parsed description. unknown: words nobody could place; ignored: words that must not be used to label people;
    replaced: unknown words and the lexicon words taken for them; words: what was read, in order, without the ignored words."""

    text: str
    phrases: tuple[Phrase, ...] = ()
    unknown: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    replaced: tuple[tuple[str, str], ...] = ()
    words: tuple[str, ...] = ()

    def terms(self) -> dict[Term, float]:
        """Every term with its sign: 1 wished, -1 denied ("no bag")."""
        signed: dict[Term, float] = {}
        for phrase in self.phrases:
            for term in phrase.terms():
                signed[term] = -1.0 if phrase.is_negated else 1.0
        return signed


def _colour_terms(phrase: Phrase) -> list[Term]:
    places = {
        "upper": ("upper",),
        "lower": ("lower",),
        "whole": ("upper", "lower"),
        "shoes": ("shoes",),
        "carrying": ("bag",),
        "hair": ("hair",),
    }.get(phrase.region, ())
    if phrase.region == "carrying" and phrase.kind in ("phone", "papers", "umbrella"):
        places = ()
    terms = [(f"{place} colour", colour) for place in places for colour in phrase.colours]
    tones = list(phrase.tones) or [tone for tone, colours in _TONE_OF.items() if colours.intersection(phrase.colours)]
    return terms + [(f"{place} tone", tone) for place in places if place != "bag" for tone in tones]


_TONE_OF = {"dark": frozenset({"black"}), "light": frozenset({"white", "beige"})}


def _kind_terms(phrase: Phrase) -> list[Term]:
    if phrase.region == "carrying":
        is_bag = phrase.kind in ("backpack", "shoulder bag", "handbag", "bag")
        own = [] if phrase.kind == "bag" else [("carrying", phrase.kind)]
        # "no backpack" says nothing on other bags
        return own + ([("carrying", "bag")] if is_bag and not (phrase.is_negated and own) else [])
    if phrase.region in ("wearing", "person"):
        return [(phrase.region, phrase.kind)]
    if phrase.region == "hair":
        return [("hair", phrase.kind)] if phrase.kind != "hair" else []
    if phrase.region == "whole":
        return [("upper type", phrase.kind)] if phrase.kind != "clothes" else []
    if phrase.region in ("upper", "lower"):
        return [(f"{phrase.region} type", phrase.kind)] if phrase.kind not in ("top", "trousers") else _plain_kind(phrase)
    if phrase.region == "shoes":
        return [("shoes type", phrase.kind)] if phrase.kind != "shoes" else []
    return []


def _plain_kind(phrase: Phrase) -> list[Term]:
    return [("lower type", "trousers")] if phrase.kind == "trousers" else []


def _look_terms(phrase: Phrase) -> list[Term]:
    terms: list[Term] = []
    for look in phrase.looks:
        if phrase.region == "hair" and look in ("long", "short", "tied"):
            terms.append(("hair", look))
        elif phrase.region in ("upper", "whole"):
            if look in ("striped", "plaid", "printed"):
                terms.append(("pattern", look))
            elif look == "hooded":
                terms.append(("upper type", "hooded"))
            elif look == "sleeveless":
                terms.append(("sleeves", "short"))
            elif look in ("long sleeves", "short sleeves"):
                terms.append(("sleeves", look.split()[0]))
            elif look == "long":
                terms.append(("upper type", "long coat"))
        elif phrase.region == "lower" and look == "denim":
            terms.append(("lower type", "jeans"))
        elif phrase.region == "lower" and look == "short" and phrase.kind == "trousers":
            terms.append(("lower type", "shorts"))
    return terms


@dataclass
class _Reader:
    """State of the walk over the words: adjectives that wait for their noun, and the phrase read last."""

    phrases: list[Phrase] = field(default_factory=list)
    colours: list[str] = field(default_factory=list)
    tones: list[str] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)
    waiting_at: list[int] = field(default_factory=list)  # where in the text the waiting adjectives stand
    ignored_at: set[int] = field(default_factory=set)
    is_negated: bool = False
    is_after_noun: bool = False  # only little words since the last noun
    is_copula: bool = False  # "the jacket is ..."
    is_dressed_in: bool = False  # "dressed in ...", "all in ..."

    def waiting(self) -> bool:
        return bool(self.colours or self.tones or self.looks)

    def clear(self) -> None:
        self.colours, self.tones, self.looks, self.waiting_at = [], [], [], []

    def noun(self, region: str, kind: str) -> None:
        if region == "person":
            self.clear()  # a colour before "man" would be a skin colour: never used
            self.phrases.append(Phrase(region, kind, is_negated=self.is_negated))
        else:
            looks = tuple(dict.fromkeys(self.looks))
            self.phrases.append(Phrase(region, kind, _once(self.colours), _once(self.tones), looks, is_negated=self.is_negated))
            self.clear()
        self.is_after_noun, self.is_copula, self.is_dressed_in = True, False, False

    def part(self, says: str) -> None:
        """A part such as sleeves or a logo: its colours are accents of the garment named before, or wait for the one that follows."""
        length = next((look for look in self.looks if look in ("long", "short")), "")
        says = f"{length} sleeves" if says == "sleeves" and length else ("" if says == "sleeves" else says)
        owner = self._owner()
        if owner is None or not self.is_after_noun:
            self.looks = [look for look in self.looks if look not in ("long", "short")] + ([says] if says else [])
            return
        last = self.phrases[owner]
        looks = _once([*last.looks, says] if says else last.looks)
        self.phrases[owner] = _with(last, looks=looks, accents=_once([*last.accents, *self.colours]))
        self.clear()

    def flush(self, is_end: bool = True) -> None:
        """Adjectives without a noun: of the noun before ("his jacket is red"), of all clothes ("dressed in black"), or nothing."""
        owner = self._owner()
        if self.waiting() and owner is not None and (self.is_copula or self.is_after_noun) and not self.phrases[owner].colours:
            last = self.phrases[owner]
            tones, looks = _once([*last.tones, *self.tones]), _once([*last.looks, *self.looks])
            self.phrases[owner] = _with(last, colours=_once(self.colours), tones=tones, looks=looks)
        elif self.is_dressed_in and (self.colours or self.tones):
            self.phrases.append(Phrase("whole", "clothes", _once(self.colours), _once(self.tones), is_negated=self.is_negated))
        self.clear()
        self.is_copula = self.is_dressed_in = False
        if is_end:
            self.is_after_noun = False

    def _owner(self) -> int | None:
        """Index of the last thing that can have a colour."""
        if self.phrases and self.phrases[-1].region != "person":
            return len(self.phrases) - 1
        return None


def _once(words: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


def _with(phrase: Phrase, **changes: tuple[str, ...]) -> Phrase:
    values = {name: getattr(phrase, name) for name in ("region", "kind", "colours", "tones", "looks", "accents", "is_negated")}
    return Phrase(**{**values, **changes})


def words_of(text: str) -> list[str]:
    """The words and marks of ``text``, lower case, with phrases such as "t shirt" or "tennis shoes" joined into one word."""
    text = text.lower().replace("’", "'")
    for pattern, joined in _JOINED:
        text = re.sub(pattern, joined, text)
    words: list[str] = []
    for word in _WORD.findall(text):
        if "-" in word and not _is_known(word):
            words += [part for part in word.split("-") if part]
        else:
            words.append(word)
    return words


def _is_known(word: str) -> bool:
    return (
        word in THINGS
        or word in COLOUR_WORDS
        or word in PARTS
        or word in LOOKS
        or word in FORBIDDEN
        or word in _NEUTRAL
        or word in _NEGATIONS
    )


def lexicon() -> tuple[str, ...]:
    """The words an unknown word may be taken for: things, colours and looks."""
    taken = [word for words in _THINGS.values() for word in words.split()[:2]]
    return tuple(dict.fromkeys(word for word in [*taken, *COLOURS, "dark", "purse", "striped", "plaid", "hooded"] if word not in _ODD))


def parse(text: str, synonyms: Callable[[str], str | None] | None = None) -> Description:
    """The phrases of ``text``; ``synonyms`` gives a word of lexicon() for a word that is not known, or None."""
    words = words_of(text)
    unknown: list[str] = []
    ignored: list[str] = []
    replaced: list[tuple[str, str]] = []
    known: list[str] = []
    for word in words:
        if word in FORBIDDEN:
            ignored.append(word)
            word = _IGNORED
        elif word.isalpha() and not _is_known(word) and word not in _STOPS and word not in _JOINS:
            taken = synonyms(word) if synonyms is not None and len(word) > 2 else None
            if taken is None:
                unknown += [word] if len(word) > 2 else []
                continue
            replaced.append((word, taken))
            word = taken
        known.append(word)
    reader = _Reader()
    for index, word in enumerate(known):
        _read(reader, word, known, index)
    reader.flush()
    ignored += [known[index] for index in sorted(reader.ignored_at)]
    kept = tuple(word for index, word in enumerate(known) if index not in reader.ignored_at and word != _IGNORED)
    return Description(text, _merged(reader.phrases), _once(unknown), _once(ignored), tuple(dict.fromkeys(replaced)), kept)


def _read(reader: _Reader, word: str, words: list[str], index: int) -> None:
    following = words[index + 1] if index + 1 < len(words) else "."
    if word == _IGNORED:
        reader.ignored_at.update(reader.waiting_at)  # "dark skin"
        reader.clear()
    elif word in THINGS and following in THINGS and THINGS[following][0] != "person" and THINGS[word][0] != "person":
        if word in ("jean", "jeans"):
            reader.looks.append("denim")  # "jean jacket": the last noun is the thing
        elif word == "hoodie":
            reader.looks.append("hooded")
    elif word in THINGS:
        if word in _PRONOUNS or reader.is_after_noun or reader.is_dressed_in:
            if THINGS[word][0] == "person":
                reader.flush(is_end=False)
        elif THINGS[word][0] == "person":
            reader.ignored_at.update(reader.waiting_at)
        reader.noun(*THINGS[word])
    elif word in COLOUR_WORDS:
        colour, tone = COLOUR_WORDS[word]
        reader.colours += [colour] if colour else []
        reader.tones += [tone] if tone else []
        reader.waiting_at.append(index)
    elif word in PARTS and not (word in LOOKS and following in THINGS):
        reader.part(PARTS[word])
    elif word in LOOKS:
        reader.looks.append(LOOKS[word])
    else:
        _read_small(reader, word, words, index)


def _read_small(reader: _Reader, word: str, words: list[str], index: int) -> None:
    """Marks, joining words, negations and verbs: where adjectives and negations end."""
    previous = words[index - 1] if index else ""
    if word in _NEGATIONS:
        reader.flush()
        reader.is_negated = True
    elif word in ".;:!?":
        reader.flush()
        reader.is_negated = False
    elif word in ("is", "are", "was"):
        reader.is_copula = reader.is_after_noun
    elif word == "in" and previous in (
        "dressed",
        "all",
        "clad",
        "man",
        "woman",
        "person",
        "is",
        "male",
        "female",
        "lady",
        "guy",
        "he",
        "she",
    ):
        reader.is_dressed_in = True
    elif word == "," or word in _JOINS:
        _join(reader, word, words, index)
    elif word in _STOPS and previous not in _NEGATIONS:
        was_after_noun = reader.is_after_noun and word in ("with", "con", "mit", "avec")
        reader.flush()
        reader.is_after_noun = was_after_noun  # "shirt with blue sleeves"
        reader.is_negated = False


def _join(reader: _Reader, word: str, words: list[str], index: int) -> None:
    following = next((w for w in words[index + 1 :] if w not in _ARTICLES), ".")
    is_new_noun = index + 1 < len(words) and words[index + 1] in _ARTICLES and words[index + 1] != "very"  # "white and a denim jacket"
    is_list_of_adjectives = (following in COLOUR_WORDS or following in LOOKS) and not is_new_noun
    if reader.waiting() and is_list_of_adjectives and not reader.is_copula and not _binds_back(reader):
        return  # "black and white shirt", "a loose, grey coat"
    if reader.waiting() and is_list_of_adjectives and reader.is_copula and word != ",":
        return  # "the shirt is black and white"
    if reader.waiting() and following in THINGS and not reader.is_after_noun:
        return
    reader.flush()
    if word == "," or (word in ("and", "y", "und", "et", "e", "&") and following not in THINGS):
        reader.is_negated = False


def _binds_back(reader: _Reader) -> bool:
    """Whether the adjectives stand behind a noun that has no colour yet, as in "chaqueta roja y pantalones negros"."""
    return reader.is_after_noun and bool(reader.phrases) and not reader.phrases[-1].colours and reader.phrases[-1].region != "person"


def _merged(phrases: list[Phrase]) -> tuple[Phrase, ...]:
    """Without repetitions: "man ... he ... his" is said once."""
    return tuple(dict.fromkeys(phrases))
