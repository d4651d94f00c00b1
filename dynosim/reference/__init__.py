"""What every key means, told of its one source: as a schema, as pages, on the command line."""
