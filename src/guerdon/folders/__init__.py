"""Folders and files that a run writes: who may write them (`lock`), and which of them are its own (`claim`)."""
