"""Tokenizers that users have, small: what they add to a text, and how their tokens stand for it."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<bos>", "<eos>", "<sep>", "<pad>", "<unk>")
TEMPLATES = {
    "neither": "$A",
    "bos": "<bos> $A",
    "eos": "$A <eos>",
    "both": "<bos> $A <eos>",
    "doubled bos": "<bos> <bos> $A",
    "doubled eos": "$A <eos> <eos>",
    "doubled": "<bos> <bos> $A <eos> <eos>",
}


def byte_level(template: str = "neither", **named) -> PreTrainedTokenizerFast:
    """One token per byte, as the least of GPT-2's kind, with what a post-processor adds."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*SPECIAL, *letters])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return _finished(made, template, vocabulary, **named)


def words(template: str = "neither", lower: bool = True) -> PreTrainedTokenizerFast:
    """One token per word, lower case; spaces are dropped."""
    known = ("the", "capital", "of", "france", "is", "paris", ".", "é", "hello", "there")
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *known])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return _finished(made, template, vocabulary)


def pieces(template: str = "bos") -> PreTrainedTokenizerFast:
    """As sentencepiece: a space is a character of the token after it, and unknown characters are bytes."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzTHP.", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("▁", "i"), ("▁i", "s")]
    vocabulary = {
        piece: number for number, piece in enumerate([*SPECIAL, *letters, *("".join(pair) for pair in merges)])
    }
    made = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _finished(made, template, vocabulary)


def _finished(
    made: Tokenizer, template: str, vocabulary: dict[str, int], pair: str = "$A $B", **named
) -> PreTrainedTokenizerFast:
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    single = TEMPLATES.get(template, template)
    made.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, vocabulary[token]) for token in SPECIAL],
    )
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", **named}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)
