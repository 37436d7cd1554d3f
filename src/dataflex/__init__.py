"""DataFlex: decide, while a language model trains, which samples it sees next."""

__version__ = "0.1.0"
