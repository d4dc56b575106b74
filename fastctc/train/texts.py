"""Texts of the built-in corpus: a vocabulary, pseudo-words, and words that training never uses."""

from __future__ import annotations

from collections.abc import Set

import numpy as np

_VOCABULARY_TEXT = """
about after all among and apple around ask back badge ball bank basket beach before bell below
bicycle big bird black blanket blue book box bread bridge bright broken butter button cabin can't
candle carry castle chair cheese child circle city clean climb clock cloud coffee cold colour
corner cotton cousin crazy dance dark daughter deep desert didn't dinner dizzy doctor dog door
dozen dream drive dry eagle early earth east easy egg eight empty engine evening every eye face
family farm fast feather fence field fifty fire fish five floor flower fog forest fork four fox
freeze friend from fruit funny garden gate gentle giraffe give glass glove goat gold good grass
great green grey guitar hammer hand happy harbour hat he'll heavy hello hill honey horse hour
house hungry ice inside island it's jacket jam jar jazz jelly join journey jug juice jump jungle
just keep kettle key kind king kitchen kite knife lake lamp language large laugh leaf left lemon
letter light line lion listen little long loud lucky lunch magic market maybe meadow milk mirror
monkey moon morning mountain mouse music my narrow near needle nest never new next night nine
noise north not now ocean of old olive one onion open orange other our oven over owl paint paper
park peach pencil people piano picture pillow pizza plain plate please pocket pond pretty pumpkin
purple puzzle queen question quick quiet quilt quite rabbit rain raven read ready red ribbon rice
rich right ring river road rocket roof room rose round rubber sail salt sand school sea seven
shadow she sheep ship shoe silver simple sing six sky sleep slow small smile snow soap soft song
south spoon spring square squirrel star stone storm story street strong sugar summer sun sweet
swim table tail tall taxi tea ten that the they're thick thin thing three thunder tiger time tiny
today tooth tower train tree truck two uncle under until upon valley velvet very village violin
voice wagon walk wall warm wash water wave wax we west what wheel where whisper white wide wind
window winter with wolf won't wood word world write yard yellow yes yesterday you young zebra zero
zigzag
"""

_NEW_WORDS_TEXT = """
acorn actor alphabet anchor ankle answer april arrow athlete attic autumn avenue axe bamboo banjo
barley beaver beige belong biscuit blizzard borrow bottom bouquet breeze brother bucket buzzing
cactus camera canyon carpet cave cedar cherry chimney cinema clever compass copper couldn't crayon
cricket crystal cupboard curve daisy diamond dolphin donkey dragon drawer duck dusk echo elbow
elephant equal excuse expect fairy falcon ferry fiddle finger flag flute forgive fourteen fresh
frost galaxy ginger globe goose grape gravel hazel hedge helmet hexagon history holiday hydrant
igloo inquire ivory ivy january jewel jigsaw jockey judge juggle kangaroo kayak kernel kiwi koala
ladder lantern lavender library lizard lobster luxury maple marble meteor mixture mosquito muffin
napkin nobody nutmeg oak obey october opaque orchard oxygen oyster paddle palace parrot pebble
penguin pepper pigeon planet plum polka potato pyjamas quarter quartz quench quiver radish raft
raisin rhythm robin rowing saddle sapphire sawdust scarf scissors shell shouldn't shovel sixty
sketch skull spider squash squeeze stable steam sunny swan syrup tango teapot thirsty thread
ticket toast tractor trumpet tulip turtle twelve umbrella unicorn uphill useful vanish vase vivid
vortex waffle walnut wasn't whale wizard wrinkle yacht yeast yodel yolk zesty zinc zipper zoology
"""

#: Words that training sees, alone and in strings of up to four.
VOCABULARY: tuple[str, ...] = tuple(_VOCABULARY_TEXT.split())

#: Words kept for the new-words set: no training text holds them, nor do pseudo-words.
NEW_WORDS: tuple[str, ...] = tuple(_NEW_WORDS_TEXT.split())

_VOWELS = "aeiouy"
_CONSONANTS = "bcdfghjklmnpqrstvwxz"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def pseudo_word(rng: np.random.Generator) -> str:
    """Return a random word that is in neither word list.

    Half of them alternate consonants and vowels, half are letters drawn at random: together they
    show the model every pair of letters, so that it learns letters rather than the vocabulary.
    One in ten holds an apostrophe, and one in six a doubled letter.
    """
    while True:
        size = int(rng.integers(2, 8))
        if rng.random() < 0.5:
            first = int(rng.integers(2))
            pools = (_CONSONANTS, _VOWELS)
            letters = [str(rng.choice(list(pools[(first + k) % 2]))) for k in range(size)]
        else:
            letters = [str(c) for c in rng.choice(list(_LETTERS), size)]
        if rng.random() < 1 / 6:
            where = int(rng.integers(len(letters)))
            letters.insert(where, letters[where])
        if rng.random() < 0.1:
            letters.insert(int(rng.integers(1, len(letters))), "'")
        word = "".join(letters)
        if word not in _KNOWN:
            return word


_KNOWN = frozenset(VOCABULARY) | frozenset(NEW_WORDS)


def training_text(rng: np.random.Generator, pseudo_fraction: float) -> str:
    """Return one to four words; each is a pseudo-word with probability ``pseudo_fraction``."""
    words = [
        pseudo_word(rng) if rng.random() < pseudo_fraction else str(rng.choice(VOCABULARY))
        for _ in range(int(rng.integers(1, 5)))
    ]
    return " ".join(words)


def word_string(rng: np.random.Generator, words: tuple[str, ...], banned: Set[str]) -> str:
    """Return two to four of ``words`` in a row that are not in ``banned``."""
    while True:
        text = " ".join(str(w) for w in rng.choice(words, int(rng.integers(2, 5))))
        if text not in banned:
            return text
