"""A tokenizer of the family's kind: byte-level BPE with GLM's control tokens in GLM's order.

Ids are small: 256 bytes, some merges, then the control tokens, in the order in which the published
vocabularies have them from id 151329 on.
"""

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from glimt.tiny.config import Style

NUM_MERGES = 320

_SHARED = (
    "<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> "
    "<|observation|> <|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|>"
)
_AUDIO_AND_CODE = (
    "<|begin_of_audio|> <|end_of_audio|> <|begin_of_transcription|> <|end_of_transcription|> "
    "<|code_prefix|> <|code_middle|> <|code_suffix|>"
)
_THINK_AND_TOOLS = (
    "<think> </think> <tool_call> </tool_call> <tool_response> </tool_response> <arg_key> "
    "</arg_key> <arg_value> </arg_value> /nothink <|begin_of_box|> <|end_of_box|>"
)
_THINK_AND_ANSWER = "<think> </think> <answer> </answer> <|begin_of_box|> <|end_of_box|> <|sep|>"
_MEDIA = "<|image|> <|video|>"

# Letters with at most one leading mark, up to three digits, runs of marks, line ends, spaces.
_PIECES = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer(style: Style) -> Tokenizer:
    """Train the merges on the built-in text and append the control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    corpus = (Path(__file__).parent / "corpus.txt").read_text(encoding="utf-8")
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + NUM_MERGES, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([corpus], trainer)
    for token, special in control_tokens(style):
        added = AddedToken(token, special=special, normalized=False)
        if special:
            tokenizer.add_special_tokens([added])
        else:
            tokenizer.add_tokens([added])
    return tokenizer


def control_token_ids(tokenizer: Tokenizer, style: Style) -> dict[str, int]:
    """Control token -> id."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return {token: vocabulary[token] for token, _ in control_tokens(style)}


def control_tokens(style: Style) -> list[tuple[str, bool]]:
    """(token, special) in id order. Thought, tool, answer and box marks are part of the text that
    a model writes, hence not special: they survive decoding with skip_special_tokens."""
    if style == "4.1":
        groups = [(_SHARED, True), (_MEDIA, True), (_THINK_AND_ANSWER, False)]
    else:
        groups = [(_SHARED, True), (_AUDIO_AND_CODE, True), (_THINK_AND_TOOLS, False)]
        groups.append((_MEDIA, True))
    return [(token, special) for group, special in groups for token in group.split()]
