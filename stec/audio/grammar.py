"""A grammar that recombines words into sentences, for synthetic speech: about 2e9 of them, so few are said twice."""

import numpy as np

WORDS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split(", "))
    for name, words in {
        "name": "Joy, Theo, Ruth, George, Zara, Hugh, Sheila, Vivian, Chuck, Yolanda, Brooke, Keith, Floyd, Paula, "
        "Edith, Oscar, Nathan, Megan, Walter, Judith, Ahmed, Laura, Douglas, Yvonne, Patrick, Susan, Howard, Beth",
        "person": "teacher, nurse, judge, farmer, soldier, painter, cook, youth, shepherd, thief, engineer, scholar, "
        "bishop, driver, tailor, boy, witch, sailor, queen, father, chemist, lawyer, captain, cousin, voyager, "
        "author, butcher, guide, singer, waiter",
        "thing": "book, bath, toy, treasure, cushion, engine, yacht, jug, chair, oven, path, house, cloth, thumb, "
        "shovel, garage, violin, cheese, wheel, feather, hook, coin, watch, basket, robe, vase, rug, ladder, onion, "
        "bridge, leaf, pear, mouth, yoke, shawl, spoon, orange, pump, zip, kite, journal, wagon, square, bowl",
        "things": "books, boys, shoes, judges, treasures, wolves, leaves, churches, clothes, teeth, oranges, yards, "
        "thoughts, kings, horses, engines, watches, vowels, cubes, cushions, pigeons, villages, gloves, coins, "
        "thorns, beaches, joints, garages, measures, hooves, youths, bowls",
        "adj": "good, young, thick, smooth, usual, noisy, rough, huge, narrow, joyful, yellow, cheap, quiet, brown, "
        "very old, hollow, soft, royal, vague, pure, shallow, bright, gentle, wooden, awkward, useful, dirty, "
        "foolish, northern, clever, curious, beige, loyal, sharp, warm, empty, heavy, rare",
        "did": "took, found, washed, measured, bought, chose, pushed, threw, watched, enjoyed, carried, shook, "
        "pulled, lost, sold, moved, destroyed, brushed, judged, mixed, drew, held, followed, buried, finished, "
        "touched, described, hid, caught, owned",
        "do": "take, find, wash, measure, buy, choose, push, throw, watch, enjoy, carry, shake, pull, lose, sell, "
        "move, destroy, brush, judge, mix, draw, hold, follow, bury, finish, touch, describe, hide, catch, use",
        "went": "slept, laughed, waited, vanished, coughed, sang, worked, shouted, breathed, yawned, argued, "
        "stood, cooked, joked, rejoiced, swam, sighed, prayed, smiled, stumbled, lingered, whistled",
        "how": "slowly, gently, loudly, with pleasure, as usual, without a word, rather badly, in good faith, "
        "thoughtfully, with great joy, quite calmly, once more, for a while, too quickly, in vain, with both hands",
        "where": "in the valley, beside the garage, under the bridge, behind the church, on the beach, by the brook, "
        "near the oil well, in the south, at the zoo, outside the house, above the harbour, on the third floor, "
        "through the wood, in the yard, over the hedge, beyond the river, in the square, along the shore",
        "when": "last Thursday, before noon, in the usual way, after the thunder, at the first light, this evening, "
        "during the voyage, in July, on Sunday, for the third time, at four each morning, in the autumn, after a "
        "short pause, within the hour, as soon as it rained, late at night, twice a year",
        "many": "two, three, five, six, seven, nine, twelve, forty, both, few, other, such, all the, only four",
    }.items()
}

TEMPLATES: tuple[str, ...] = (
    "The {adj} {person} {did} a {thing} {where}.",
    "{name} {did} {many} {adj} {things} {when}.",
    "{name} and the {person} {went} {how} {where}.",
    "Why did the {person} {do} the {adj} {thing} {when}?",
    "If the {thing} is too {adj}, {name} should {do} it {how}.",
    "{when}, the {adj} {person} {went} {where}.",
    "{name} said that the {things} and the {thing} were {adj}.",
    "Could you {do} the {thing} {where}, or {do} {many} {things}?",
    "The {person} {went} {how}, and {name} {did} the {thing}.",
    "There were {many} {things} {where}, but the {person} {did} a {thing}.",
    "We {went} {where} until {name} {did} the {adj} {thing}.",
    "Neither the {person} nor {name} would {do} such a {adj} {thing}.",
    "Please {do} the {adj} {thing} {how}, {name}.",
    "Those {things} {where} are {adj}, as the {person} knows.",
)


def compose(generator: np.random.Generator) -> str:
    """One sentence of the grammar, drawn from `generator`.

    >>> compose(np.random.default_rng(0))
    'Neither the father nor Edith would watch such a cheap bath.'
    """
    template = TEMPLATES[generator.integers(len(TEMPLATES))]
    words: list[str] = []
    for piece in template.split("{"):
        slot, closed, rest = piece.partition("}")
        if not closed:  # what stands before the first slot
            words.append(piece)
            continue
        choices = WORDS[slot]
        words.append(choices[generator.integers(len(choices))] + rest)
    text = "".join(words)
    for vowel in "aeiou":  # "a oven", "a old" to "an": "a useful" and "a usual" begin with a consonant
        text = text.replace(f" a {vowel}", f" an {vowel}")
    text = text.replace(" an us", " a us")
    return text[0].upper() + text[1:]
