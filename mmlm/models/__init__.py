"""Model classes that transformers has not."""
