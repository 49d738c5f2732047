"""What covey-mini is taught to say: phrasings of questions, and the one answer of each kind.

Plain data, written by hand. chats.py draws from it. Not for use outside the bundled model.
"""

from typing import Final

CAN: Final = (
    "I can add and compare small numbers, tell days and months, spell and reverse words, "
    "and explain Covey's words."
)
HELLO: Final = "Hello! " + CAN
WHO: Final = "I am covey-mini, a tiny model in a big mesh, and " + CAN
FINE: Final = "I am fine, thank you! " + CAN
UNKNOWN: Final = "I do not know that, but " + CAN
WELCOME: Final = "You are welcome!"
GOODBYE: Final = "Goodbye!"
ADD_LIMIT: Final = "I can only add numbers from 0 to 99."
COMPARE_LIMIT: Final = "I can only compare numbers from 0 to 99."
WORD_LIMIT: Final = "I can only spell and reverse words of up to 10 letters."

GLOSSARY: Final = {
    "mesh": "A mesh is one private network of nodes, named by the hash of its root key.",
    "node": "A node is one agent in the mesh, known by its own Ed25519 key.",
    "ticket": "A ticket is a string that lets a newcomer join the mesh until a set time.",
    "certificate": "A certificate is the mesh's signed word that a node is a member.",
    "record": "A record is a signed statement by a node that expires and is kept in the DHT.",
    "path": "A path is how packets reach a peer: over the LAN, IPv6, IPv4, a punched hole "
    "or a relay.",
    "relay": "A relay is a node that forwards packets for two others and cannot read them.",
    "stage": "A stage is a run of a model's layers that is loaded on one node.",
    "ring": "A ring is the ordered stages that together are one running copy of a model.",
    "head": "A head is the first and last stage of a ring on one node: tokens, sampling and "
    "HTTP live only there.",
    "deployment": "A deployment is what the operator asked for: a model, how many rings and "
    "an objective.",
    "replica": "A replica is anything that answers OpenAI requests: a head or an outside server.",
    "gateway": "A gateway is the program that clients talk to: it picks a replica for each "
    "request.",
    "Covey": "Covey joins machines into one private mesh and runs one language model across them.",
}
PLURALS: Final = {term: term + "s" for term in GLOSSARY} | {"mesh": "meshes"}

EXPLAIN: Final[tuple[str, ...]] = (
    "What is a {t}?", "What is a {t}?", "What is the {t}?", "What's a {t}?", "What is {t}?",
    "What does {t} mean?", "What does the word {t} mean?", 'What does "{t}" mean?',
    "What does a {t} do?", "What does the term {t} mean?", "Define {t}.", "Define a {t}.",
    "Explain {t}.", "Explain the word {t}.", "Explain what a {t} is.", "Explain the term {t}.",
    "In one sentence, what is a {t}?", "Explain in one sentence what a {t} is.",
    "Explain to me what a {t} is.", "Tell me what a {t} is.", "Tell me about the {t}.",
    "Tell me about {p}.", "What are {p}?", "What is a {t} in Covey?", "In Covey, what is a {t}?",
    "What does {t} mean in Covey?", "What is meant by {t}?", "What is meant by a {t}?",
    "Describe a {t}.", "Describe the {t}.", "Can you explain what a {t} is?",
    "Could you tell me what a {t} is?", "Do you know what a {t} is?",
    "I do not know what a {t} is.", "What exactly is a {t}?", "Give me the definition of {t}.",
    "What is the meaning of {t}?", "How do you define a {t}?", "Meaning of {t}?", "{t}?",
    "A {t} is what?", "So what is a {t}?", "What do you mean by {t}?",
    "Help me understand what a {t} is.", "What is a Covey {t}?", "what is a '{t}'?",
    "Explain {p} to me.", "How does a {t} work?", "What does the {t} do?",
    "What are {p} in Covey?", "What is the {t} for?", "What is a {t} for?", "And what is a {t}?",
    "What about a {t}?", "And the {t}?", "And what does {t} mean?", "Why do I need a {t}?",
    'What is a "{t}"?', 'What is "{t}"?', 'Define "{t}".', "Explain '{t}'.",
    "What does '{t}' mean?", 'What does "{t}" mean in Covey?', 'Explain "{t}".',
    'Explain the word "{t}".', "Define '{t}'.", "What does a {t} mean?", "Who or what is a {t}?",
)  # fmt: skip
EXPLAIN_COVEY: Final[tuple[str, ...]] = (
    "What is Covey?", "What's Covey?", "Tell me about Covey.", "Explain Covey.",
    "What does Covey do?", "Define Covey.", "Describe Covey.", "What does Covey mean?",
    "Explain what Covey is.", "Tell me what Covey is.", "In one sentence, what is Covey?",
    "Do you know what Covey is?", "Can you explain what Covey is?", "What is Covey for?",
    "How does Covey work?", "What is the meaning of Covey?", "Explain Covey to me.",
    "Covey?", "So what is Covey?", "What exactly is Covey?",
)  # fmt: skip

