"""The `guerdon` command."""
