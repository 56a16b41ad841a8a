"""What the rows of a cache are of: images, texts, or what a program registers; one small interface, a file for each.

find_input("text").scan("cards.csv")           # → Listing, as `featcache build cards.csv` sees it
"""

from featcache.extract.inputs.interface import ArrayLoader, Extractor, Input, Loader
from featcache.extract.inputs.registry import find_input, input_names, input_of, register_input

__all__ = ["ArrayLoader", "Extractor", "Input", "Loader", "find_input", "input_names", "input_of", "register_input"]
