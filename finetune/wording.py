"""What an expression speaks of, by its words: a place, another thing, people.

Word lists cannot be right about every text; they are fixed, so that the same expression falls into
the same slice in every evaluation.
"""

from __future__ import annotations

import re

from wholegrain.data.directions import has_direction


def _whole_words(words: str) -> str:
    return rf"\b(?:{'|'.join(words.split())})\b"


_SPATIAL = re.compile(
    r"\b(above|background|behind|below|beneath|beside|between|bottom(most)?|cent(er|re)|clos(er|est)|"
    r"corner|edge|far(ther|thest)?|furth(er|est)|first|second|third|fourth|last|foreground|front|"
    r"inside|outside|low(er|est)|middle|near(er|est)?|next|o'clock|top(most)?|under(neath)?|"
    r"upper(most)?)\b",
    re.IGNORECASE,
)

# "on" and "in" relate a thing to another ("cup on the table") or to the photo ("on the left", "in
# the middle"): the words that follow decide. "in red" is neither.
_OF_THE_PHOTO = (
    r"(?:(?:the|its|his|her|their|your|our|my|far|very|upper|lower|top|bottom)\s+)*"
    r"(?:left|right|top|bottom|middle|cent(?:er|re)|front|back(?:ground)?|foreground|corner|side|"
    r"edge|end|far|l|r|lft|rt)\b"
)
_RELATION = re.compile(
    r"\b(?:above|across\s+from|against|alongside|among|amongst|around|atop|attached\s+to|behind|"
    r"below|beneath|beside|besides|between|beyond|by\s+(?:the|a|an|his|her|its|their)|"
    r"(?:close|closer|closest|nearer|next|adjacent|opposite)\s+to|nearest|(?:left|right)\s+of|"
    r"in\s+front\s+of|inside|into|near|on\s+top\s+of|onto|opposite|outside\s+of|over|under|"
    r"underneath|surrounded|touching|facing|holding|held|carrying|riding|pulling|pushing|hugging|"
    r"feeding|following|leaning|looking\s+at|talking\s+to|sitting\s+(?:in|at)|"
    rf"on\s+(?!{_OF_THE_PHOTO})(?:the|a|an|his|her|its|their|top)\b)\b",
    re.IGNORECASE,
)

_PEOPLE = _whole_words(
    "man men woman women boy boys girl girls person persons people guy guys gal gals lady ladies "
    "gentleman gentlemen child children kid kids baby babies infant toddler toddlers teen teens "
    "teenager teenagers adult adults dude dudes male males female females human humans someone "
    "somebody everyone anyone he she him who mom mother dad father parent parents son daughter "
    "brother sister grandma grandpa grandmother grandfather husband wife bride groom crowd player "
    "players batter hitter catcher umpire ump referee pitcher goalie fielder skier skiers surfer "
    "surfers snowboarder snowboarders skater skaters skateboarder skateboarders rider riders biker "
    "bikers cyclist cyclists bicyclist motorcyclist runner runners swimmer swimmers dancer dancers "
    "musician musicians singer guitarist drummer performer performers worker workers chef chefs "
    "waiter waitress officer officers policeman policemen cop cops soldier soldiers fireman "
    "firefighter firefighters doctor nurse teacher student students driver pedestrian pedestrians "
    "spectator spectators audience coach boxer boxers wrestler wrestlers cowboy hiker hikers "
    "climber climbers vendor tourist tourists friend friends couple family families team "
    "teams racer racers photographer photographers shepherd onlooker onlookers bicyclists clown "
    "clowns kayaker kayakers cheerleader cheerleaders jockey jockeys rollerblader owner"
)
_ANIMALS = _whole_words(
    "animal animals bear bears bird birds bull calf cat cats cattle cow cows dog dogs duck ducks "
    "elephant elephants giraffe giraffes goat goats horse horses kitten kittens lamb lambs lion "
    "lions monkey monkeys puppy puppies sheep zebra zebras"
)
# "the man's hat" and "her hat" are hats, "her" on its own is not.
_PERSON = re.compile(rf"{_PEOPLE}(?!\s?['’]s?\b)|\bher\b(?!\s+\w)", re.IGNORECASE)
_ANIMAL = re.compile(_ANIMALS, re.IGNORECASE)
# "a group of men" names men, "a couple of dogs" dogs.
_COLLECTION = re.compile(
    r"\b(?:group|bunch|crowd|couple|pair|team|line|row|gathering|family|number|lot|kind|type|all|"
    r"some|most|many|both|one|two|three|four|five)\s+of\b",
    re.IGNORECASE,
)
# What comes after one of these describes the thing rather than names it.
_DESCRIBES = re.compile(
    r"\b(?:with|in|on|at|of|by|near|nearest|behind|beside|between|under|over|above|below|next|"
    r"closest|from|to|that|which|whose|wearing|holding|carrying|being|held|worn|ridden|used|"
    r"against|around|for|touching|facing)\b",
    re.IGNORECASE,
)


def mentions_place(text: str) -> bool:
    """Whether a text says where its object is, by whole words ("bright" does not say "right")."""
    return has_direction([text]) or _SPATIAL.search(text) is not None


def mentions_relation(text: str) -> bool:
    """Whether a text relates its object to another: "next to the bus", "holding a cup"."""
    return _RELATION.search(text) is not None


def names_people(text: str) -> bool:
    """Whether the thing that a text names is a person or several.

    That is decided by the words before the first that describes: "man with a dog" names people,
    "dog behind the man", "the man's hat" and "baby elephant" do not. Where nothing comes before it,
    by all words.
    """
    text = _COLLECTION.sub(" ", text)
    first = _DESCRIBES.search(text)
    named = text[: first.start()] if first else text
    if not named.strip():
        named = text
    return _PERSON.search(named) is not None and _ANIMAL.search(named) is None