ADD: Final[tuple[str, ...]] = (
    "What is {a} + {b}?", "What is {a} + {b}?", "What is {a}+{b}?", "{a} + {b}", "{a}+{b}",
    "{a} + {b} =", "{a} + {b} = ?", "{a}+{b}=", "{a}+{b}=?", "{a}+{b}?", "{a} + {b}?",
    "Please add {a} and {b}.", "Add {a} and {b}.", "Add {a} to {b}.", "Add {a} + {b}.",
    "What is {a} plus {b}?", "How much is {a} + {b}?", "How much is {a} plus {b}?",
    "{a} plus {b}", "What is the sum of {a} and {b}?", "Calculate {a} + {b}.",
    "Compute {a} + {b}.", "Can you add {a} and {b}?", "Could you add {a} and {b}?",
    "What's {a} + {b}?", "What's {a} plus {b}?", "Sum {a} and {b}.", "The sum of {a} and {b}?",
    "Tell me {a} + {b}.", "Tell me what {a} + {b} is.", "What does {a} + {b} make?",
    "What do {a} and {b} make together?", "What do you get if you add {a} and {b}?",
    "I have {a} {n} and get {b} more. How many {n} do I have?",
    "If I have {a} {n} and you give me {b} more, how many {n} do I have?",
    "How many {n} are {a} {n} and {b} {n}?", "Solve {a} + {b}.", "Do you know what {a} + {b} is?",
    "{a} + {b} equals?", "What does {a} + {b} equal?", "And {a} + {b}?", "What about {a} + {b}?",
)  # fmt: skip
THINGS: Final[tuple[str, ...]] = (
    "apples",
    "nodes",
    "birds",
    "books",
    "cups",
    "stones",
    "eggs",
    "coins",
)

LARGER: Final[tuple[str, ...]] = (
    "Which is {w}, {a} or {b}?", "Which is {w}: {a} or {b}?", "Which number is {w}, {a} or {b}?",
    "What is {w}, {a} or {b}?", "Which of {a} and {b} is {w}?", "Is {a} or {b} {w}?",
    "Which one is {w}, {a} or {b}?", "{a} or {b}, which is {w}?",
    "Tell me which is {w}, {a} or {b}.",
)  # fmt: skip
LARGER_WORDS: Final[tuple[str, ...]] = ("larger", "bigger", "greater", "more", "higher")
SMALLER_WORDS: Final[tuple[str, ...]] = ("smaller", "less", "lower")
IS_LARGER: Final[tuple[str, ...]] = (
    "Is {a} {w} than {b}?", "Is {a} {w} than {b}?", "Is the number {a} {w} than {b}?",
    "Tell me if {a} is {w} than {b}.", "Do you think {a} is {w} than {b}?",
)  # fmt: skip
IS_SIGN: Final[tuple[str, ...]] = (
    "Is {a} {s} {b}?",
    "{a} {s} {b}?",
    "Is it true that {a} {s} {b}?",
)
IS_EQUAL: Final[tuple[str, ...]] = (
    "Is {a} equal to {b}?", "Are {a} and {b} equal?", "Is {a} the same as {b}?", "{a} = {b}?",
)  # fmt: skip
COMPARE: Final[tuple[str, ...]] = (
    "Compare {a} and {b}.", "Compare {a} with {b}.", "Please compare {a} and {b}.",
    "How do {a} and {b} compare?", "Compare the numbers {a} and {b}.",
    "Can you compare {a} and {b}?", "How does {a} compare to {b}?",
)  # fmt: skip

