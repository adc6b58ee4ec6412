"""The commands, by what they are about; none imports another. :mod:`metabench.cli.main` has all."""
