"""The HTTP surface: schema, routes, streams; the top of the client tower."""
