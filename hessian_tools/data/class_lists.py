"""The splits of the literature: which classes belong to train, validation and test, by name or by number."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split())


# miniImageNet: Ravi and Larochelle (2017).
RAVI_TRAIN = _words("""
n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367 n02089867 n02091831 n02101006
n02105505 n02108089 n02108551 n02108915 n02111277 n02113712 n02120079 n02165456 n02457408 n02606052 n02687172
n02747177 n02795169 n02823428 n02966193 n03017168 n03047690 n03062245 n03207743 n03220513 n03337140 n03347037
n03400231 n03476684 n03527444 n03676483 n03838899 n03854065 n03888605 n03908618 n03924679 n03998194 n04067472
n04243546 n04251144 n04258138 n04275548 n04296562 n04389033 n04435653 n04443257 n04509417 n04515003 n04596742
n04604644 n04612504 n06794110 n07584110 n07697537 n07747607 n09246464 n13054560 n13133613""")
RAVI_VAL = _words("""
n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370 n03417042 n03535780
n03584254 n03770439 n03773504 n03980874 n09256479""")
RAVI_TEST = _words("""
n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484 n02871525 n03127925
n03146219 n03272010 n03544143 n03775546 n04146614 n04149813 n04418357 n04522168 n07613480""")

# CIFAR-FS: Bertinetto, Henriques, Torr and Vedaldi (2019). All other classes of CIFAR-100 belong to train.
CIFAR_FS_VAL = _words("""
beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark television
tractor""")
CIFAR_FS_TEST = _words("""
baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table telephone
wardrobe whale woman worm""")

# FC100: Oreshkin, Rodriguez and Lacoste (2018). These are numbers of CIFAR-100's superclasses; all other superclasses
# belong to train.
FC100_VAL = (8, 11, 13, 16)
FC100_TEST = (0, 7, 12, 14)

# CUB in Meta-Dataset: Triantafillou et al. (2020). These are CUB's class numbers; all other classes belong to train.
META_DATASET_CUB_VAL = _numbers("""
44 51 52 55 57 61 64 66 68 72 76 80 84 96 113 121 127 136 140 145 150 155 159 162 172 176 178 198 199 200""")
META_DATASET_CUB_TEST = _numbers("""
8 9 15 20 28 30 35 39 45 46 82 85 94 101 103 112 118 122 128 133 134 137 147 148 163 168 169 170 193 194""")

# The alphabets of Omniglot's two official sets: Lake, Salakhutdinov and Tenenbaum (2015).
OMNIGLOT_BACKGROUND = _words("""
Alphabet_of_the_Magi Anglo-Saxon_Futhorc Arcadian Armenian Asomtavruli_(Georgian) Balinese Bengali
Blackfoot_(Canadian_Aboriginal_Syllabics) Braille Burmese_(Myanmar) Cyrillic Early_Aramaic Futurama Grantha Greek
Gujarati Hebrew Inuktitut_(Canadian_Aboriginal_Syllabics) Japanese_(hiragana) Japanese_(katakana) Korean Latin
Malay_(Jawi_-_Arabic) Mkhedruli_(Georgian) N_Ko Ojibwe_(Canadian_Aboriginal_Syllabics) Sanskrit Syriac_(Estrangelo)
Tagalog Tifinagh""")
OMNIGLOT_EVALUATION = _words("""
Angelic Atemayar_Qelisayer Atlantean Aurek-Besh Avesta Ge_ez Glagolitic Gurmukhi Kannada Keble Malayalam Manipuri
Mongolian Old_Church_Slavonic_(Cyrillic) Oriya Sylheti Syriac_(Serto) Tengwar Tibetan ULOG""")

# The split of Omniglot that is used since Vinyals et al. (2016). The 1623 characters are ordered by name, with the
# background set first. The last 423 are for test; the first of these is a character in the middle of the alphabet
# Gurmukhi. Five whole alphabets of the background set are for validation, and the rest is for training.
VINYALS_VAL = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
VINYALS_TEST_FROM = ("Gurmukhi", "character42")
