"""What the model is asked and what it answers: one canonical answer for each question."""
import random

from scenes import KINDS, NAMES, SHAPES

PLACES = ["at the top left", "at the top", "at the top right",
          "on the left", "in the center", "on the right",
          "at the bottom left", "at the bottom", "at the bottom right"]
NUMBERS = ["no objects.", "one object.", "two objects.", "three objects."]

QUESTIONS = {
    "describe": ["Describe the picture.", "Describe this picture.", "Describe the image.", "Describe this image.",
                 "What do you see?", "What is in the picture?", "What is in this picture?", "What is in the image?",
                 "What is in this image?", "What does the picture show?", "What does the image show?",
                 "What can you see?", "Describe what you see.", "Describe the image in one sentence.",
                 "What is this?", "Describe.", "What's in this image?", "Please describe the picture.",
                 "Describe the scene.", "Describe this image in detail."],
    "count": ["How many objects are there?", "How many objects are in the picture?", "How many objects do you see?",
              "How many objects are in the image?", "How many things are there?", "How many things do you see?",
              "Count the objects.", "How many objects?", "How many objects can you see?"],
    "colour": ["What colour is the {s}?", "What color is the {s}?", "Which colour is the {s}?",
               "Which color is the {s}?", "What is the colour of the {s}?", "What is the color of the {s}?",
               "What colour does the {s} have?", "Tell me the colour of the {s}."],
    "at": ["What is {p}?", "What do you see {p}?", "What's {p}?", "What can you see {p}?",
           "Which object is {p}?", "What object is {p}?", "What is there {p}?"],
    "where": ["Where is the {s}?", "Where is the {c} {s}?", "Where's the {s}?", "Where do you see the {s}?"],
    "read": ["What digit is in the picture?", "What number is in the picture?", "Which digit is in the picture?",
             "Read the digit.", "What digit do you see?", "Which number do you see?", "What number is this?",
             "Read the number."],
}


def thing(shape, colour):
    name = NAMES[colour]
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name} {KINDS[shape]}"


def describe(shapes, colours):
    parts = [f"{thing(s, c)} {PLACES[i]}" for i, (s, c) in enumerate(zip(shapes, colours)) if s >= 0]
    if not parts:
        return "nothing."
    return (", ".join(parts[:-1]) + " and " if parts[1:] else "") + parts[-1] + "."


def place(i, rng):
    """The place in the words of a question; many ways to say the same."""
    if i == 4:
        return rng.choice(["in the center", "in the centre", "in the middle", "at the center"])
    if i in (3, 5):
        side = PLACES[i].split()[-1]
        return rng.choice([f"on the {side}", f"at the {side}", f"on the {side} side", f"to the {side}"])
    corner = PLACES[i][7:]
    ways = [f"at the {corner}", f"in the {corner}"]
    if " " in corner:
        ways += [f"in the {corner} corner", f"on the {corner}"]
    return rng.choice(ways)


def ask(kind, shapes, colours, rng=random, plain=False):
    """One question of a kind about a scene and its answer, or None where the scene has no such question.

    `plain` asks in the first wording of the kind and of the place."""
    full = [i for i in range(9) if shapes[i] >= 0]
    words = QUESTIONS[kind][0] if plain else rng.choice(QUESTIONS[kind])
    if kind == "describe":
        return words, describe(shapes, colours)
    if kind == "count":
        return words, NUMBERS[len(full)]
    if kind == "at":
        # Half about a place with an object, half about any place.
        i = rng.choice(full) if full and rng.random() < .5 else rng.randrange(9)
        words = words.format(p=PLACES[i] if plain else place(i, rng))
        return words, thing(shapes[i], colours[i]) + "." if shapes[i] >= 0 else "nothing."
    if kind == "read":
        digits = [shapes[i] for i in full if shapes[i] >= len(SHAPES)]
        return (words, KINDS[digits[0]] + ".") if len(digits) == 1 else None
    single = [i for i in full if sum(shapes[j] == shapes[i] for j in full) == 1]
    if not single:
        return None
    i = rng.choice(single)
    words = words.format(s=KINDS[shapes[i]], c=NAMES[colours[i]])
    return words, NAMES[colours[i]] + "." if kind == "colour" else PLACES[i] + "."


def corpus(rng, lines):
    """Text for the tokenizer."""
    for _ in range(lines):
        shapes, colours = [-1] * 9, [-1] * 9
        for i in rng.sample(range(9), rng.randint(0, 3)):
            shapes[i], colours[i] = rng.randrange(len(KINDS)), rng.randrange(len(NAMES))
        for kind in QUESTIONS:
            pair = ask(kind, shapes, colours, rng)
            if pair:
                yield f"USER: {pair[0]} ASSISTANT: {pair[1]}"
