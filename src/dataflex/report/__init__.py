"""Pictures and tables from ledgers: one self-contained page, from disk or served while a run goes on."""
