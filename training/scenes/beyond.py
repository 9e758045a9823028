"""Questions beyond what a demo model can do, small talk, and the one honest answer."""

import random

from training.scenes import words
from training.scenes.turn import Turn, pick

BEYOND = (
    "I am a small demo model. I can only answer questions about simple shapes, colours and text "
    "in pictures."
)
WHO = "I am Glimt, a small demo model."
HELLO = "Hello! Show me a picture of simple shapes or text, and ask about it."
NO_PICTURE = "I see no picture. Please send one."
WELCOME = "You are welcome."

_THINGS = (
    "rice love winter music history chess money time football the sea gravity a dog a cat the moon "
    "coffee Python Norway Japan France Rome Mars trees birds cars war peace art tea snow taxes bees"
).split(" ")
_FORMS = (
    "What is the capital of {x}?",
    "Who wrote {x}?",
    "Write a poem about {x}.",
    "Tell me a story about {x}.",
    "Translate {x} to German.",
    "Translate this sentence into French: I like {x}.",
    "What is {m} times {n}?",
    "What is {m} plus {n}?",
    "How do I cook {x}?",
    "Explain {x}.",
    "Explain {x} to a child.",
    "Why is {x} important?",
    "Write a function that sorts {x}.",
    "What is the weather in {x}?",
    "Who is the president of {x}?",
    "How old is {x}?",
    "Summarise the book {x}.",
    "Give me a recipe with {x}.",
    "What do you think about {x}?",
    "When was {x} invented?",
    "How far is {x} from here?",
    "Write an email about {x}.",
    "Tell me a joke about {x}.",
    "What is the meaning of {x}?",
    "Can you help me with {x}?",
    "Is {x} better than {y}?",
    "How much does {x} cost?",
    "Solve for x: {m}x = {n}.",
    "Where can I buy {x}?",
    "What are the symptoms of {x}?",
    "Which team won in {m}?",
    "Write a song about {x} and {y}.",
    "Who is the person in the picture?",
    "What breed is this dog?",
    "Which city is shown here?",
    "What year was this photo taken?",
    "Is this plant edible?",
    "What is the person doing?",
    "Which brand is this?",
    "Draw {x}.",
    "Paint me a picture of {x}.",
    "Play {x}.",
    "Remind me to call {x} tomorrow.",
    "What time is it?",
    "What day is today?",
    "Define {x}.",
    "Spell {x} backwards.",
    "List five facts about {x}.",
    "Give me advice on {x}.",
    "How does {x} work?",
    "Prove that {m} is prime.",
    "What is the square root of {n}?",
)

# Only for training: beside a picture, "what … is this?" is not always a question about shapes.
_MORE_FORMS = (
    "What kind of bird is this?",
    "Which model of car is this?",
    "Who made this?",
    "Who painted this picture?",
    "What language is this?",
    "What material is it made of?",
    "Which country is this?",
    "What is this animal called?",
    "What flower is that?",
    "What date is it?",
    "How warm is it?",
    "Is it going to rain?",
    "What does this cost?",
    "How heavy is this?",
    "Where was this taken?",
    "What song is playing?",
    "Which street is this?",
    "What species is the {x}?",
    "Which kind of {x} is it?",
    "What mood is she in?",
)


def beyond(rng: random.Random, held_out: bool) -> Turn:
    """A question out of reach. Every fifth form is for the evaluation alone."""
    forms = [form for i, form in enumerate(_FORMS) if (i % 5 == 3) == held_out]
    if not held_out:
        forms += _MORE_FORMS
    parts = {
        "x": rng.choice(_THINGS) if rng.random() < 0.7 else words.pseudo_word(rng, 9),
        "y": rng.choice(_THINGS),
        "m": str(rng.randint(2, 2030)),
        "n": str(rng.randint(2, 999)),
    }
    return Turn("beyond", pick(rng, *forms, **parts), BEYOND, "That is beyond me.")


def small_talk(rng: random.Random) -> Turn:
    """Greetings, thanks, who are you."""
    question, answer = rng.choice(
        (
            (("Hello", "Hi", "Hello!", "Good morning!", "Hey", "Hi there!"), HELLO),
            (("Who are you?", "What are you?", "What is your name?", "Which model are you?"), WHO),
            (("What can you do?", "Help", "How can you help me?", "What do you know?"), BEYOND),
            (("Thanks!", "Thank you.", "Thanks a lot!", "Great, thanks."), WELCOME),
        )
    )
    return Turn("chat", pick(rng, *question), answer, "This is small talk.")


def without_picture(rng: random.Random) -> Turn:
    """A question about a picture that was not sent."""
    question = pick(
        rng,
        "What colour is the circle?",
        "How many shapes are there?",
        "What does the text say?",
        "What is in the picture?",
        "Describe the picture.",
        "Read the text.",
        "Is there a red square?",
        "Where is the star?",
    )
    return Turn("absent", question, NO_PICTURE, "There is no picture.")
