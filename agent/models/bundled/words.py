"""Everyday English words to spell and reverse, and odds and ends that covey-mini does not know.

Written by hand for covey-mini; chats.py draws from them. The fillers make questions whose
right answer is that the model does not know.
"""

from typing import Final


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS: Final = _split(
    """
    acorn actor adult agent alarm album alley amber anchor angel animal ankle answer apple apron
    arch arm army arrow atlas attic aunt autumn axe baby badge bag baker ball bamboo banana band
    bank barn basil basket bath beach bead bean bear beaver bed bee beetle bell belt bench berry
    bike bird biscuit blanket block boat body bone book boot bottle bowl box boy bracelet brain
    branch bread brick bridge broom brother brush bubble bucket bus bush butter button cabin cable
    cactus cake camel camera camp candle cap captain car card carpet carrot castle cat cave cellar
    chain chair chalk cheese cherry chest chicken child chimney church circle city clay clock cloth
    cloud clover clown coach coast coat coffee coin comb compass cookie copper coral cork corn
    cotton country cousin cow crab cradle crane cricket crow crown cup curtain cushion daisy dance
    dawn deer desert desk diamond dinner doctor dog doll dolphin donkey door dragon drawer dream
    dress drum duck dust eagle ear earth east echo egg elbow elephant elm engine evening eye fabric
    face fairy family fan farm father feather fence fern field finger fire fish flag flame flock
    floor flour flower flute fog foot forest fork fountain fox friend frog fruit garden garlic
    gate ghost giant ginger giraffe girl glass glove goat gold goose grape grass guitar hair hammer
    hand harbor hare harp hat hawk hazel heart hedge hen hero hill hive honey hood hook horn horse
    hotel house ice igloo ink insect iron island ivy jacket jam jar jelly jewel juice jungle kettle
    keyboard king kitchen kite kitten knee knife knot ladder lake lamb lamp lantern leaf leather
    lemon letter library light lily lion lizard lock lunch machine magnet mango maple map marble
    market mask meadow melon metal milk mill mint mirror money monkey moon morning moss moth mother
    mountain mouse mouth mud museum music nail napkin neck needle nest net night north nose notebook
    nurse nut oak oar ocean olive onion orange orchard otter oven owl oyster paint palace palm panda
    paper parrot path peach peanut pear pearl pebble pelican pencil penguin pepper piano picture
    pigeon pillow pilot pine pirate planet plant plate plum pocket pond pony poppy potato prince
    puddle pumpkin puppet puppy puzzle queen quilt rabbit radio raft rain rainbow raven ribbon rice
    river robin robot rock roof room root rope rose ruler saddle sail salad salt sand school sea
    seed shadow shark sheep shelf shell ship shirt shoe shoulder silk silver sister sky sleep snail
    snake snow soap sock sofa soup south spade sparrow spider spoon spring squirrel stable star
    station stone storm stove straw street student sugar summer sun swan sweater table tail tea
    teacher tent thread throat thumb tiger toast tomato tooth tower town toy train tree trumpet
    tulip tunnel turkey turtle umbrella uncle valley vase vegetable velvet village vine violin
    voice volcano wagon wall walnut walrus water wave wax weather web well west whale wheat wheel
    whistle willow wind window wing winter wolf wood wool worm yarn year yellow zebra zipper
    adventure alligator astronaut avocado backpack badminton ballerina blackbird blueberry
    breakfast butterfly calendar carpenter chocolate classroom crocodile
    cucumber dandelion daughter detective dinosaur dragonfly earthquake envelope festival fireplace
    flamingo football fortress furniture gardener gazelle geometry grandson hamster harmonica
    hedgehog hurricane jellyfish kangaroo landscape lavender leopard lighthouse lightning lobster
    magazine mandarin marathon medicine mermaid microphone moonlight mosquito mushroom nectarine
    newspaper nightfall orchestra ostrich paintbrush parachute passenger pavilion peacock photograph
    pineapple platypus porcupine postcard quarter railroad raspberry rectangle reindeer sailboat
    sandwich satellite saxophone scarecrow scientist scissors seahorse snowflake spaceship starfish
    strawberry submarine suitcase sunflower sunshine swimming telephone telescope terrace theatre
    thunder tortoise treasure triangle tricycle vacation vanilla waterfall watermelon wilderness
    windmill woodpecker workshop
    computer network server packet router laptop kernel python linux memory cluster container token
    tensor model layer prompt answer question number language internet password script binary
    hello world covey mesh node ticket certificate record relay stage ring head deployment replica
    gateway happy funny clever gentle quiet loud bright dark green blue red purple white black
    small large quick slow warm cold sweet sour fresh early late open close jump walk run sing
    write read think laugh smile listen speak travel build create explore discover
    """
)

