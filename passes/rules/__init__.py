"""One small function per canonical op and pass, in literal tables."""