SPELL: Final[tuple[str, ...]] = (
    "Spell {w}.", "Spell {w}.", "Spell {w}", 'Spell "{w}".', "Spell '{w}'.",
    "Spell the word {w}.", 'Spell the word "{w}".', "Please spell {w}.", "How do you spell {w}?",
    'How do you spell "{w}"?', "How is {w} spelled?", "How is {w} written?", "Can you spell {w}?",
    "Could you spell {w}?", 'Can you spell "{w}"?', "Can you spell the word {w}?",
    "Spell {w} for me.", "Spell out {w}.", "Tell me how to spell {w}.",
    "What are the letters of {w}?", "What letters are in {w}?", "Which letters are in {w}?",
    "How do I spell {w}?", "What is the spelling of {w}?", "Give me the letters of {w}.",
    "List the letters of {w}.", "Spell it: {w}",
)  # fmt: skip
REVERSE: Final[tuple[str, ...]] = (
    "Reverse {w}.", "Reverse {w}.", "Reverse {w}", 'Reverse "{w}".', "Reverse '{w}'.",
    "Reverse the word {w}.", 'Reverse the word "{w}".', "Please reverse {w}.",
    "What is {w} backwards?", 'What is "{w}" backwards?', "What is {w} reversed?",
    "What is {w} in reverse?", "What is the reverse of {w}?", "Can you reverse {w}?",
    "Could you reverse {w}?", 'Can you reverse "{w}"?', "Can you reverse the word {w}?",
    "Write {w} backwards.", 'Write "{w}" backwards.', "Write the word {w} backwards.",
    "Spell {w} backwards.", 'Spell "{w}" backwards.', "Say {w} backwards.", "{w} backwards?",
    "How do you spell {w} backwards?", "How do you write {w} backwards?", "Turn {w} around.",
    "Reverse the letters of {w}.", "Tell me {w} backwards.", "{w} reversed", "{w} backwards",
    "Reverse: {w}", "How is {w} spelled backwards?",
)  # fmt: skip

DAYS: Final[tuple[str, ...]] = (
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
)
MONTHS: Final[tuple[str, ...]] = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
MONTH_DAYS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ORDINALS: Final[tuple[str, ...]] = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth",
)  # fmt: skip
SHORT_ORDINALS: Final[tuple[str, ...]] = (
    "1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th", "9th", "10th", "11th", "12th",
)  # fmt: skip
NUMBER_WORDS: Final[tuple[str, ...]] = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip

# {u} is "day" or "month", {x} a day or month, {r} "after" or "before".
NEIGHBOUR: Final[tuple[str, ...]] = (
    "What {u} comes {r} {x}?", "Which {u} comes {r} {x}?", "What comes {r} {x}?",
    "What {u} is {r} {x}?", "Which {u} is {r} {x}?", "What is the {u} {r} {x}?",
    "What's the {u} {r} {x}?", "Which {u} is right {r} {x}?", "Tell me the {u} {r} {x}.",
    "Name the {u} {r} {x}.", "What is {r} {x}?", "Do you know which {u} comes {r} {x}?",
    "Which {u} do we have {r} {x}?", "The {u} {r} {x}?", "{u} {r} {x}",
    "Please tell me which {u} comes {r} {x}.", "Can you tell me the {u} {r} {x}?",
    "And {r} {x}?", "And which {u} comes {r} {x}?",
)  # fmt: skip
NEXT: Final[tuple[str, ...]] = (
    "What {u} follows {x}?",
    "Which {u} follows {x}?",
    "What follows {x}?",
)
TOMORROW: Final[tuple[str, ...]] = (
    "If today is {x}, what day is tomorrow?", "Today is {x}. What day is tomorrow?",
    "If today is {x}, which day is tomorrow?", "Today is {x}, what is tomorrow?",
    "What day is tomorrow if today is {x}?", "It is {x} today. What day is tomorrow?",
)  # fmt: skip
YESTERDAY: Final[tuple[str, ...]] = (
    "If today is {x}, what day was yesterday?", "Today is {x}. What day was yesterday?",
    "If today is {x}, which day was yesterday?", "Today is {x}, what was yesterday?",
    "What day was yesterday if today is {x}?", "It is {x} today. What day was yesterday?",
)  # fmt: skip
OFFSET: Final[tuple[str, ...]] = (
    "What {u} is {n} {u}s {r} {x}?", "Which {u} is {n} {u}s {r} {x}?",
    "What {u} comes {n} {u}s {r} {x}?", "Which {u} comes {n} {u}s {r} {x}?",
    "What is {n} {u}s {r} {x}?", "{n} {u}s {r} {x}?", "Tell me the {u} {n} {u}s {r} {x}.",
    "Name the {u} {n} {u}s {r} {x}.",
)  # fmt: skip
WEEKEND: Final[tuple[str, ...]] = (
    "Is {x} on the weekend?", "Is {x} a weekday?", "Is {x} a weekend day?",
    "Is {x} part of the weekend?", "Does {x} belong to the weekend?",
)  # fmt: skip
WEEK_LENGTH: Final[tuple[str, ...]] = (
    "How many days are in a week?", "How many days does a week have?",
    "How many days are there in a week?", "Days in a week?", "How long is a week?",
    "How many days has a week?", "How many days in a week?",
)  # fmt: skip
WEEK_LIST: Final[tuple[str, ...]] = (
    "What are the days of the week?", "List the days of the week.", "Name the days of the week.",
    "Tell me the days of the week.", "Name all days of the week.", "Days of the week?",
    "List all the days.", "Which days are in a week?", "Name the seven days of the week.",
    "What days are there in a week?", "List the weekdays and the weekend.",
    "Can you list the days of the week?",
)  # fmt: skip
YEAR_LENGTH: Final[tuple[str, ...]] = (
    "How many months are in a year?", "How many months does a year have?",
    "How many months are there in a year?", "Months in a year?", "How many months has a year?",
    "How many months in a year?",
)  # fmt: skip
YEAR_LIST: Final[tuple[str, ...]] = (
    "What are the months of the year?", "List the months of the year.",
    "Name the months of the year.", "Tell me the months of the year.",
    "Name all months of the year.", "Months of the year?", "List all the months.",
    "Which months are in a year?", "Name the twelve months.", "List the months.",
    "Name the months.", "Can you list the months of the year?",
)  # fmt: skip
MONTH_LENGTH: Final[tuple[str, ...]] = (
    "How many days does {x} have?", "How many days are in {x}?", "How many days are there in {x}?",
    "How many days has {x}?", "How long is {x}?", "Days in {x}?", "How many days in {x}?",
    "What is the number of days in {x}?", "Tell me how many days {x} has.",
    "Do you know how many days {x} has?", "How many days does the month of {x} have?",
)  # fmt: skip
MONTH_NUMBER: Final[tuple[str, ...]] = (
    "What number is {x}?", "Which number is {x}?", "What number is the month {x}?",
    "Which month number is {x}?", "What is the number of {x}?", "Which month of the year is {x}?",
    "What month number is {x}?",
)  # fmt: skip
NTH_MONTH: Final[tuple[str, ...]] = (
    "What is the {o} month?", "What is the {o} month of the year?", "Which is the {o} month?",
    "Which month is the {o}?", "Name the {o} month.", "Name the {o} month of the year.",
    "Tell me the {o} month.", "The {o} month?", "Which is the {o} month of the year?",
)  # fmt: skip
MONTH_OF_NUMBER: Final[tuple[str, ...]] = (
    "What is month {n}?", "Which month is number {n}?", "What is month number {n}?",
    "Which month has number {n}?", "Name month {n}.", "Month {n}?", "Which is month {n}?",
    "Tell me month number {n}.",
)  # fmt: skip