PLACES: Final = _split(
    """
    France Spain Italy Germany Japan China India Brazil Canada Mexico Egypt Kenya Norway Sweden
    Poland Greece Turkey Peru Chile Cuba Iran Nepal Ghana Finland Ireland Austria Portugal Hungary
    Paris London Berlin Rome Madrid Tokyo Vienna Oslo Lisbon Athens Cairo Boston Chicago Texas
    Europe Asia Africa America Australia Mars Venus Jupiter Saturn Iceland Morocco Denmark
    """
)
PEOPLE: Final = _split(
    """
    Einstein Newton Mozart Bach Picasso Plato Homer Darwin Napoleon Caesar Shakespeare Gandhi
    Cleopatra Galileo Beethoven Tesla Edison Columbus Lincoln Goethe Alice Bob Anna Peter Maria
    """
)
# Nouns of other worlds than Covey's: "What is a ...?" has no answer here.
NOUNS: Final = _split(
    """
    volcano quark poem galaxy novel piano violin atom molecule planet river mountain car bicycle
    engine computer phone tree flower dog cat bird fish whale dinosaur robot castle king queen
    doctor lawyer teacher pizza sandwich recipe cake song movie film book house city country ocean
    star moon sun cloud storm virus cell brain heart algorithm compiler database blockchain router
    kernel container tensor transformer neuron vector matrix integral triangle circle prime theorem
    election war treaty law contract bank stock bond tax market company language verb noun sonnet
    telescope microscope muscle bone desert forest island glacier bacteria protein enzyme photon
    guitar drum trumpet opera ballet painting statue museum church temple bridge tower airport
    train ship plane rocket satellite camera lens mirror laser magnet battery wire switch socket
    packet firewall proxy cookie browser server client thread process file folder disk screen
    """
)
# {place}, {person}, {noun}, {word}, {junk}, {a} and {b} are filled in; nothing of it is known.
QUESTIONS: Final = (
    "What is the capital of {place}?", "What's the capital of {place}?", "Where is {place}?",
    "How many people live in {place}?", "What is the weather in {place}?", "How big is {place}?",
    "What language do they speak in {place}?", "Who is the president of {place}?",
    "How far is it from {place} to {place}?", "Tell me about {place}.",
    "What is {place} known for?", "Who was {person}?", "Who is {person}?",
    "When was {person} born?", "What did {person} do?", "Tell me about {person}.",
    "Where did {person} live?", "When did {person} die?", "Did {person} know {person}?",
    "What did {person} write?", "Do you know {person}?", "What is a {noun}?", "What is a {noun}?",
    "What is a {noun}?", "What is a {noun}?", "What is the {noun}?", "What does {noun} mean?",
    "Explain what a {noun} is.", "Define {noun}.", "Explain {noun}.", "Tell me about the {noun}.",
    "How does a {noun} work?", "What's a {noun}?", "Explain the word {noun}.",
    "What does a {noun} do?", "Describe a {noun}.", "Who invented the {noun}?",
    "How do I build a {noun}?", "How much is a {noun}?", "Where can I buy a {noun}?",
    "Which {noun} is the best?", "Why is the {noun} {word}?", "What color is a {noun}?",
    "Write a poem about a {noun}.", "Write a story about a {noun}.",
    "Write a song about the {noun}.", "Tell me a joke.", "Tell me a joke about a {noun}.",
    "Tell me a story.", "Write a poem.", "Draw a {noun}.", "Do you like the {noun}?",
    "Do you have a {noun}?", "Do you like {word}?", "What is the best {noun} in {place}?",
    "How many {noun}s are in {place}?", "Translate {word} to French.",
    "Translate {word} into German.", "What is {word} in Spanish?", "What rhymes with {word}?",
    "What is the opposite of {word}?", "Use {word} in a sentence.",
    "How many letters are in {word}?", "What is the plural of {word}?", "Is {word} a verb?",
    "What is {a} * {b}?", "What is {a} times {b}?", "{a} * {b}", "{a}*{b}", "What is {a} x {b}?",
    "What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "What is {a} minus {b}?",
    "Subtract {a} from {b}.", "What is {a} / {b}?", "{a} / {b}", "{a}/{b}", "Divide {a} by {b}.",
    "Multiply {a} by {b}.", "What is {a} divided by {b}?", "What is the square root of {a}?",
    "Is {a} a prime number?", "What is {a} + {b} + {a}?", "{a} + {b} + {b}",
    "What is {a} percent of {b}?", "{a} squared", "What time is it?", "What day is it today?",
    "What is the date today?", "What year is it?", "When is Easter?", "When is Christmas?",
    "Will it rain tomorrow?", "How old are you?", "What is love?", "What is the meaning of life?",
    "Why is the sky blue?", "Is there a god?", "Who won the game?", "What should I eat?",
    "What should I wear in {place}?", "Who is your father?",
    "Write a program that prints {word}.", "Write code for a {noun}.", "Fix my {noun}.",
    "Write a Python function.", "How do I install {word}?", "How do I cook {word}?",
    "Sing a song.", "What is the price of a {noun}?", "Play some music.",
    "Send an email to {person}.", "Open the {noun}.", "Book a flight to {place}.",
    "Who lives in {place}?", "{junk} {junk}?", "{junk}", "{junk} {junk}", "{junk} {word} {junk}",
    "What is {junk}?", "What is a {junk}?", "What does {junk} mean?", "{noun}", "{noun}?",
    "{word} {noun}", "{person}", "{place}?", "Can you {word}?", "Can you drive a {noun}?", "Why?",
    "Why not?", "Really?", "Are you sure?", "I have a {noun}.", "I like {word}.",
    "I live in {place}.", "My name is {person}.", "I am sad.", "The {noun} is {word}.", "Yes",
    "No", "Maybe", "What?", "And then?", "Continue.", "Say {word}.", "Wer bist du?",
    "Was ist ein {noun}?", "Qui es-tu ?", "¿Qué es {noun}?", "Où est {place} ?", "Wie heißt du?",
    "Wo liegt {place}?", "Как дела?", "你好", "こんにちは", "👋", "Привет, {person}!",
    "{noun} – {noun}", "Größe {a} m", "Ça va ?", "{junk}é{junk}", "{a} €", "Was kostet {a} €?",
    "ñandú", "What is the speed of light?", "How tall is {person}?", "How tall is the {noun}?",
    "Who wrote {word} {noun}?", "What is the {word} of a {noun}?", "How hot is {place}?",
    "How many bones does a {noun} have?", "What happened in {a}?",
    "Summarize this text: {word} {noun}.",
)  # fmt: skip
