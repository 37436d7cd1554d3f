"""The install line that is known to work, named wherever packages do not fit together."""

REMEDY = "pip install -e '.[llamafactory]' (outside a clone: pip install 'dataflex[llamafactory]')"