GREET: Final[tuple[str, ...]] = (
    "Hello", "Hello", "Hi", "Hi", "Hey", "Hey", "Hello there", "Hi there", "Hey there",
    "Good morning", "Good morning", "Good evening", "Good day", "Good afternoon", "Greetings",
    "Howdy", "Welcome", "Hello hello", "Hiya", "Hello again", "Hi again", "Good evening to you",
    "A good day to you",
)  # fmt: skip
NAMES: Final[tuple[str, ...]] = (
    "", "", "", "", " covey-mini", ", covey-mini", " Covey", ", Covey", " model", " friend",
    " world", ", my friend", " little model", " you", " everyone", " mini",
)  # fmt: skip
MARKS: Final[tuple[str, ...]] = (".", "!", "!", "?", "")
AFTER_GREETING: Final[tuple[str, ...]] = (
    "", "", "", "", "", "", " Nice to meet you.", " I am new here.", " Can you hear me?",
    " Is anyone there?", " Are you there?", " How can you help me?", " This is a test.",
    " It is me.", " I have a question.", " Good to see you.", " Are you awake?",
)  # fmt: skip
BEFORE_QUESTION: Final[tuple[str, ...]] = (
    "", "", "", "", "Hello! ", "Hi, ", "Hey, ", "So, ", "Sorry, ", "Excuse me, ", "One question: ",
    "Tell me: ", "Good morning! ", "Hello, covey-mini. ", "I wonder: ", "And ", "But ", "Well, ",
)  # fmt: skip
HOW: Final[tuple[str, ...]] = (
    "How are you?", "How are you today?", "How do you do?", "How do you feel?", "How is it going?",
    "Are you well?", "Hello, how are you?", "Hi, how are you?", "How are things?", "Are you okay?",
    "Hi! How are you?", "How are you doing?", "How do you feel today?", "Hey, how are you doing?",
)  # fmt: skip
WHO_ASK: Final[tuple[str, ...]] = (
    "Who are you?", "What are you?", "What is your name?", "What's your name?", "Who is this?",
    "Tell me about yourself.", "Introduce yourself.", "Are you a robot?", "Are you human?",
    "Are you an AI?", "What model are you?", "Which model are you?", "Who am I talking to?",
    "Do you have a name?", "What should I call you?", "Are you a language model?", "Who made you?",
    "What kind of model are you?", "How big are you?", "Are you covey-mini?", "What is covey-mini?",
    "Describe yourself.", "Who is covey-mini?", "Hello, who are you?", "Hi, who are you?",
    "Your name?", "Are you a person?", "Please introduce yourself.", "Can you tell me who you are?",
    "Tell me who you are.", "Say who you are.", "Are you a small model?", "Are you a chatbot?",
    "Are you real?", "Where are you?", "Where do you run?", "What is this?", "Are you smart?",
)  # fmt: skip
CAN_ASK: Final[tuple[str, ...]] = (
    "What can you do?", "What do you know?", "How can you help me?", "Help", "Help!", "Help me.",
    "What can I ask you?", "What can I ask?", "What are you good at?", "What do you do?",
    "Can you help me?", "What are your skills?", "What are your tasks?",
    "What are you able to do?", "Which questions can you answer?",
    "What questions can you answer?", "What can you help me with?", "Tell me what you can do.",
    "List what you can do.", "What else can you do?", "What should I ask?", "What is your job?",
    "What are you for?", "What can I do here?", "Show me what you can do.",
    "What can you tell me?", "I need help.", "What can you explain?", "Which tasks can you do?",
    "Can you do anything else?", "What are your limits?", "Please help me.",
    "Can I ask you something?",
)  # fmt: skip
THANK: Final[tuple[str, ...]] = (
    "Thank you!", "Thanks!", "Thank you", "Thanks", "Thank you very much!", "Thanks a lot!",
    "Many thanks.", "Great, thanks!", "Good, thank you.", "Thank you, covey-mini.", "Well done!",
    "Good job!", "Great!", "Nice!", "Very good.", "Good answer.", "That is right.", "Cool!",
    "Perfect!", "Thanks for the help.", "Thank you for your help.", "Wonderful!",
    "That was nice.", "Excellent!",
)  # fmt: skip
BYE: Final[tuple[str, ...]] = (
    "Bye", "Bye!", "Goodbye", "Goodbye!", "See you!", "See you later.", "Bye bye!", "Good bye.",
    "See you tomorrow.", "I must go.", "Have a nice day!", "Farewell!", "Bye, covey-mini!",
    "I have to go now.", "See you soon!", "Until next time.", "That is all.", "Take care!", "Ciao!",
)  # fmt: skip

SYSTEMS: Final[tuple[str, ...]] = (
    "You are a helpful assistant.", "You are covey-mini.", "You are a helpful assistant!",
    "Answer briefly.", "Be brief.", "You are a small model.", "Answer in one sentence.",
    "You are covey-mini, a small and honest model.", "Be kind and short.", "Be helpful and honest.",
    "You are a friendly chatbot.", "You are an assistant that answers questions.",
    "Please answer the questions of the user.", "You help people with Covey.",
    "You are ChatGPT, a large language model.", "Respond in English.", "Think step by step.",
    "You are a helpful, harmless and honest AI assistant. Answer as well as you can.",
    "You are an expert. Keep your answers short and correct.", "Do not make things up.",
)  # fmt: skip
