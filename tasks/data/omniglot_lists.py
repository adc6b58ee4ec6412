"""What the files of Omniglot do not say of themselves: alphabets, splits, the one-shot runs.

Characters are numbered from 1 to 1,623 and drawers from 1 to 20, as in the official file names
(0001_01.png). Alphabets and runs: Lake, Salakhutdinov, Tenenbaum, Science 2015 (repository
brendenlake/omniglot, MIT). Splits: Vinyals et al. 2016, from the list in the repository
jakesnell/prototypical-networks (MIT).
"""

BACKGROUND = 964
"""Characters of the background set; those after it are the evaluation set's."""

ALPHABETS = {
    "Arcadian": 26,
    "Armenian": 41,
    "Asomtavruli_(Georgian)": 40,
    "Balinese": 24,
    "Bengali": 46,
    "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14,
    "Braille": 26,
    "Cyrillic": 33,
    "Early_Aramaic": 22,
    "Syriac_(Estrangelo)": 23,
    "Anglo-Saxon_Futhorc": 29,
    "Futurama": 26,
    "Grantha": 43,
    "Greek": 24,
    "Gujarati": 48,
    "Hebrew": 22,
    "Japanese_(hiragana)": 52,
    "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
    "Malay_(Jawi_-_Arabic)": 40,
    "Japanese_(katakana)": 47,
    "Korean": 40,
    "Latin": 26,
    "Alphabet_of_the_Magi": 20,
    "Mkhedruli_(Georgian)": 41,
    "Burmese_(Myanmar)": 34,
    "N_Ko": 33,
    "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14,
    "Sanskrit": 42,
    "Tagalog": 17,
    "Tifinagh": 55,
    "Angelic": 20,
    "Atemayar_Qelisayer": 26,
    "Atlantean": 26,
    "Aurek-Besh": 26,
    "Avesta": 26,
    "Ge_ez": 26,
    "Glagolitic": 45,
    "Gurmukhi": 45,
    "Kannada": 41,
    "Keble": 26,
    "Malayalam": 47,
    "Manipuri": 40,
    "Mongolian": 30,
    "Old_Church_Slavonic_(Cyrillic)": 45,
    "Oriya": 46,
    "Syriac_(Serto)": 23,
    "Sylheti": 28,
    "Tengwar": 25,
    "Tibetan": 42,
    "ULOG": 26,
}
"""Characters of each alphabet, in the order of their numbers."""

VINYALS_VALID = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
"""Alphabets of the validation part, all in the background set."""

VINYALS_TEST_FROM = 1201
"""First character of the test part: the last four of Gurmukhi, then whole alphabets. The rest
trains."""

RUNS = (
    ("Atlantean", (5, 8), (3, 2), "1 2 3 4 5 7 8 9 10 13 14 16 19 20 21 22 23 24 25 26"),
    ("Ge_ez", (3, 7), (4, 2), "1 2 3 4 5 6 8 9 10 12 14 15 16 17 18 20 21 23 24 25"),
    ("Glagolitic", (6, 4), (3, 2), "1 2 3 5 6 7 14 17 18 19 20 21 26 28 31 34 36 37 40 43"),
    ("Gurmukhi", (5, 2), (8, 3), "3 6 7 8 9 13 14 15 16 17 22 25 26 29 31 32 33 38 43 44"),
    ("Kannada", (2, 1), (8, 3), "1 3 5 8 11 12 13 14 19 20 21 23 25 26 27 28 33 35 40 41"),
    ("Malayalam", (3, 7), (4, 2), "2 4 5 9 13 14 15 16 17 19 20 21 22 25 27 29 30 37 43 46"),
    ("Manipuri", (8, 4), (7, 3), "3 4 6 8 9 11 12 13 15 17 19 21 22 25 29 33 35 36 37 39"),
    (
        "Old_Church_Slavonic_(Cyrillic)",
        (4, 8),
        (1, 2),
        "2 4 5 6 7 8 9 11 12 13 14 15 23 24 25 30 33 41 44 45",
    ),
    ("Tengwar", (1, 4), (8, 7), "1 2 4 5 7 8 9 10 11 12 13 16 18 19 20 21 22 23 24 25"),
    ("Tibetan", (1, 3), (8, 5), "1 2 3 5 6 7 8 9 11 13 14 15 21 22 24 33 35 36 38 41"),
)
"""The 20 one-shot runs, two on each of ten alphabets: the alphabet; for each of the two the drawer
of the training items and the drawer of the test items; the characters in the alphabet."""
