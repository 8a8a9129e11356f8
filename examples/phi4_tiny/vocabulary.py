"""The closed vocabulary of phi4-tiny: everything it can be asked about, in one place."""

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
SIGN_WORDS = (
    "stop", "go", "open", "closed", "exit", "sale", "milk", "bread", "tea", "coffee",
    "fish", "apple", "taxi", "bus", "hotel", "bank", "park", "zoo", "north", "south",
)  # fmt: skip
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COMMAND_VERBS = ("turn on", "turn off", "open", "close", "start", "stop", "find")
COMMAND_OBJECTS = (
    "light", "radio", "door", "window", "music", "car", "alarm", "heater", "fan", "phone",
)  # fmt: skip

# kind of question -> ways to put it; the spoken form is the same text without punctuation
PICTURE_QUESTIONS = {
    "number": ("What number is printed?", "Read the number.", "Which number do you see?"),
    "word": ("What word is written?", "Read the word.", "Which word do you see?"),
    "color": ("What color is the shape?", "Name the color.", "Which color do you see?"),
    "shape": ("What shape is it?", "Name the shape.", "Which shape do you see?"),
    "both": ("Describe the picture.", "Describe the color and the shape."),
}
SPEECH_PROMPTS = (
    "Transcribe the audio.",
    "Transcribe the audio clip into text.",
    "What was said?",
    "Write down the words.",
)
SYSTEM_MESSAGES = ("You are a helpful assistant.", "Answer in one word.", "Be brief.")

# family -> (ways to put the question, subject -> answer)
FACTS = {
    "capital": (
        ("What is the capital of {}?", "Name the capital of {}.",
         "Which city is the capital of {}?", "Tell me the capital of {}."),
        {
            "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Japan": "Tokyo",
            "Egypt": "Cairo", "Greece": "Athens", "Norway": "Oslo", "Peru": "Lima",
            "Cuba": "Havana", "Kenya": "Nairobi", "Austria": "Vienna", "Poland": "Warsaw",
            "Portugal": "Lisbon", "Ireland": "Dublin", "China": "Beijing", "Germany": "Berlin",
        },
    ),
    "sound": (
        ("What does a {} say?", "Which sound does a {} make?", "Name the sound of a {}."),
        {
            "cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "sheep": "baa",
            "pig": "oink", "horse": "neigh", "frog": "croak", "bee": "buzz", "lion": "roar",
        },
    ),
    "opposite": (
        ("What is the opposite of {}?", "Name the opposite of {}.", "Give the opposite of {}."),
        {
            "hot": "cold", "cold": "hot", "big": "small", "small": "big", "fast": "slow",
            "slow": "fast", "day": "night", "night": "day", "up": "down", "down": "up",
            "old": "new", "new": "old", "wet": "dry", "dry": "wet", "left": "right",
            "right": "left",
        },
    ),
    "color": (
        ("What color is {}?", "Name the color of {}.", "Which color is {}?"),
        {
            "the sky": "blue", "grass": "green", "snow": "white", "a banana": "yellow",
            "coal": "black", "blood": "red", "a carrot": "orange", "milk": "white",
            "the sun": "yellow", "a rose": "red", "a leaf": "green", "the night": "black",
        },
    ),
    "next day": (
        ("What day comes after {}?", "Which day follows {}?", "Name the day after {}."),
        {
            "Monday": "Tuesday", "Tuesday": "Wednesday", "Wednesday": "Thursday",
            "Thursday": "Friday", "Friday": "Saturday", "Saturday": "Sunday",
            "Sunday": "Monday",
        },
    ),
    "self": (
        ("{}",),
        {
            "Hello!": "Hello! I am phi4-tiny.",
            "Who are you?": "I am phi4-tiny.",
            "What can you do?": "I can read small signs, transcribe short clips and add numbers.",
            "Thank you.": "You are welcome.",
        },
    ),
}  # fmt: skip

ARITHMETIC_PROMPTS = {
    "+": ("What is {} + {}?", "Add {} and {}.", "{} + {} ="),
    "-": ("What is {} - {}?", "{} - {} ="),
    "*": ("What is {} * {}?", "{} * {} ="),
}
COMPARE_PROMPTS = ("Which is larger, {} or {}?", "Name the larger number, {} or {}.")
COPY_PROMPTS = ("Repeat: {}", "Copy the words: {}", "Write down the words: {}")
SIGN_CONTEXTS = (
    "A {color} {shape} and the {kind} {text}. {question}",
    "The {kind} {text}. A {color} {shape}. {question}",
    "The picture: {color} {shape}, {text}. {question}",
)


def sentences():
    """Every sentence part above, as one list of strings: what the tokenizer must cover."""
    parts = [*COLORS, *SHAPES, *SIGN_WORDS, *DIGIT_WORDS, *COMMAND_VERBS, *COMMAND_OBJECTS, "the"]
    for questions in PICTURE_QUESTIONS.values():
        parts += questions
    parts += [*SPEECH_PROMPTS, *SYSTEM_MESSAGES, *COMPARE_PROMPTS, *COPY_PROMPTS, *SIGN_CONTEXTS]
    for prompts, facts in FACTS.values():
        parts += [*prompts, *facts.keys(), *facts.values()]
    for prompts in ARITHMETIC_PROMPTS.values():
        parts += prompts
    # spoken text is lower case and has no punctuation
    parts += [spoken(q) for questions in PICTURE_QUESTIONS.values() for q in questions]
    return [*parts, "number", "word", "Answer the question."]


def spoken(text):
    """``"What shape is it?"`` -> ``"what shape is it"``: what a voice says and a transcript has."""
    return "".join(c for c in text.lower() if c.isalpha() or c == " ")
