"""The command line: one file per subcommand, each thin, heavy imports inside the command."""
