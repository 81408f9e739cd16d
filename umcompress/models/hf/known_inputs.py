"""Facts about what architectures take that neither signature nor configuration says: a new one adds its name here."""

# model_type of text models whose table of position biases is computed, of just so many tokens.
COMPUTED_POSITION_TABLES = frozenset({"mpt"})
# model_type of vision towers that take pictures of any size whole, though they speak of merged patches.
WHOLE_PICTURES_OF_ANY_SIZE = frozenset({"pixtral"})
# model_type -> arguments that are 1 where a token stands for a picture. PaliGemma's token types say 1 of an answer.
PICTURE_TOKEN_TYPES = {"gemma3": frozenset({"mm_token_type_ids", "token_type_ids"})}
ANY_PICTURE_TOKEN_TYPES = frozenset({"mm_token_type_ids"})
