"""Weights of published tokenizers, in and out."""

from visual_tokenizer.convert.conversion import MissingDecoderWarning as MissingDecoderWarning
from visual_tokenizer.convert.conversion import load_published as load_published
from visual_tokenizer.convert.conversion import save_published as save_published
