"""The commands of `mmlm`; heavy modules are imported when a command runs, so that help is quick."""
