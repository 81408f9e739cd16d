"""Any model of transformers: built from its configuration, read and written in the layout of its own folder."""
