"""Text questions: short arithmetic, a closed set of facts, reading and copying from the prompt.

What is held out: pairs of numbers never trained (a fixed fifth of all pairs), and for each fact
one way of asking that was trained only for other facts.
"""

import random

from vocabulary import (
    ARITHMETIC_PROMPTS,
    COLORS,
    COMMAND_OBJECTS,
    COMMAND_VERBS,
    COMPARE_PROMPTS,
    COPY_PROMPTS,
    DIGIT_WORDS,
    FACTS,
    PICTURE_QUESTIONS,
    SHAPES,
    SIGN_CONTEXTS,
    SIGN_WORDS,
    SYSTEM_MESSAGES,
)


def is_held_out(*parts):
    """A fixed, arbitrary fifth of all combinations (the same on every machine and run)."""
    key = 0
    for letter in "|".join(map(str, parts)):
        key = (key * 131 + ord(letter)) % 1_000_003
    return key % 5 == 0


def arithmetic(rng, held_out):
    """``(question, answer)``: sums and differences of numbers to 99, products to 9 x 9."""
    while True:
        sign = rng.choice("++--*")
        top = 9 if sign == "*" else rng.choice((20, 99, 99))
        a, b = rng.randint(0, top), rng.randint(0, top)
        if sign == "-" and b > a:
            a, b = b, a
        # a table is learned by heart: only sums and differences can be held out
        if sign == "*" or is_held_out(a, sign, b) == held_out:
            value = {"+": a + b, "-": a - b, "*": a * b}[sign]
            return rng.choice(ARITHMETIC_PROMPTS[sign]).format(a, b), str(value)


def comparison(rng, held_out):
    """Which of two numbers to 99 is larger."""
    while True:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        if a != b and is_held_out(a, "or", b) == held_out:
            return rng.choice(COMPARE_PROMPTS).format(a, b), str(max(a, b))


def fact(rng, held_out):
    """A fact in one of its phrasings; each fact's held-out phrasing is never trained for it."""
    family = rng.choice(list(FACTS))
    prompts, facts = FACTS[family]
    index = rng.randrange(len(facts))
    subject, answer = list(facts.items())[index]
    choices = list(range(len(prompts)))
    if len(prompts) > 1:
        kept = index % len(prompts)
        choices = [kept] if held_out else [c for c in choices if c != kept]
    return prompts[rng.choice(choices)].format(subject), answer


def number(rng):
    """A number of one to three digits, as printed on the pictures."""
    return str(rng.randrange(10 ** rng.choice((1, 2, 3, 3))))


def sign_in_words(rng, held_out):
    """Reading comprehension: a picture described in words, and a question about it."""
    while True:
        kind = rng.choice(("number", "word"))
        text = number(rng) if kind == "number" else rng.choice(SIGN_WORDS)
        color, shape = rng.choice(COLORS), rng.choice(SHAPES)
        if is_held_out(text, color, shape) == held_out:
            break
    asked = rng.choice((kind, "color", "shape", "both"))
    question = rng.choice(PICTURE_QUESTIONS[asked])
    answer = answer_about({kind: text, "color": color, "shape": shape}, asked)
    context = rng.choice(SIGN_CONTEXTS)
    text = context.format(color=color, shape=shape, kind=kind, text=text, question=question)
    return text, answer


def answer_about(facts, asked):
    """The expected answer about a picture with these ``facts`` (kind -> value)."""
    return f"{facts['color']} {facts['shape']}" if asked == "both" else facts[asked]


def copy(rng, held_out):
    """Say after me: digit words, commands and other words."""
    while True:
        style = rng.randrange(3)
        if style == 0:
            words = [rng.choice(DIGIT_WORDS) for _ in range(rng.randint(2, 12))]
        elif style == 1:
            words = []
            for _ in range(rng.choice((1, 1, 2, 3))):
                words += [rng.choice(COMMAND_VERBS), "the", rng.choice(COMMAND_OBJECTS)]
        else:
            pool = COLORS + SHAPES + SIGN_WORDS + DIGIT_WORDS + COMMAND_OBJECTS
            words = [rng.choice(pool) for _ in range(rng.randint(2, 6))]
        text = " ".join(words)
        if is_held_out(text) == held_out:
            return rng.choice(COPY_PROMPTS).format(text), text


MAKERS = ((arithmetic, 10), (comparison, 2), (fact, 4), (sign_in_words, 4), (copy, 4))


def sample(rng, held_out=False):
    """One ``(system message or None, question, answer)``."""
    makers, weights = zip(*MAKERS, strict=True)
    question, answer = rng.choices(makers, weights)[0](rng, held_out)
    system = rng.choice(SYSTEM_MESSAGES) if rng.random() < 0.1 else None
    return system, question, answer


def held_out_items(count=200, seed=11):
    """``count`` different held-out questions, deterministic."""
    rng, seen, items = random.Random(seed), set(), []
    while len(items) < count:
        system, question, answer = sample(rng, held_out=True)
        if question not in seen and system is None:
            seen.add(question)
            items.append((question, answer))
    return items
